"""Evaluating at perturbed weights: the right weights, whoever reads them, and none of them written."""

import pytest
import torch
from torch import nn

import localplug
from localplug import Directions, Perturbation, Run, tiles
from localplug.checks import trainable


class Shared(nn.Module):
    """A head that reads the embedding's weight without calling the embedding, as tied models do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 8)

    def forward(self, ids):
        return torch.tanh(self.hidden(self.embedding(ids))) @ self.embedding.weight.T


class Big(nn.Module):
    """Layers that are evaluated in tiles once the tile is small."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(101, 6), nn.Linear(6, 101)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)), lambda: torch.randn(4, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(2, 3, 8)),
    "tied by reading": (Shared, lambda: torch.randint(0, 11, (2, 3))),
    "tied by sharing": (Big, lambda: torch.randint(0, 101, (2, 3))),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU()),
        lambda: torch.randn(2, 1, 6, 6),
    ),
    "recurrent": (lambda: nn.LSTM(4, 5, num_layers=2, batch_first=True), lambda: torch.randn(2, 3, 4)),
    "channels last": (
        lambda: nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last),
        lambda: torch.randn(2, 2, 5, 5),
    ),
}


@pytest.mark.parametrize(
    "held, tile, small",
    [(1 << 20, 1 << 21, 1 << 15), (0, 1 << 21, 1 << 15), (0, 64, 1 << 15), (1 << 20, 24, 24)],
    ids=["held", "hooked", "tiled", "tiled with a held bias"],
)
@pytest.mark.parametrize("name", MODELS)
def test_sees_the_perturbed_weights_and_writes_none(name, held, tile, small, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    monkeypatch.setattr(Perturbation, "HELD", held)
    monkeypatch.setattr(Perturbation, "SMALL", small)
    torch.manual_seed(0)
    make, inputs = MODELS[name]
    model, x = make().eval(), inputs()
    run = Run(model, trainable(model), seed=3)
    directions = Directions(run)
    perturbed = Perturbation(run, directions)
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        got = []
        for scale in (0.1, -0.1):
            with perturbed(0, scale):
                got.append(first(model(x)))
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        for scale, seen in zip((0.1, -0.1), got, strict=True):
            for i, (_, p) in enumerate(run.parameters):
                p.copy_(before[i] + scale * directions.values(i, 0))
            torch.testing.assert_close(seen, first(model(x)), atol=1e-6, rtol=1e-5)
            for p, b in zip(model.parameters(), before, strict=True):
                p.copy_(b)
    assert not any(m._forward_pre_hooks or m._forward_hooks or "forward" in m.__dict__ for m in model.modules())
    if name == "tied by reading" and not held:
        assert perturbed.read_outside == {0}


def test_two_hundred_pairs_of_evaluations_leave_no_rounding_trace_in_bfloat16():
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(torch.bfloat16)
    before = [p.detach().clone() for p in model.parameters()]
    method = localplug.method("mezo", eps=1e-2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = localplug.Engine(model, method, optimizer)
    x = torch.randn(4, 5, dtype=torch.bfloat16)
    for _ in range(200):
        engine.evaluate(lambda: model(x).float().square().mean())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_small_parameters_get_the_same_noise_as_by_themselves_whatever_the_blocks(monkeypatch):
    from localplug import directions as room

    model = torch.nn.Sequential(*(torch.nn.Linear(7, 5) for _ in range(6)))
    run = localplug.Run(model, list(model.named_parameters()), seed=4, step=9)
    alone = [localplug.Directions(run).values(i, 1) for i in range(12)]
    for block in (40, 1000):
        monkeypatch.setattr(room._SmallParameters, "BLOCK", block)
        monkeypatch.setattr(room._SmallParameters, "KEPT", 2)
        directions = localplug.Directions(run)
        for direction in (1, 0, 1):
            for index in (11, 0, 5, 3, 8):
                z = directions.add_(
                    torch.zeros_like(model[0].weight if index % 2 == 0 else model[0].bias),
                    index,
                    [localplug.Term(1, 2.0)],
                )
                assert torch.equal(z, 2.0 * alone[index]), (block, direction, index)
        part = directions.add_(torch.zeros(3), 0, [localplug.Term(1, 1.0)], offset=10)
        assert torch.equal(part, alone[0].flatten()[10:13])
        assert sum(len(made) for made in directions._small._made.values()) <= 12


@pytest.mark.parametrize("num_directions, weight_decay", [(1, 0.0), (3, 0.1)])
def test_steps_of_small_parameters_have_the_same_bits_many_at_a_time_and_one_by_one(
    num_directions, weight_decay, monkeypatch
):
    from localplug import directions as room

    found = []
    for small in (room._SmallParameters.SMALL, 0):
        monkeypatch.setattr(room._SmallParameters, "SMALL", small)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Conv2d(1, 2, 1).to(memory_format=torch.channels_last))
        forward = lambda model=model: model[2](model[:2](torch.ones(4, 5))[None, None]).square().mean()  # noqa: E731
        optimizer = torch.optim.SGD(
            [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.01}],
            weight_decay=weight_decay,
        )
        engine = localplug.Engine(model, localplug.method("mezo", num_directions=num_directions), optimizer)
        assert bool(engine.method.directions.small()) == bool(small)
        for _ in range(3):
            engine.step(forward, optimizer)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_converted_after_attaching(dtype):
    """As Fabric's bf16-true does in setup."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with localplug.attach(model, "mezo", optimizer, eps=1e-2) as plug:
        model.to(dtype)
        before = [p.detach().clone() for p in model.parameters()]
        out = model(torch.ones(4, 5, dtype=dtype))
        assert out.dtype == dtype and all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        out.float().square().mean().backward()
        optimizer.step()
        assert plug.engine.run.step == 1 and all(p.dtype == dtype for p in model.parameters())
        assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "backend, directions",
    [("scratch", "gaussian"), ("copy", "gaussian"), ("low-rank", "rank-1"), ("stacked:25", "rank-1")],
)
def test_a_thousand_evaluations_at_learning_rate_zero_leave_the_weights_as_they_were(directions, backend, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 8), nn.LayerNorm(8), nn.Linear(8, 3)).to(dtype)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = localplug.method("mezo", num_directions=50, eps=1e-2, directions=directions, backend=backend)
    engine = localplug.Engine(model, method, optimizer, max_bad_steps=100)
    x, losses = torch.randint(0, 7, (4,)), set()
    for _ in range(10):
        losses.add(float(engine.step(lambda: model(x).float().square().mean(), optimizer)))
    assert engine.run.num_forwards == (40 if backend == "stacked:25" else 1000) and engine.run.num_dropped == 0
    assert len(losses) > 1
    assert all(torch.equal(p, b) and p.dtype == dtype for p, b in zip(model.parameters(), before, strict=True))
