"""Faults at every boundary of a step: whatever strikes, weights are never left perturbed, and the last checkpoint loads."""

import errno
import pathlib
import signal

import pytest
import torch
import transformers
from torch.nn import functional as F

import localplug
from localplug_transformers import LocalPlugCallback
from problems import Tokens, fit, tiny_llama, weights

EVALUATIONS = 4  # two directions
BATCH = Tokens().x[:4]


def strikes(kind):
    """What happens at a boundary."""
    if kind == "exception":
        raise RuntimeError("out of memory")
    signal.raise_signal(signal.SIGINT)  # Ctrl-C, as the interpreter gets it


STRUCK = {"exception": RuntimeError, "ctrl-c": KeyboardInterrupt}


class Strikes:
    """A hook on one place of the model that lets a fault strike when it is reached for the n-th time."""

    def __init__(self, module, kind, number, when):
        self.calls, self.kind, self.number = 0, kind, number
        register = module.register_forward_pre_hook if when == "entering" else module.register_forward_hook
        self.handle = register(self.reached)

    def reached(self, *_):
        self.calls += 1
        if self.calls == self.number:
            strikes(self.kind)


def is_clean(model, before):
    """At once, without anybody saving or detaching first."""
    assert torch.equal(weights(model), before)
    assert torch.is_grad_enabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not any("forward" in vars(m) for m in model.modules())
    return True


@pytest.mark.parametrize("kind", STRUCK)
@pytest.mark.parametrize("when", ["entering", "leaving"])
@pytest.mark.parametrize("number", range(1, EVALUATIONS + 1))
@pytest.mark.parametrize("place", ["embedding", "layer", "head"])
def test_a_fault_in_any_evaluation_of_a_plain_loop(place, number, when, kind):
    model = tiny_llama(vocab_size=40_000 if place == "embedding" else 64)  # a large embedding is evaluated in tiles
    module = {"embedding": model.model.embed_tokens, "layer": model.model.layers[1].mlp.up_proj, "head": model.lm_head}
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with localplug.attach(model, "mezo", optimizer, num_directions=2) as plug:
        fault = Strikes(module[place], kind, number, when)
        with pytest.raises(STRUCK[kind]):
            model(input_ids=BATCH, labels=BATCH)
        assert fault.calls >= number and is_clean(model, before)
        fault.handle.remove()
        model(input_ids=BATCH, labels=BATCH).loss.backward()  # and it goes on
        optimizer.step()
        assert plug.engine.run.step == 1 and not torch.equal(weights(model), before)


@pytest.mark.parametrize("kind", STRUCK)
@pytest.mark.parametrize("number", range(1, EVALUATIONS + 1))
def test_a_fault_in_any_evaluation_of_a_closure(number, kind):
    model = tiny_llama()
    before = weights(model)
    engine = localplug.Engine(model, localplug.method("mezo", num_directions=2))
    Strikes(model.model.layers[0], kind, number, "leaving")
    with pytest.raises(STRUCK[kind]):
        engine.evaluate(lambda: model(input_ids=BATCH, labels=BATCH).loss)
    assert is_clean(model, before)


@pytest.mark.parametrize(
    "where, number",
    [*(("the noise", n) for n in (1, 2, 5, 8)), ("the loss", 0), ("backward", 0), ("the optimizer", 0)],
)
@pytest.mark.parametrize("kind", STRUCK)
def test_a_fault_between_the_evaluations(kind, where, number, monkeypatch):
    model = tiny_llama(vocab_size=5_000)  # a large head beside small layers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = weights(model)
    plug = localplug.attach(model, "mezo", optimizer)
    if where == "the noise":
        theirs, calls = localplug.noise._mixed_, [0]

        def breaks(*args, **kwargs):
            calls[0] += 1
            if calls[0] == number:
                strikes(kind)
            return theirs(*args, **kwargs)

        monkeypatch.setattr(localplug.noise, "_mixed_", breaks)
        monkeypatch.setattr(localplug.noise.kernels, "usable", lambda _: False)  # whose loops make no such call
    with pytest.raises(STRUCK[kind]):
        loss = model(input_ids=BATCH, labels=BATCH).loss
        if where == "the loss":
            strikes(kind)
        loss.register_hook(lambda _: strikes(kind) if where == "backward" else None)
        loss.backward()
        optimizer.register_step_pre_hook(lambda *_: strikes(kind))
        optimizer.step()
    if where != "the optimizer":  # the hook strikes after the update, which is done as a whole
        assert is_clean(model, before)
    plug.close()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_ctrl_c_in_the_middle_of_an_update_takes_effect_after_it(monkeypatch):
    struck, spared = tiny_llama(vocab_size=5_000), tiny_llama(vocab_size=5_000)
    for model in (struck, spared):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = localplug.Engine(model, localplug.method("mezo"), optimizer)
        engine.evaluate(lambda model=model: model(input_ids=BATCH, labels=BATCH).loss)
        if model is spared:
            engine.apply(optimizer)
            continue
        theirs, calls = localplug.noise._mixed_, [0]

        def breaks(*args, theirs=theirs, calls=calls, **kwargs):
            calls[0] += 1
            if calls[0] == 2:
                strikes("ctrl-c")
            return theirs(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(localplug.noise.kernels, "usable", lambda _: False)  # whose loops make no such call
            patch.setattr(localplug.noise, "_mixed_", breaks)
            engine.apply(optimizer)
        assert engine.run.step == 1 and calls[0] > 2
    assert torch.equal(weights(struck), weights(spared))


def test_a_second_ctrl_c_is_not_held_back():
    model = tiny_llama()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    passed = []
    with localplug.attach(model, "mezo", optimizer):
        Strikes(model.model.layers[0], "ctrl-c", 2, "leaving")
        Strikes(model.model.layers[1], "ctrl-c", 2, "leaving")
        model.lm_head.register_forward_hook(lambda *_: passed.append(1))
        with pytest.raises(KeyboardInterrupt):
            model(input_ids=BATCH, labels=BATCH)
        assert len(passed) == 1  # the second evaluation was cut off
        assert torch.equal(torch.cat([v.flatten() for n, v in model.state_dict().items() if "lm_head" not in n]),
                           before[: -model.lm_head.weight.numel()])  # fmt: skip
        assert torch.is_grad_enabled()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


EVENTS = (
    "on_step_begin",
    "on_pre_optimizer_step",
    "on_optimizer_step",
    "on_step_end",
    "on_log",
    "on_save",
    "on_epoch_end",
)
CHANGES = dict(max_steps=6, save_strategy="steps", save_steps=2, lr_scheduler_type="linear", num_train_epochs=2)


def resumes(folder, checkpoint, whole):
    model = tiny_llama()
    fit(model, folder / "resumed", LocalPlugCallback("mezo"), Tokens(16), resume=str(checkpoint), **CHANGES)
    assert torch.equal(weights(model), whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = tiny_llama()
    fit(model, tmp_path_factory.mktemp("whole"), LocalPlugCallback("mezo"), Tokens(16), **CHANGES)
    return weights(model)


class FailsAt(transformers.TrainerCallback):
    def __init__(self, event, kind):
        def fails(args, state, control, **kwargs):
            if state.global_step >= 4:
                strikes(kind)

        setattr(self, event, fails)


@pytest.mark.parametrize("kind", STRUCK)
@pytest.mark.parametrize("event", EVENTS)
def test_a_fault_in_any_callback_of_the_trainer(event, kind, whole, tmp_path):
    model, seen = tiny_llama(), []
    model.register_forward_pre_hook(lambda m, _: seen.append(m.model.embed_tokens.weight.detach().clone()))
    with pytest.raises(STRUCK[kind]):
        fit(model, tmp_path, LocalPlugCallback("mezo"), Tokens(16), also=[FailsAt(event, kind)], **CHANGES)
    assert is_clean(model, weights(model))
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    assert not torch.equal(weights(saved), weights(model))
    resumes(tmp_path, tmp_path / "checkpoint-2", whole)


class Failing(Tokens):
    def __init__(self, kind):
        super().__init__(16)
        self.kind, self.taken = kind, 0

    def __getitem__(self, i):
        self.taken += 1
        if self.taken == 19:
            strikes(self.kind)
        return super().__getitem__(i)


@pytest.mark.parametrize("kind", STRUCK)
def test_a_fault_in_the_data(kind, whole, tmp_path):
    model = tiny_llama()
    with pytest.raises(STRUCK[kind]):
        fit(model, tmp_path, LocalPlugCallback("mezo"), Failing(kind), **CHANGES)
    saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert is_clean(model, weights(saved))
    resumes(tmp_path, tmp_path / "checkpoint-4", whole)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_full_disk_while_saving(file, whole, tmp_path, monkeypatch):
    """The write of one file of the second checkpoint fails half way; the first is still whole."""
    from safetensors import torch as safetensors_torch
    from transformers import modeling_utils

    def full(path):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def failing(theirs, position):
        def save(*args, **kwargs):
            path = args[position] if len(args) > position else kwargs["filename"]
            return full(path) if "checkpoint-4" in str(path) and str(path).endswith(file) else theirs(*args, **kwargs)

        return save

    monkeypatch.setattr(torch, "save", failing(torch.save, 1))
    monkeypatch.setattr(safetensors_torch, "save_file", failing(safetensors_torch.save_file, 1))
    if hasattr(modeling_utils, "safe_save_file"):
        monkeypatch.setattr(modeling_utils, "safe_save_file", failing(modeling_utils.safe_save_file, 1))
    to_json = transformers.TrainerState.save_to_json
    monkeypatch.setattr(
        transformers.TrainerState, "save_to_json", lambda state, path: full(path)
        if "checkpoint-4" in path and file == "trainer_state.json" else to_json(state, path),
    )  # fmt: skip
    model = tiny_llama()
    with pytest.raises(Exception, match="No space left"):
        fit(model, tmp_path, LocalPlugCallback("mezo"), Tokens(16), **CHANGES)
    monkeypatch.undo()
    assert is_clean(model, weights(model)) and (tmp_path / "checkpoint-4").is_dir()
    resumes(tmp_path, tmp_path / "checkpoint-2", whole)


@pytest.mark.parametrize("evaluation", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_probe_that_is_not_finite_drops_the_step_and_is_counted_and_logged(value, evaluation, caplog):
    model = tiny_llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = [0]

    def spoils(module, args, output):
        calls[0] += 1
        return output * value if calls[0] == evaluation else None

    model.model.norm.register_forward_hook(spoils)
    before = weights(model)
    with localplug.attach(model, "mezo", optimizer, num_directions=2) as plug, caplog.at_level("WARNING", "localplug"):
        model(input_ids=BATCH, labels=BATCH).loss.backward()
        optimizer.step()
        assert is_clean(model, before) and plug.engine.run.num_dropped == 1
        assert "its update is left out" in caplog.text and "lower the learning rate" in caplog.text
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=BATCH).logits.flatten(0, 1), BATCH.flatten()).backward()
        optimizer.step()
        assert plug.engine.run.num_dropped == 1 and not torch.equal(weights(model), before)


def test_probes_that_stay_infinite_end_the_trainer(tmp_path):
    model = tiny_llama()
    model.model.norm.register_forward_hook(lambda m, args, output: output * float("nan"))
    before, callback = weights(model), LocalPlugCallback("mezo", max_bad_steps=3)
    with pytest.raises(localplug.EngineError, match="the last 3 steps were not finite"):
        fit(model, tmp_path, callback)
    assert is_clean(model, before) and callback.engine.run.num_dropped == 3
