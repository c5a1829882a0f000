"""localplug.attach in a loop of lightning.fabric, on one device and with two processes."""

import json

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import nn

import localplug
from fabric_workers import STEPS, train
from lightning_problems import WARNINGS, data, module, run_script
from problems import SavedElements, weights

pytestmark = WARNINGS
METHODS = {"mezo": dict(eps=1e-2), "tpsgd": {}}


class Loop:
    """An ordinary Fabric loop over 6 batches; `attach` is all that is not in Fabric's documentation."""

    def __init__(self, fabric=None, method="mezo", where="before", batches=6, accumulate=1, **clip):
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.model = module()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2)
        options = dict(targets=lambda *_: self.labels, **METHODS[method])
        if where == "before":
            self.attached = localplug.attach(self.model.net, method, optimizer, **options)
        self.wrapped, self.optimizer = self.fabric.setup(self.model.net, optimizer)
        if where == "after":
            self.attached = localplug.attach(self.model.net, method, self.optimizer, **options)
        if where == "on the wrapper":
            self.attached = localplug.attach(self.wrapped, method, self.optimizer, **options)
        self.accumulate, self.clip = accumulate, clip
        self.after, self.dtypes = [], set()
        self.model.net[0].register_forward_hook(lambda m, args, output: self.dtypes.add(output.dtype))
        self.run(batches)

    def run(self, batches):
        with self.attached:
            for i, (x, y) in enumerate(self.fabric.setup_dataloaders(data())):
                if i == batches:
                    break
                self.labels = y
                self.fabric.backward(self.loss(i, nn.functional.cross_entropy(self.wrapped(x), y)) / self.accumulate)
                if (i + 1) % self.accumulate:
                    continue
                if self.clip:
                    self.fabric.clip_gradients(self.wrapped, self.optimizer, **self.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.after.append(weights(self.model))

    def loss(self, i, loss):
        return loss

    @property
    def moved(self):
        return weights(self.model) - weights(module())


def plain(method="mezo", accumulate=1, clip=None):
    """The same loop without Fabric."""
    model, now = module(), [None]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with localplug.attach(model.net, method, optimizer, targets=lambda *_: now[0], **METHODS[method]):
        for i, (x, y) in enumerate(data()):
            if i == 6:
                break
            now[0] = y
            (nn.functional.cross_entropy(model.net(x), y) / accumulate).backward()
            if (i + 1) % accumulate:
                continue
            if clip:
                clip(model.parameters())
            optimizer.step()
            optimizer.zero_grad()
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["before", "after", "on the wrapper"])
def test_equals_the_loop_without_fabric(where, method):
    with SavedElements() as saved:
        loop = Loop(method=method, where=where)
    assert torch.equal(weights(loop.model), weights(plain(method)))
    assert saved.total < 6 * 8 * 32 or method == "tpsgd"  # the loss's own: less than one hidden activation a batch
    assert not loop.optimizer.optimizer.state and loop.attached.engine.run.step == 6


DTYPES = {
    "32-true": (torch.float32, torch.float32), "bf16-mixed": (torch.float32, torch.bfloat16),
    "bf16-true": (torch.bfloat16, torch.bfloat16), "16-true": (torch.float16, torch.float16),
    "64-true": (torch.float64, torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["before", "after", "on the wrapper"])
@pytest.mark.parametrize("precision", DTYPES)
def test_precision(precision, where, method):
    loop = Loop(Fabric(accelerator="cpu", devices=1, precision=precision), method, where)
    parameters, activations = DTYPES[precision]
    assert {p.dtype for p in loop.model.parameters()} == {parameters} and loop.dtypes == {activations}
    exact = Loop(method=method)
    # the way that float32 takes, but for rounding
    tolerance = {"32-true": 0, "64-true": 1e-4}.get(precision, 0.1)
    assert (loop.moved - exact.moved).norm() <= tolerance * exact.moved.norm()


def scaled(**options):
    """fp16 autocast with Fabric's own loss scaling, on a CPU."""
    scaler = torch.amp.GradScaler("cpu", **options)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    return scaler, Fabric(accelerator="cpu", devices=1, plugins=[plugin])


@pytest.mark.parametrize("where", ["before", "on the wrapper"])
def test_loss_scaling_cancels_out(where, method="mezo"):
    scaler, fabric = scaled(init_scale=2.0**8, growth_interval=2)
    loop = Loop(fabric, method, where)
    unscaled = Loop(scaled(enabled=False)[1], method, where)
    assert loop.dtypes == {torch.float16} and scaler.get_scale() == 2.0**11
    assert (loop.moved - unscaled.moved).norm() <= 1e-5 * unscaled.moved.norm()


def test_hidden_units_that_cannot_know_the_scale_of_the_loss_are_refused():
    with pytest.raises(localplug.Unsupported, match="does not tell hidden units its scale"):
        Loop(scaled(init_scale=2.0**8)[1], "tpsgd")


def test_a_step_that_is_not_finite_is_skipped(method="mezo"):
    class Infinite(Loop):
        def loss(self, i, loss):
            return loss * (float("inf") if i == 2 else 1.0)

    scaler, fabric = scaled(init_scale=2.0**8)
    loop = Infinite(fabric, method)
    assert torch.equal(loop.after[1], loop.after[2]) and scaler.get_scale() == 2.0**7
    assert not torch.equal(loop.after[2], loop.after[3]) and torch.isfinite(loop.after[-1]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "given, clip",
    [
        ({}, None),
        ({"max_norm": 0.05}, lambda p: torch.nn.utils.clip_grad_norm_(p, 0.05)),
        ({"clip_val": 0.05}, lambda p: torch.nn.utils.clip_grad_value_(p, 0.05)),
    ],
    ids=["", "norm", "value"],
)
def test_accumulation_and_clipping(given, clip, method):
    loop = Loop(method=method, accumulate=2, **given)
    torch.testing.assert_close(weights(loop.model), weights(plain(method, 2, clip)), atol=1e-7, rtol=1e-6)
    if clip:
        assert not torch.equal(weights(loop.model), weights(plain(method, 2)))


@pytest.mark.parametrize("method", METHODS)
def test_what_fabric_saves_resumes_exactly(method, tmp_path):
    """The engine goes into Fabric's state as it is: it has a state_dict."""
    path = tmp_path / "half.ckpt"
    fabric = Fabric(accelerator="cpu", devices=1)
    whole, *_ = train(fabric, method)
    half, *_ = train(fabric, method, steps=3, save=path)
    resumed, _, engine = train(fabric, method, resume=path)
    assert torch.equal(weights(whole), weights(resumed)) and engine.run.step == STEPS
    assert not torch.equal(weights(half), weights(whole))
    assert torch.load(path, weights_only=True)["localplug"] == {"seed": 0, "step": 3, "method": {}}


def test_afterwards_the_model_and_the_optimizer_are_as_they_were():
    loop = Loop()
    loss = nn.functional.cross_entropy(loop.wrapped(torch.ones(2, 16)), torch.tensor([0, 1]))
    loop.fabric.backward(loss)
    assert all(p.grad is not None for p in loop.model.parameters())  # backpropagation again


# ---- two processes --------------------------------------------------------------------------------------------------

CASES = {
    "mezo": dict(method="mezo"), "tpsgd": dict(method="tpsgd"), "clipped": dict(method="mezo", accumulate=2, clip=0.05),
    "resumed": dict(method="mezo"), "different": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """The folder with what all cases left behind."""
    folder = tmp_path_factory.mktemp("workers")
    run_script("fabric_workers.py", folder, 2)
    return folder


def left(folder, name):
    trained = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
    return trained, [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_the_same_weights_to_the_last_bit(name, two_workers):
    (first, second), facts = left(two_workers, name)
    assert torch.equal(first, second) and not torch.equal(first, weights(module()))
    smallest = min(p.numel() for p in module().parameters())
    for worker in facts:  # DistributedDataParallel has a bucket for the smallest parameter alone
        assert worker == dict(buckets=smallest, workers=2, step=STEPS // (2 if name == "clipped" else 1))


@pytest.mark.door("two processes, as one with the whole batch", "Fabric")
@pytest.mark.parametrize("name", [name for name, options in CASES.items() if options])
def test_two_processes_with_half_batches_are_one_with_whole_batches(name, two_workers):
    model, *_ = train(Fabric(accelerator="cpu", devices=1), **CASES[name])
    (trained, _), _ = left(two_workers, name)
    torch.testing.assert_close(trained, weights(model), atol=5e-6, rtol=1e-4)
    assert (weights(model) - weights(module())).abs().max() > 1e-3


def test_different_directions_are_another_estimate(two_workers):
    (different, _), _ = left(two_workers, "different")
    (same, _), _ = left(two_workers, "mezo")
    assert (different - same).abs().max() > 1e-3


def test_a_checkpoint_of_two_processes_resumes_exactly(two_workers):
    (whole, _), _ = left(two_workers, "mezo")
    (resumed, _), _ = left(two_workers, "resumed")
    assert torch.equal(whole, resumed)
