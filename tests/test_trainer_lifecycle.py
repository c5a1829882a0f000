"""Whole trainings with many switches of the Trainer on at once, and each switch by itself against what it should do."""

import copy
import math
import pickle

import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

import oracle
from localplug_transformers import LocalPlugCallback
from problems import Tokens, arguments, fit, logged, tiny_llama, weights


def _tuned(tuning, **changes):
    import peft

    model = tiny_llama(initializer_range=0.1, **changes)
    torch.manual_seed(0)
    if tuning == "LoRA":
        return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    if tuning == "prompt tuning":
        return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    return model


# ---- everything at once ---------------------------------------------------------------------------------------------------


class Averages(TrainerCallback):
    """Keeps a deep copy of the model from the start of training, and moves it towards the model in every step."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.copies = [copy.deepcopy(model)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        for mine, theirs in zip(self.copies[0].parameters(), model.parameters(), strict=True):
            mine.data.lerp_(theirs.data, 0.5)
        if state.global_step % 3 == 0:
            self.copies.append(copy.deepcopy(model))


def _stops_at(losses, every, patience):
    """The step in which EarlyStoppingCallback stops, from the losses of all evaluations; None if it does not."""
    best, waited = math.inf, 0
    for i, loss in enumerate(losses):
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == patience:
            return (i + 1) * every
    return None


LEARNING_RATE = {"full": 3e-2, "LoRA": 1.0, "prompt tuning": 30.0}
"""Too high on purpose: the loss gets better for a while, then worse, and training has to stop early."""


@pytest.mark.parametrize("precision", ["float32", "bf16 autocast"])
@pytest.mark.parametrize("tuning", LEARNING_RATE)
def test_evaluation_best_model_early_stopping_averages_warmup_and_resuming_at_once(tuning, precision, tmp_path):
    every, patience, most = 2, 3, 60
    switches = dict(
        max_steps=most, eval_strategy="steps", eval_steps=every, save_strategy="steps", save_steps=every,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=False,
        lr_scheduler_type="linear", warmup_steps=4, learning_rate=LEARNING_RATE[tuning], max_grad_norm=1.0,
        gradient_accumulation_steps=2, bf16=precision == "bf16 autocast", trainer_options=dict(eval_dataset=Tokens(8, seed=2)),
        per_device_eval_batch_size=8, optim="sgd",
    )  # fmt: skip
    model, callback, averages = _tuned(tuning), LocalPlugCallback("mezo", eps=1e-2), Averages()
    trainer = fit(
        model, tmp_path / "whole", callback, also=[EarlyStoppingCallback(patience), averages], **switches
    )  # fmt: skip
    steps = trainer.state.global_step
    losses = logged(trainer, "eval_loss")

    # evaluation every second step, early stopping where its rule says, and not at once
    assert len(losses) == steps // every
    assert steps == _stops_at(losses, every, patience)
    assert patience * every < steps < most
    # the best checkpoint is back
    assert trainer.state.best_metric == min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == min(losses)
    # warm-up, then down to zero at the end of training as it was planned
    rates = logged(trainer, "learning_rate")
    planned = [min(s / 4, (most - s) / (most - 4)) for s in range(steps)]
    assert rates == pytest.approx([LEARNING_RATE[tuning] * share for share in planned])
    # no backward pass, no optimizer state, two forwards a micro-batch; evaluation is not probed
    assert callback.engine.run.num_forwards == 2 * 2 * steps
    assert all(p.grad is None for p in model.parameters()) and not trainer.optimizer.state
    _the_copies_train_by_themselves(averages.copies, callback)

    # from a checkpoint on, with fresh objects: the same bits
    best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    again = _tuned(tuning)
    with torch.no_grad():
        for p in again.parameters():
            p.add_(1.0 if p.requires_grad else 0.0)  # what the checkpoint does not bring back would show
    resumed = fit(
        again, tmp_path / "resumed", LocalPlugCallback("mezo", eps=1e-2), also=[EarlyStoppingCallback(patience)],
        resume=str(tmp_path / f"whole/checkpoint-{best}"), **switches,
    )  # fmt: skip
    assert resumed.state.global_step == steps
    assert logged(resumed, "eval_loss") == losses
    assert logged(resumed, "loss") == logged(trainer, "loss")
    assert _checkpoint_files_equal(tmp_path / f"whole/checkpoint-{steps}", tmp_path / f"resumed/checkpoint-{steps}")


def _checkpoint_files_equal(one, other):
    """Whether the weights that two trainings saved are the same bits."""
    from safetensors.torch import load_file

    (a,), (b,) = one.glob("*.safetensors"), other.glob("*.safetensors")
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _the_copies_train_by_themselves(copies, callback):
    assert len(copies) > 2
    forwards = callback.engine.run.num_forwards
    x = Tokens().x[:2]
    for copied in copies:
        copied.train()(input_ids=x, labels=x).loss.backward()
        trained = [p for p in copied.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        assert any(p.grad.any() for p in trained)
    assert callback.engine.run.num_forwards == forwards
    moved = [torch.cat([p.detach().flatten() for p in c.parameters() if p.requires_grad]) for c in copies]
    assert not torch.equal(moved[1], moved[2])  # each copy is of its own moment


# ---- the callback as an object --------------------------------------------------------------------------------------------


def test_training_twice_goes_on_from_the_weights_with_the_directions_from_the_start(tmp_path):
    model, callback = tiny_llama(), LocalPlugCallback("mezo")
    trainer = fit(model, tmp_path, callback, max_steps=3)
    first = callback.engine
    trainer.train()
    assert callback.engine is not first
    assert first.run.num_forwards == callback.engine.run.num_forwards == 6
    twin = tiny_llama()
    fit(twin, tmp_path, LocalPlugCallback("mezo"), max_steps=3)
    assert not torch.equal(weights(model), weights(twin))
    fit(twin, tmp_path, LocalPlugCallback("mezo"), max_steps=3)
    assert torch.equal(weights(model), weights(twin))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("options", [{}, dict(seed=3, outputs=("loss",), update="trainer")], ids=["default", "options"])
def test_the_callback_can_be_copied_and_pickled_before_training(copied, options, tmp_path):
    original = LocalPlugCallback("mezo", eps=1e-2, **options)
    one, other = tiny_llama(), tiny_llama()
    fit(one, tmp_path, copied(original), optim="sgd")
    fit(other, tmp_path, original, optim="sgd")
    assert original.engine is not None and torch.equal(weights(one), weights(other))


def test_a_callback_that_the_trainer_restores_from_a_checkpoint_is_the_same(tmp_path):
    """restore_callback_states_from_checkpoint=True drops the callback that was given, and makes one from the checkpoint."""
    changes = dict(max_steps=6, save_strategy="steps", save_steps=3, restore_callback_states_from_checkpoint=True)
    given = dict(eps=1e-2, num_directions=2, seed=5, outputs=("logits",), max_bad_steps=7)
    whole, resumed = tiny_llama(), tiny_llama()
    loss = dict(trainer=FromLogits)
    fit(whole, tmp_path / "a", LocalPlugCallback("mezo", **given), **loss, **changes)
    dropped = LocalPlugCallback("mezo", **given)
    trainer = fit(resumed, tmp_path / "b", dropped, resume=str(tmp_path / "a/checkpoint-3"), **loss, **changes)
    (restored,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, LocalPlugCallback)]
    assert dropped.engine is None and restored.engine.run.num_forwards == 3 * 4
    assert restored.state()["args"] == dropped.state()["args"]
    assert torch.equal(weights(whole), weights(resumed))


class FromLogits(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(**inputs).logits.float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())


# ---- several models in the life of one Trainer ----------------------------------------------------------------------------


def test_model_init_makes_the_model_that_is_trained(tmp_path):
    made, callback = [], LocalPlugCallback("mezo")

    def model_init():
        made.append(tiny_llama())
        return made[-1]

    trainer = Trainer(None, arguments(tmp_path), train_dataset=Tokens(), callbacks=[callback], model_init=model_init)
    trainer.train()
    plain = tiny_llama()
    fit(plain, tmp_path, LocalPlugCallback("mezo"))
    assert trainer.model is made[-1] and callback.engine.run.model is made[-1]
    assert torch.equal(weights(made[-1]), weights(plain))


def test_hyperparameter_search_trains_in_every_trial(tmp_path):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    callback, trained = LocalPlugCallback("mezo"), []

    class Notes(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            trained.append([args.learning_rate, weights(model), model])

        def on_train_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            trained[-1] += [weights(model), callback.engine.run.num_forwards, len(optimizer.state)]

    rates = [1e-4, 1e-3, 1e-2]
    trainer = Trainer(
        None, arguments(tmp_path, eval_strategy="steps", eval_steps=4), train_dataset=Tokens(), eval_dataset=Tokens(8, seed=2),
        callbacks=[callback, Notes()], model_init=lambda trial: tiny_llama(),
    )  # fmt: skip
    best = trainer.hyperparameter_search(
        lambda trial: dict(learning_rate=trial.suggest_categorical("learning_rate", rates)),
        backend="optuna", n_trials=3, direction="minimize", sampler=optuna.samplers.GridSampler({"learning_rate": rates}),
    )  # fmt: skip
    assert sorted(rate for rate, *_ in trained) == rates
    assert best.hyperparameters["learning_rate"] in rates and math.isfinite(best.objective)
    start = weights(tiny_llama())
    moved = {}
    for rate, before, model, after, forwards, state in trained:
        assert torch.equal(before, start)  # model_init: every trial from the same weights
        assert forwards == 8 and state == 0
        assert not model._forward_hooks and not model._forward_pre_hooks
        moved[rate] = float((after - before).norm())
        alone = tiny_llama()
        fit(alone, tmp_path, LocalPlugCallback("mezo"), learning_rate=rate)
        assert torch.equal(after, weights(alone))  # a callback that was used before leaves no trace
    assert 0 < moved[1e-4] < moved[1e-3] < moved[1e-2]


def test_auto_find_batch_size_starts_again_with_fewer_rows(tmp_path):
    sizes, callback = [], LocalPlugCallback("mezo")

    def run_out(module, args, kwargs):
        sizes.append(len(kwargs["input_ids"]))
        if sizes[-1] > 3 and len(sizes) > 2:  # in the second of the two evaluations, or later
            raise RuntimeError("CUDA out of memory.")

    model, small = tiny_llama(), tiny_llama()
    model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    trainer = fit(model, tmp_path, callback, auto_find_batch_size=True, per_device_train_batch_size=4)
    assert sizes[:3] == [4, 4, 4] and set(sizes[3:]) == {3}  # accelerate tries nine tenths, rounded down
    assert callback.engine.run.num_forwards == 8 == len(sizes) - 3
    assert not trainer.optimizer.state and all(p.grad is None for p in model.parameters())
    assert not torch.equal(weights(model), weights(small))


# ---- switches, each against what it should do -------------------------------------------------------------------------------


def test_learning_rates_by_group_and_a_group_that_is_left_alone(tmp_path):
    def optimizer(model, head, body):
        named = dict(model.named_parameters())
        last = [p for n, p in named.items() if "lm_head" in n]
        rest = [p for n, p in named.items() if "lm_head" not in n]
        return torch.optim.SGD([dict(params=last, lr=head), dict(params=rest, lr=body)])

    def head_and_body(model):
        one = {n: p.detach() - dict(tiny_llama().named_parameters())[n].detach() for n, p in model.named_parameters()}
        return one.pop("lm_head.weight"), torch.cat([d.flatten() for d in one.values()])

    moved = {}
    for head, body in ((1e-2, 1e-2), (1e-2, 0.0), (1e-2, 1e-3)):
        model = tiny_llama()
        fit(model, tmp_path, LocalPlugCallback("mezo"), trainer_options=dict(optimizers=(optimizer(model, head, body), None)),
            max_steps=1)  # fmt: skip
        moved[body] = head_and_body(model)
    assert moved[1e-2][0].any() and moved[1e-2][1].any()
    assert torch.equal(moved[0.0][0], moved[1e-2][0]) and not moved[0.0][1].any()
    assert torch.equal(moved[1e-3][0], moved[1e-2][0])
    torch.testing.assert_close(moved[1e-3][1], moved[1e-2][1] / 10, atol=1e-8, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")  # the older name, still accepted
@pytest.mark.parametrize("switch", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing_changes_no_bit(switch, use_reentrant, tmp_path):
    model, plain = tiny_llama(attention_dropout=0.1), tiny_llama(attention_dropout=0.1)
    seen = []
    model.model.layers[0].register_forward_hook(lambda m, *_: seen.append(m.gradient_checkpointing))
    changes = {switch: True, f"{switch}_kwargs": dict(use_reentrant=use_reentrant)}
    fit(model, tmp_path, LocalPlugCallback("mezo"), **changes)
    fit(plain, tmp_path, LocalPlugCallback("mezo"))
    assert seen == [True] * 8
    assert torch.equal(weights(model), weights(plain))


def test_reduce_lr_on_plateau_changes_the_step(tmp_path):
    steps = []

    class Notes(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            steps.append([weights(model), optimizer.param_groups[0]["lr"]])

    model = tiny_llama()
    trainer = fit(
        model, tmp_path, LocalPlugCallback("mezo"), also=[Notes()], max_steps=8, lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs=dict(patience=0, threshold=0.9, factor=0.1), eval_strategy="steps", eval_steps=2,
        trainer_options=dict(eval_dataset=Tokens(8, seed=2)),
    )  # fmt: skip
    rates = [rate for _, rate in steps]
    # of the four evaluations the second and third find no improvement by a factor of ten
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2 + [1e-5] * 2)
    assert logged(trainer, "eval_loss")
    after = [theta for theta, _ in steps[1:]] + [weights(model)]
    size = math.sqrt(weights(model).numel())  # |z|, within a per cent or so
    for (before, rate), now, g in zip(steps, after, logged(trainer, "grad_norm"), strict=True):
        assert float((now - before).norm()) == pytest.approx(rate * g * size, rel=0.03)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop"])
def test_the_trainers_optimizer_steps_as_it_would_on_the_written_out_gradient(optim, tmp_path):
    """Two steps of the optimizer alone on a copy, with .grad = g z, which an SGD step shows."""
    model, by_hand = tiny_llama(), tiny_llama()
    gradients = []

    class Notes(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            gradients.append([p.grad.clone() for p in model.parameters()])

    trainer = fit(
        model, tmp_path, LocalPlugCallback("mezo", update="trainer"), also=[Notes()], optim=optim, max_steps=2,
        weight_decay=0.1,
    )  # fmt: skip
    assert trainer.optimizer.state or optim == "sgd"
    assert all(p.grad is None for p in model.parameters())
    in_place = tiny_llama()
    moved, _ = oracle.change(
        in_place,
        lambda: fit(in_place, tmp_path, LocalPlugCallback("mezo"), optim="sgd", max_steps=1, learning_rate=oracle.LR),
    )
    for shown, (name, _) in zip(gradients[0], by_hand.named_parameters(), strict=True):
        torch.testing.assert_close(shown, -moved[name] / oracle.LR, atol=1e-7, rtol=1e-4)
    alone = Trainer(by_hand, trainer.args, train_dataset=Tokens()).create_optimizer()
    for gradient in gradients:
        for p, g in zip(by_hand.parameters(), gradient, strict=True):
            p.grad = g
        alone.step()
    assert torch.equal(weights(model), weights(by_hand))


@pytest.mark.parametrize(
    "changes", [dict(dataloader_num_workers=1), dict(dataloader_num_workers=1, dataloader_prefetch_factor=4)]
)
def test_data_from_worker_processes_is_the_same_training(changes, tmp_path):
    model, plain = tiny_llama(), tiny_llama()
    fit(model, tmp_path, LocalPlugCallback("mezo"), **changes)
    fit(plain, tmp_path, LocalPlugCallback("mezo"))
    assert torch.equal(weights(model), weights(plain))


@pytest.mark.parametrize("filtered", [True, False])
def test_a_loss_that_is_not_a_number_is_left_out_and_filtered_from_the_log_if_the_trainer_filters(filtered, tmp_path):
    model, calls = tiny_llama(), []

    def breaks(module, args, output):
        calls.append(1)
        return output * float("nan") if len(calls) in (5, 6) else output  # the third step's two evaluations

    model.lm_head.register_forward_hook(breaks)
    kept = []

    class Notes(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            kept.append(weights(model))

    callback = LocalPlugCallback("mezo")
    trainer = fit(model, tmp_path, callback, also=[Notes()], logging_nan_inf_filter=filtered)
    losses = logged(trainer, "loss")
    assert [math.isfinite(loss) for loss in losses] == [True, True, filtered, filtered]  # its sum stays nan otherwise
    assert math.isnan(logged(trainer, "grad_norm")[2])
    assert callback.engine.run.num_dropped == 1
    assert torch.equal(kept[2], kept[1]) and not torch.equal(kept[3], kept[2])
    assert weights(model).isfinite().all()


def test_neftune_adds_the_same_noise_in_both_evaluations(tmp_path):
    """Against backpropagation, which draws the same noise from the same random state."""

    def train(model, callbacks):
        args = arguments(
            tmp_path,
            max_steps=1,
            learning_rate=oracle.LR,
            optim="sgd",
            neftune_noise_alpha=1.0,
            per_device_train_batch_size=8,
        )
        trainer = Trainer(model, args, train_dataset=Tokens(8), callbacks=callbacks)
        return lambda: trainer.train()

    def model_of_the_test():
        return tiny_llama(initializer_range=0.2)

    model, twin = model_of_the_test(), model_of_the_test()
    names = oracle.trained(model)
    by_backprop, _ = oracle.change(twin, train(twin, []))
    gradient = -oracle.flat(by_backprop, names) / oracle.LR
    seed, slope, z = oracle.visible_direction(model, gradient)
    by_mezo, _ = oracle.change(model, train(model, [LocalPlugCallback("mezo", eps=3e-4, seed=seed)]))
    measured, rest = oracle.along(oracle.flat(by_mezo, names), z)
    assert measured == pytest.approx(slope, rel=0.01)
    assert rest < 1e-6
    # and it is noise that matters: without it the slope is another
    quiet = model_of_the_test()
    by_mezo, _ = oracle.change(
        quiet,
        lambda: fit(quiet, tmp_path, LocalPlugCallback("mezo", eps=3e-4, seed=seed), data=Tokens(8), max_steps=1,
                    learning_rate=oracle.LR, per_device_train_batch_size=8),
    )  # fmt: skip
    assert oracle.along(oracle.flat(by_mezo, names), z)[0] != pytest.approx(slope, rel=0.02)
