"""Whatever is raised, wherever: under Lightning the weights stay those of the last whole step, and the next fit works."""

import functools
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback, OnExceptionCheckpoint

from lightning_problems import WARNINGS, data, dataset, module, trainer, validated
from problems import weights

pytestmark = [
    *WARNINGS,  # and what OnExceptionCheckpoint brings with it
    pytest.mark.filterwarnings("ignore:`.fit.ckpt_path=None.` was called without a model"),
    pytest.mark.filterwarnings("ignore:.fit.ckpt_path=.last.. is set, but there is no last checkpoint"),
]

ONCE = ["setup", "on_fit_start", "on_train_start", "on_train_end", "teardown"]
OFTEN = [
    "on_train_epoch_start", "on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_zero_grad",
    "on_before_optimizer_step", "on_train_batch_end", "on_validation_start", "on_validation_batch_end",
    "on_validation_end", "on_train_epoch_end",
]  # fmt: skip


class Stop(Exception):
    pass


class Broken(torch.utils.data.Dataset):
    def __init__(self, at=None):
        self.at = at

    def __len__(self):
        return 32

    def __getitem__(self, i):
        if i == self.at:
            raise Stop
        return dataset(32)[i]


def fit(model, folder, method, callbacks=(), at=None, **options):
    fitted = trainer(
        folder, strategy=f"localplug_{method}", max_epochs=2, max_steps=-1, callbacks=list(callbacks), **options
    )
    loader = torch.utils.data.DataLoader(Broken(at), batch_size=8)
    try:
        fitted.fit(model, loader, data(16))
    finally:
        model.fitted = fitted
    return fitted


@functools.cache
def after_each_step(method):
    """The weights at the start, and after each of the 8 steps of the uninterrupted training."""
    model, seen = validated(), []
    seen.append(weights(model))
    model.on_train_batch_end = lambda *_: seen.append(weights(model))
    fit(model, ".", method)
    assert len(seen) == 9
    return seen


def left_behind(model):
    """Modules with hooks or a forward that are not their own."""
    return [
        name
        for name, m in model.named_modules()
        if m._forward_pre_hooks or m._forward_hooks or "forward" in m.__dict__ or {"log", "log_dict"} & set(m.__dict__)
    ]


def check(model, method, folder):
    expected = after_each_step(method)[model.fitted.global_step]
    assert torch.equal(weights(model), expected) and not left_behind(model)
    model.train()  # Lightning leaves it as a validation that was interrupted had it
    again = trainer(folder, strategy=f"localplug_{method}")
    again.fit(model, data(), data(16))
    assert again.global_step == again.strategy.engine.run.step == 6
    assert not torch.equal(weights(model), expected) and not left_behind(model)


@pytest.mark.parametrize("method", ["mezo", "tpsgd"])
@pytest.mark.parametrize("where", [*ONCE, *OFTEN])
def test_an_exception_in_a_callback(where, method, tmp_path):
    model, callback, times = validated(), Callback(), [0]

    def stop(*_, **__):
        times[0] += 1
        if times[0] == (1 if where in ONCE else 2):
            raise Stop

    setattr(callback, where, stop)
    with pytest.raises(Stop):
        fit(model, tmp_path, method, [callback], num_sanity_val_steps=0)
    check(model, method, tmp_path)


@pytest.mark.parametrize("method", ["mezo", "tpsgd"])
def test_an_exception_in_the_data_loader(method, tmp_path):
    model = validated()
    with pytest.raises(Stop):
        fit(model, tmp_path, method, at=20)
    assert model.fitted.global_step == 2
    check(model, method, tmp_path)


def stopping(model, exception, call):
    """A training_step that raises after its forward pass, in the given call of it."""
    step = model.training_step

    def broken(batch, batch_idx):
        loss = step(batch, batch_idx)
        if model.calls == call:
            raise exception
        return loss

    model.training_step = broken


@pytest.mark.parametrize("method, call", [("mezo", 5), ("mezo", 6), ("tpsgd", 3)])
def test_an_exception_in_training_step(method, call, tmp_path):
    model = validated()
    stopping(model, Stop, call)
    with pytest.raises(Stop):
        fit(model, tmp_path, method)
    assert model.fitted.global_step == 2
    check(model, method, tmp_path)


@pytest.mark.parametrize("method, call", [("mezo", 5), ("mezo", 6), ("tpsgd", 3)])
def test_ctrl_c_in_training_step(method, call, tmp_path):
    model = validated()
    stopping(model, KeyboardInterrupt, call)
    saving = OnExceptionCheckpoint(tmp_path)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):  # Lightning's answer to Ctrl-C
            fit(model, tmp_path, method, [saving], enable_checkpointing=True)
    finally:
        signal.signal(signal.SIGINT, handler)  # it ignores the signal from then on
    assert model.fitted.global_step == 2
    saved = torch.load(saving.ckpt_path, weights_only=True)["state_dict"]
    assert torch.equal(torch.cat([v.flatten() for v in saved.values()]), after_each_step(method)[2])
    check(model, method, tmp_path)


def test_the_perturbation_was_there_when_it_was_interrupted(tmp_path):
    """Else the tests above could not fail."""
    model, inside = module(), []
    model.net[3].register_forward_hook(lambda m, *_: inside.append(m.weight.detach().clone()))
    trainer(tmp_path, strategy="localplug_mezo", max_steps=1).fit(model, data())
    assert len(inside) == 2 and not torch.equal(inside[0], inside[1])
