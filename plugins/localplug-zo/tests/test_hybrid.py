"""Zeroth order and backpropagation in one step: each part does what it says, where it says, and says so."""

import copy
import logging

import pytest
import torch
from torch import nn

import localplug


class Layered(nn.Module):
    """Reads rows of numbers (B, T) and keeps what needed a gradient when."""

    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Linear(1, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 1)
        self.saw = []

    def forward(self, x, labels=None):
        h = self.embed(x[..., None])
        for layer in self.layers:
            h = h + layer(h).tanh()
            self.saw.append(h.requires_grad)
        return {"loss": (self.head(h).squeeze(-1) - x).square().mean()}


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return Layered()


def batch(tokens, seed=1):
    return torch.randn(8, tokens, generator=torch.Generator().manual_seed(seed))


def true_gradients(model, x):
    twin = copy.deepcopy(model)
    twin(x)["loss"].backward()
    return {n: p.grad for n, p in twin.named_parameters()}


def one_step(model, x, method, lr=0.1, weight_decay=0.0, clip=None, scale=1.0, **options):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=weight_decay)
    with localplug.attach(model, method, optimizer, **options) as plug:
        for part in x if isinstance(x, list) else [x]:
            (model(part)["loss"] * scale).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    return {n: p.detach() - before[n] for n, p in model.named_parameters()}, plug


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_elastic_backpropagates_the_last_layers_and_builds_no_graph_before(model, layers):
    gradients = true_gradients(model, batch(5))
    moved, plug = one_step(model, batch(5), "elastic-zo", layers=layers)
    last = [f"layers.{i}." for i in range(4 - layers, 4)]
    for name, change in moved.items():
        if name.startswith("head") or any(name.startswith(p) for p in last):
            torch.testing.assert_close(change, -0.1 * gradients[name], atol=1e-7, rtol=1e-4)
        else:
            assert change.any() and not torch.allclose(change, -0.1 * gradients[name], rtol=0.1)
    assert model.saw == [False] * 8 + [i >= 4 - layers for i in range(4)]
    assert plug.engine.run.num_forwards == 3


def test_elastic_estimates_the_rest_as_mezo_alone_would(model):
    twin = copy.deepcopy(model)
    moved, _ = one_step(model, batch(5), "elastic-zo", layers=1, num_directions=2)
    early = [n for n in moved if n.startswith(("embed", *(f"layers.{i}." for i in range(3))))]
    alone, _ = one_step(twin, batch(5), "mezo", num_directions=2, parameters=early)
    assert all(torch.equal(moved[n], alone[n]) for n in early)


@pytest.mark.parametrize("alpha", [0.2, 0.7])
def test_addax_weighs_long_batches_by_zeroth_order_and_short_ones_by_backpropagation(model, alpha):
    options = {"alpha": alpha, "max_tokens": 8, "num_directions": 2}
    long, short = batch(9), batch(8, seed=2)
    gradients = true_gradients(model, short)
    twins = [copy.deepcopy(model) for _ in range(3)]
    by_mezo, _ = one_step(twins[0], long, "mezo", num_directions=2)
    of_long, plug = one_step(twins[1], long, "addax", **options)
    assert plug.engine.run.num_forwards == 4 and not any(twins[1].saw)
    of_short, plug = one_step(twins[2], short, "addax", **options)
    assert plug.engine.run.num_forwards == 1
    both, _ = one_step(model, [long, short], "addax", **options)
    for name in gradients:
        torch.testing.assert_close(of_long[name], alpha * by_mezo[name], atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(of_short[name], -0.1 * (1 - alpha) * gradients[name], atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(both[name], of_long[name] + of_short[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method, options", [("elastic-zo", {}), ("addax", {"max_tokens": 8, "alpha": 0.5})])
def test_scaling_and_clipping_by_the_trainer_reach_both_parts(model, method, options):
    x = [batch(9), batch(8)]
    twins = [copy.deepcopy(model) for _ in range(2)]
    whole, plug = one_step(model, x, method, **options)
    halved, _ = one_step(twins[0], x, method, scale=0.5, **options)
    norm = plug.engine.gradient_norm
    clipped, _ = one_step(twins[1], x, method, clip=norm / 4, **options)
    for name in whole:
        torch.testing.assert_close(halved[name], whole[name] / 2, atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(clipped[name], whole[name] / 4, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("method, options", [("elastic-zo", {}), ("addax", {"max_tokens": 8, "alpha": 0.5})])
def test_weights_decay_once_in_a_step(model, method, options):
    x, twin = [batch(9), batch(8)], copy.deepcopy(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    plain, _ = one_step(twin, x, method, **options)
    decayed, _ = one_step(model, x, method, weight_decay=0.5, **options)
    for name in plain:
        torch.testing.assert_close(decayed[name] - plain[name], -0.05 * before[name], atol=2e-6, rtol=1e-2)


@pytest.mark.parametrize("method", ["elastic-zo", "addax"])
def test_it_is_said_aloud_what_is_backpropagated(model, method, caplog):
    with caplog.at_level(logging.INFO, "localplug"):
        one_step(model, batch(9), method)
    (warning,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "backpropagation through " in warning.getMessage()
    (start,) = [r.getMessage() for r in caplog.records if "forward pass" in r.getMessage()]
    assert "no backward pass" not in start and "a backward pass through " in start and "BACKPROPAGATION" in start


def test_a_fault_in_the_differentiated_evaluation_leaves_the_model_as_it_was(model):
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with localplug.attach(model, "elastic-zo", optimizer):
        broken = model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0 if torch.is_grad_enabled() else None)
        with pytest.raises(ZeroDivisionError):
            model(batch(5))
        broken.remove()
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        assert torch.is_grad_enabled()
        model(batch(5))["loss"].backward()
        optimizer.step()
    assert not torch.equal(before[0], model.embed.weight)


def test_what_cannot_be_mixed_is_refused(model, tmp_path):
    for wrong in ({"layers": -1}, {"layers": 1.5}, {"eps": 0}):
        with pytest.raises(ValueError, match="must be"):
            localplug.method("elastic-zo", **wrong)
    for wrong in ({"alpha": 0.0}, {"alpha": 1}, {"max_tokens": -1}):
        with pytest.raises(ValueError, match="must be"):
            localplug.method("addax", **wrong)
    with pytest.raises(localplug.Unsupported, match="nothing to zeroth order"):
        localplug.Engine(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), localplug.method("elastic-zo", layers=2))
    with pytest.raises(localplug.Unsupported, match="not in the log"):
        localplug.Engine(model, localplug.method("addax"), log=tmp_path / "a.lplog")
    engine = localplug.Engine(model, localplug.method("addax"), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="length of a batch"):
        engine.evaluate(lambda: model(batch(3))["loss"])
