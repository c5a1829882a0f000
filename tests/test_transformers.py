"""LocalPlugCallback under an unmodified transformers.Trainer."""

import copy
import json

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import localplug
from localplug_transformers import LocalPlugCallback
from problems import SavedElements, Tokens, arguments, fit, logged, tiny_llama, weights

NAMES = TrainingArguments.__dataclass_fields__
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in NAMES else "gradient_checkpointing"


@pytest.mark.parametrize("num_directions", [1, 3])
def test_two_forwards_a_direction_and_nothing_of_a_backward(num_directions, tmp_path):
    model = tiny_llama()
    start, calls = weights(model), []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    callback = LocalPlugCallback("mezo", num_directions=num_directions)
    with SavedElements() as saved:
        trainer = fit(model, tmp_path, callback)
    assert calls == [False] * (2 * num_directions * 4)
    assert callback.engine.run.num_forwards == 2 * num_directions * 4
    assert all(p.grad is None for p in model.parameters())
    assert len(trainer.optimizer.state) == 0
    assert saved.total == 0
    assert not torch.equal(weights(model), start)
    assert all(value > 0 for value in logged(trainer, "grad_norm"))


def test_learns(tmp_path):
    model = tiny_llama()
    trainer = fit(model, tmp_path, LocalPlugCallback("mezo", num_directions=4), max_steps=250, learning_rate=3e-3)
    losses = logged(trainer, "loss")
    assert sum(losses[-10:]) / 10 < 0.9 * sum(losses[:10]) / 10


def test_equals_the_equations_written_out(tmp_path):
    """theta <- theta - lr g z with g = (L(theta + eps z) - L(theta - eps z)) / 2 eps, on a copy and by hand."""
    eps, lr, steps = 1e-3, 1e-2, 3
    model, by_hand = tiny_llama(), tiny_llama()
    batches = []
    model.register_forward_pre_hook(lambda m, args, kwargs: batches.append(kwargs), with_kwargs=True)
    trainer = fit(model, tmp_path, LocalPlugCallback("mezo", eps=eps), max_steps=steps, learning_rate=lr)
    run = localplug.Run(by_hand, list(zip(_names(by_hand), by_hand.parameters(), strict=True)), seed=0)
    directions = localplug.Directions(run)
    slopes = []
    for step in range(steps):
        run.step = step
        z = [directions.values(i, 0) for i in range(len(run.parameters))]
        theta = [p.detach().clone() for p in by_hand.parameters()]
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, t, d in zip(by_hand.parameters(), theta, z, strict=True):
                    p.copy_(t + sign * eps * d)
                losses.append(by_hand(**batches[step]).loss)
        g = (losses[0] - losses[1]) / (2 * eps)
        slopes.append(abs(float(g)))
        with torch.no_grad():
            for p, t, d in zip(by_hand.parameters(), theta, z, strict=True):
                p.copy_(t - lr * g * d)
    assert logged(trainer, "grad_norm") == pytest.approx(slopes, rel=1e-4)
    torch.testing.assert_close(weights(model), weights(by_hand), atol=1e-6, rtol=0)


def _names(model):
    return localplug.contract.parameter_names([n for n, _ in model.named_parameters()])


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    whole, split = tiny_llama(), tiny_llama()
    fit(whole, tmp_path, LocalPlugCallback("mezo"), per_device_train_batch_size=8)
    callback = LocalPlugCallback("mezo")
    fit(split, tmp_path, callback, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert callback.engine.run.num_forwards == 4 * 4 * 2
    moved = (weights(whole) - weights(tiny_llama())).norm()
    assert (weights(whole) - weights(split)).norm() < 1e-3 * moved


@pytest.mark.parametrize("how", ["label smoothing", "compute_loss_func"])
def test_a_loss_that_the_trainer_builds_on_the_logits(how, tmp_path):
    """The stub reports d loss / d logits, and the slope of the logits turns it into the projected gradient."""
    eps, lr = 1e-3, 1e-2
    smoothing = 0.1 if how == "label smoothing" else 0.0
    inside, outside = tiny_llama(), tiny_llama()

    def shifted_cross_entropy(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    options = dict(compute_loss_func=shifted_cross_entropy) if how == "compute_loss_func" else {}
    callback = LocalPlugCallback("mezo", eps=eps)
    trainer = fit(
        outside, tmp_path, callback, trainer_options=options, label_smoothing_factor=smoothing, learning_rate=lr
    )
    assert all(p.grad is None for p in outside.parameters()) and not trainer.optimizer.state
    # compute_loss_func here is the model's own loss, label smoothing adds a uniform term: compare with exact differences
    reference = fit(inside, tmp_path, LocalPlugCallback("mezo", eps=eps), learning_rate=lr)
    if how == "compute_loss_func":
        assert logged(trainer, "grad_norm") == pytest.approx(logged(reference, "grad_norm"), rel=2e-2)
    else:
        assert logged(trainer, "grad_norm") != pytest.approx(logged(reference, "grad_norm"), rel=1e-6)
        assert (weights(outside) - weights(tiny_llama())).norm() > 0


def test_the_first_step_already_uses_the_leaf_that_the_loss_is_built_on(tmp_path):
    """The model also returns a loss of its own, which this Trainer does not use; nothing is learned from that one."""

    class FromLogits(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(**inputs).logits.float()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())

    told, untold = tiny_llama(), tiny_llama()
    first = LocalPlugCallback("mezo", outputs=("logits",))
    fit(told, tmp_path, first, trainer=FromLogits)
    second = LocalPlugCallback("mezo")
    fit(untold, tmp_path, second, trainer=FromLogits)
    assert second.engine.run.num_forwards == first.engine.run.num_forwards + 2  # the first step is repeated once
    # the first backward saw the logits at theta - eps z instead of the midpoint: an error of order eps, in one step
    moved = weights(told) - weights(tiny_llama())
    assert (weights(told) - weights(untold)).norm() < 0.1 * moved.norm()


@pytest.mark.parametrize("changes", [{CHECKPOINTING: True}, dict(bf16=True)], ids=["checkpointing", "bf16"])
def test_switches_of_the_trainer(changes, tmp_path):
    model, plain = tiny_llama(), tiny_llama()
    trainer = fit(model, tmp_path, LocalPlugCallback("mezo", eps=1e-2), **changes)
    fit(plain, tmp_path, LocalPlugCallback("mezo", eps=1e-2))
    assert not trainer.optimizer.state
    if "bf16" in changes:
        moved = weights(plain) - weights(tiny_llama())
        assert (weights(model) - weights(plain)).norm() < 0.5 * moved.norm()
    else:
        assert torch.equal(weights(model), weights(plain))


def test_half_precision_weights_move_by_steps_below_their_rounding_unit(tmp_path):
    model = tiny_llama().to(torch.bfloat16)
    start = weights(model)
    fit(model, tmp_path, LocalPlugCallback("mezo", eps=1e-2), learning_rate=2e-6, max_steps=2)
    moved = weights(model) != start
    assert 0.001 < moved.float().mean() < 0.5


def test_lora_moves_only_the_adapter(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = fit(model, tmp_path, LocalPlugCallback("mezo", eps=1e-2), learning_rate=1e-2)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all("lora_" in n for n in moved)
    assert not trainer.optimizer.state


def test_evaluation_sees_the_clean_weights_once_a_batch(tmp_path):
    model = tiny_llama()
    seen = []
    model.model.embed_tokens.register_forward_hook(
        lambda m, *_: seen.append(m.weight.clone()) if not m.training else None
    )
    trainer = fit(
        model, tmp_path, LocalPlugCallback("mezo"), eval_strategy="steps", eval_steps=4,
        trainer_options=dict(eval_dataset=Tokens(8)), per_device_eval_batch_size=8,
    )  # fmt: skip
    assert logged(trainer, "eval_loss")
    assert len(seen) == 1 and torch.equal(seen[0], model.model.embed_tokens.weight)


def test_the_schedule_and_weight_decay_are_the_trainers(tmp_path):
    model, decayed = tiny_llama(), tiny_llama()
    trainer = fit(model, tmp_path, LocalPlugCallback("mezo"), lr_scheduler_type="linear")
    assert logged(trainer, "learning_rate") == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    fit(decayed, tmp_path, LocalPlugCallback("mezo"), lr_scheduler_type="linear", weight_decay=0.5)
    a, b = dict(model.named_parameters()), dict(decayed.named_parameters())
    shrunk = {n: float((b[n].norm() / a[n].norm()).detach()) for n in a}
    # HF decays neither norms nor biases; the others shrink by about prod(1 - lr * 0.5) over the four steps
    assert all(r == pytest.approx(1 - 0.5 * 2.5e-3, abs=2e-4) for n, r in shrunk.items() if "norm" not in n)
    assert all(r == pytest.approx(1, abs=1e-4) for n, r in shrunk.items() if "norm" in n)


def test_clipping_is_honoured(tmp_path):
    free, clipped = tiny_llama(), tiny_llama()
    one = fit(free, tmp_path, LocalPlugCallback("mezo"), max_steps=1)
    two = fit(clipped, tmp_path, LocalPlugCallback("mezo"), max_steps=1, max_grad_norm=0.01)
    (g,) = logged(one, "grad_norm")
    assert logged(two, "grad_norm") == [g]
    step, short = weights(free) - weights(tiny_llama()), weights(clipped) - weights(tiny_llama())
    torch.testing.assert_close(short.norm(), step.norm() * 0.01 / g, rtol=1e-2, atol=0)


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_update_by_the_trainers_optimizer(optim, tmp_path):
    model, streamed = tiny_llama(), tiny_llama()
    trainer = fit(model, tmp_path, LocalPlugCallback("mezo", update="trainer"), optim=optim)
    assert all(p.grad is None for p in model.parameters())
    if optim == "sgd":
        fit(streamed, tmp_path, LocalPlugCallback("mezo"))
        torch.testing.assert_close(weights(model), weights(streamed), atol=1e-7, rtol=1e-6)
    else:
        assert len(trainer.optimizer.state) == len(list(model.parameters()))


def _with_loss_scaling(monkeypatch, scaler):
    """A Trainer that does what fp16=True does on a GPU, and refuses on a CPU: fp16 autocast and this GradScaler."""
    from accelerate.state import AcceleratorState

    class Scaling(Trainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "fp16")
            self.accelerator.scaler, self.accelerator.native_amp = scaler, True
            self.args.fp16 = True

    return Scaling


@pytest.mark.parametrize("changes", [{}, dict(max_grad_norm=0.01), dict(label_smoothing_factor=0.1)])
@pytest.mark.parametrize("options", [{}, dict(num_directions=3), dict(update="trainer")])
def test_fp16_loss_scaling_changes_no_bit(options, changes, tmp_path, monkeypatch):
    """Scaled by 2^16 in the loss, unscaled in the carrier's gradient: powers of two leave no rounding behind."""
    trained = {}
    for scale in (2.0**16, None):
        model, callback = tiny_llama(), LocalPlugCallback("mezo", eps=1e-2, **options)
        scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
        halves = []
        model.lm_head.register_forward_hook(lambda m, i, output, halves=halves: halves.append(output.dtype))
        trainer = fit(
            model, tmp_path, callback, trainer=_with_loss_scaling(monkeypatch, scaler), gradient_accumulation_steps=2,
            **changes,
        )  # fmt: skip
        assert set(halves) == {torch.float16} and scaler.get_scale() == (scale or 1.0)
        assert callback.engine.run.num_dropped == 0
        trained[scale] = weights(model), logged(trainer, "grad_norm"), logged(trainer, "loss")
    scaled, unscaled = trained.values()
    assert torch.equal(scaled[0], unscaled[0]) and not torch.equal(scaled[0], weights(tiny_llama()))
    assert scaled[1:] == unscaled[1:]


@pytest.mark.parametrize("options", [{}, dict(update="trainer")], ids=["sgd", "trainer"])
def test_an_overflow_under_loss_scaling_skips_the_step_and_halves_the_scale(options, tmp_path, monkeypatch):
    """Scale and schedule go as with backpropagation, where the second step's only forward pass overflows."""

    class Notes(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            self.steps.append((weights(model), scaler.get_scale()))

    seen = []
    for callback, bad in ((LocalPlugCallback("mezo", eps=1e-2, **options), 4), (TrainerCallback(), 2)):
        model, calls, notes = tiny_llama(), [], Notes()
        notes.steps = []

        def overflows(module, args, output, calls=calls, bad=bad):
            calls.append(1)
            return output * 1e6 if len(calls) == bad else output  # fp16 ends at 65504

        model.lm_head.register_forward_hook(overflows)
        scaler = torch.amp.GradScaler("cpu")
        trainer = fit(
            model, tmp_path, callback, also=[notes], trainer=_with_loss_scaling(monkeypatch, scaler),
            lr_scheduler_type="linear",
        )  # fmt: skip
        steps = [theta for theta, _ in notes.steps]
        assert torch.equal(steps[1], steps[0])  # skipped
        assert not torch.equal(steps[2], steps[1]) and steps[3].isfinite().all()
        seen.append(([scale for _, scale in notes.steps], logged(trainer, "learning_rate")))
        if isinstance(callback, LocalPlugCallback):
            assert callback.engine.run.num_dropped == 1
            assert all(p.grad is None for p in model.parameters())
    assert seen[0] == seen[1]
    assert seen[0][0] == [2.0**16, 2.0**15, 2.0**15, 2.0**15]


@pytest.mark.parametrize("options", [{}, dict(update="trainer"), dict(strict="mezo")], ids=["sgd", "adam", "strict"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(options, tmp_path):
    changes = dict(max_steps=6, save_strategy="steps", save_steps=3, lr_scheduler_type="linear")
    whole, resumed = tiny_llama(attention_dropout=0.1), tiny_llama(attention_dropout=0.1)
    fit(whole, tmp_path / "a", LocalPlugCallback("mezo", **options), **changes)
    fit(
        resumed,
        tmp_path / "b",
        LocalPlugCallback("mezo", **options),
        resume=str(tmp_path / "a/checkpoint-3"),
        **changes,
    )
    assert torch.equal(weights(whole), weights(resumed))


def test_a_checkpoint_tells_how_it_was_trained_and_a_changed_setting_is_reported(tmp_path, caplog):
    changes = dict(max_steps=4, save_strategy="steps", save_steps=2)
    fit(tiny_llama(), tmp_path, LocalPlugCallback("mezo", eps=1e-3), **changes)
    state = json.loads((tmp_path / "checkpoint-2/trainer_state.json").read_text())
    assert state["stateful_callbacks"]["LocalPlugCallback"]["args"] == {"method": "mezo", "seed": None, "eps": 1e-3}
    with caplog.at_level("WARNING", logger="localplug"):
        fit(
            tiny_llama(),
            tmp_path,
            LocalPlugCallback("mezo", eps=1e-2),
            resume=str(tmp_path / "checkpoint-2"),
            **changes,
        )
    assert "eps was 0.001, is 0.01" in caplog.text


def test_a_checkpoint_of_a_run_without_the_callback_can_be_resumed_with_it(tmp_path):
    changes = dict(max_steps=4, save_strategy="steps", save_steps=2)
    Trainer(tiny_llama(), arguments(tmp_path, **changes), train_dataset=Tokens()).train()
    callback = LocalPlugCallback("mezo")
    fit(tiny_llama(), tmp_path, callback, resume=str(tmp_path / "checkpoint-2"), **changes)
    assert callback.engine.run.num_forwards == 4


@pytest.mark.parametrize("evaluation", [1, 2])
def test_an_evaluation_that_raises_leaves_everything_as_it_was(evaluation, tmp_path):
    model = tiny_llama()
    start, calls = weights(model), []

    def fails(*_):
        calls.append(1)
        if len(calls) == evaluation:
            raise RuntimeError("out of memory")

    handle = model.model.layers[1].register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(model, tmp_path, LocalPlugCallback("mezo"))
    assert torch.equal(weights(model), start)
    assert torch.is_grad_enabled()
    assert not any(m._forward_pre_hooks for m in model.modules() if m is not model)
    handle.remove()
    callback = LocalPlugCallback("mezo")  # the interrupted one never detached; a new training replaces it
    fit(model, tmp_path, callback)
    assert callback.engine.run.num_forwards == 8
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_training_twice_and_after_a_deep_copy(tmp_path):
    copies = []

    class KeepsACopy(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            copies.append(copy.deepcopy(model))

    model, callback = tiny_llama(), LocalPlugCallback("mezo")
    trainer = Trainer(
        model, arguments(tmp_path, max_steps=2), train_dataset=Tokens(), callbacks=[callback, KeepsACopy()]
    )
    trainer.train()
    copied = copies[-1].train()
    copied(input_ids=Tokens().x[:2], labels=Tokens().x[:2]).loss.backward()
    assert copied.model.embed_tokens.weight.grad is not None  # a copy trains by itself
    trainer.train()
    assert callback.engine.run.num_forwards == 4
    assert not model._forward_hooks


def test_what_cannot_work_is_refused_with_all_reasons_at_once(tmp_path):
    model = tiny_llama()
    args = arguments(tmp_path, max_grad_norm=1.0, gradient_accumulation_steps=2, optim="lomo")
    args.deepspeed, args.fsdp = "config.json", True
    callback = LocalPlugCallback("mezo", strict="mezo")
    trainer = Trainer(model, arguments(tmp_path), train_dataset=Tokens())
    with pytest.raises(localplug.Unsupported) as refused:
        callback.on_train_begin(args, trainer.state, trainer.control, model=model, optimizer=trainer.create_optimizer())
    message = str(refused.value)
    for word in ("lomo", "DeepSpeed", "FSDP", "max_grad_norm=0", "2 micro-batches"):
        assert word in message
    assert message.count("\n  - ") == 5
    assert not model._forward_hooks


def test_the_start_line_says_what_is_true(tmp_path, caplog):
    model = tiny_llama()
    with caplog.at_level("INFO", logger="localplug"):
        fit(model, tmp_path, LocalPlugCallback("mezo", num_directions=2), max_grad_norm=1.0)
    line = caplog.messages[0]
    assert "4 forward passes a batch" in line and f"{weights(model).numel():,} weights" in line
    assert "max_grad_norm=1 clips the projected gradient, max_grad_norm=0 leaves it as it is" in line


def test_a_loss_that_bypasses_the_model_is_an_error_not_a_silent_backward(tmp_path):
    class Bypasses(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model.model(input_ids=inputs["input_ids"]).last_hidden_state.square().mean()

    with pytest.raises(localplug.EngineError, match="no evaluation reached localplug"):
        fit(tiny_llama(), tmp_path, LocalPlugCallback("mezo"), trainer=Bypasses)

    class Leaks(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**inputs).loss + 0.1 * model.lm_head.weight.square().mean()

    with pytest.raises(localplug.EngineError, match="a real backward pass reached"):
        fit(tiny_llama(), tmp_path, LocalPlugCallback("mezo"), trainer=Leaks)


def test_fp16_loss_scaling_reaches_every_unit_of_a_layer_local_method(tmp_path, monkeypatch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))

        def forward(self, x, labels):
            logits = self.layers(x)
            return dict(loss=torch.nn.functional.cross_entropy(logits.float(), labels), logits=logits)

    generator = torch.Generator().manual_seed(1)
    rows = [dict(x=torch.randn(8, generator=generator), labels=torch.tensor(i % 3)) for i in range(32)]
    moved = {}
    for scale in (2.0**10, None):
        torch.manual_seed(0)
        model = Net()
        start = [p.detach().clone() for p in model.parameters()]
        scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0)
        fit(
            model, tmp_path, LocalPlugCallback("tpsgd"), data=rows, trainer=_with_loss_scaling(monkeypatch, scaler),
            optim="sgd", learning_rate=0.1, gradient_accumulation_steps=2,
        )  # fmt: skip
        assert scaler.get_scale() == (scale or 1.0)
        moved[scale] = [p.detach() - s for p, s in zip(model.parameters(), start, strict=True)]
    for scaled, unscaled in zip(moved[2.0**10], moved[None], strict=True):
        assert unscaled.norm() > 0
        # fp16 has 11 bits, at another place when scaled
        assert (scaled - unscaled).norm() < 1e-2 * unscaled.norm()
