"""MeZO against its equations, and its strict form against an independent statement of the released code's step."""

import math

import numpy
import pytest
import torch
from torch import nn

import localplug
from localplug import Engine
from localplug_zo.mezo import MeZO
from localplug_zo.strict import StrictMeZO


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


class Named(nn.Module):
    """Parameters under the names that the released code's weight-decay rule looks at, one frozen, two tied."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.layernorm, self.out = nn.Linear(5, 5), nn.LayerNorm(5), nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(torch.tanh(self.layernorm(self.frozen(self.embed(x)))))


def step_of_the_released_code(model, loss, state, lr, eps, weight_decay):
    """One step as research on princeton-nlp/MeZO (large_models, 552cb1b) states it; own code, out of place as there."""
    seed = int(state.randint(1000000000))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def shift(factor):
        torch.manual_seed(seed)
        for _, p in named:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.device, dtype=p.dtype)
            p.data = p.data + factor * z * eps

    with torch.no_grad():
        shift(1)
        plus = loss()
        shift(-2)
        minus = loss()
        g = ((plus - minus) / (2 * eps)).item()
        shift(1)
        torch.manual_seed(seed)
        for n, p in named:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.device, dtype=p.dtype)
            if "bias" not in n and "layer_norm" not in n and "layernorm" not in n:
                p.data = p.data - lr * (g * z + weight_decay * p.data)
            else:
                p.data = p.data - lr * (g * z)
    return g


@pytest.mark.parametrize("make", [network, Named], ids=["network", "tied, frozen and decayed names"])
def test_strict_repeats_the_released_code_bit_for_bit(make):
    model, theirs = make(), make()
    x, y = torch.randn(8, 5), torch.randint(0, 3, (8,))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    engine = Engine(model, MeZO(eps=1e-3, strict="mezo"), optimizer, seed=42)
    state = numpy.random.RandomState(42)
    model.train()
    theirs.eval()
    global_state = torch.get_rng_state()
    for _ in range(30):
        engine.evaluate(lambda: nn.functional.cross_entropy(model(x), y))
        engine.apply(optimizer)
        assert torch.equal(torch.get_rng_state(), global_state)
        g = step_of_the_released_code(
            theirs, lambda: nn.functional.cross_entropy(theirs(x), y), state, lr=1e-2, eps=1e-3, weight_decay=0.1
        )
        torch.set_rng_state(global_state)
        assert engine.gradient_norm == abs(g)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.parameters(), strict=True))
    assert model.training


def test_strict_draws_the_seeds_that_the_released_code_draws():
    model = network()
    method = StrictMeZO(1e-3)
    engine = Engine(model, method, seed=42)
    drawn = []
    for step in (0, 1, 2, 3, 4, 2):  # and back, as after a resume
        engine.run.step = step
        drawn.append(method._next_seed(engine.run))
    assert drawn == [534895718, 199900595, 862061404, 787846414, 996406378, 862061404]


def test_the_projected_gradient_is_the_directional_derivative():
    """g = <gradient, z> + O(eps^2), in double precision."""
    model = network().double()
    x, y = torch.randn(64, 5).double(), torch.randint(0, 3, (64,))
    loss = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    gradient = torch.autograd.grad(loss(), list(model.parameters()))
    method = MeZO(eps=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, method, optimizer)
    for _ in range(20):
        z = [method.directions.values(i, 0) for i in range(len(gradient))]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, z, strict=True))
        engine.evaluate(loss)
        engine.apply(optimizer)
        assert engine.gradient_norm == pytest.approx(abs(slope), rel=1e-4, abs=1e-6)


def test_the_estimate_is_unbiased():
    """E[(1/q) sum g z] = gradient: on a quadratic, two-sided differences have no error of their own."""
    torch.manual_seed(0)
    w, target = nn.Parameter(torch.randn(6)), torch.randn(6)
    holder = nn.Module()
    holder.w = w
    optimizer = torch.optim.SGD([w], lr=0.0)
    engine = Engine(holder, MeZO(eps=1e-2, num_directions=6, update="trainer"), optimizer)
    total, num = torch.zeros(6), 2000
    for _ in range(num):
        engine.evaluate(lambda: (holder.w - target).square().sum())
        engine.apply(optimizer)
        total += w.grad
        w.grad = None
    gradient = 2 * (w.detach() - target)
    error = math.sqrt(7 / 6 / num) * float(gradient.norm())  # E|g z - grad|^2 = (d + 1) |grad|^2
    assert (total / num - gradient).norm() < 4 * error


def test_directions_are_averaged_and_the_slopes_are_what_clipping_sees():
    w = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(w.parameters(), lr=0.1)
    method = MeZO(eps=1e-2, num_directions=3)
    engine = Engine(w, method, optimizer)
    x = torch.randn(5, 4)
    before = w.weight.detach().clone()
    z = [method.directions.values(0, j) for j in range(3)]
    slopes = [float((x @ d.T).mean()) for d in z]
    engine.step(lambda: w(x).mean(), optimizer)
    expected = before - 0.1 * sum(s * d for s, d in zip(slopes, z, strict=True)) / 3
    torch.testing.assert_close(w.weight.detach(), expected, atol=1e-5, rtol=1e-4)
    assert engine.gradient_norm == pytest.approx(math.sqrt(sum(s * s for s in slopes) / 3), rel=1e-3)


def test_wrong_options_are_all_reported_at_once():
    with pytest.raises(ValueError) as refused:
        MeZO(eps=0, num_directions=0, update="adam", strict="paper")
    for word in ("eps must be positive", "num_directions", "update must be", "strict must be"):
        assert word in str(refused.value)
    with pytest.raises(ValueError, match="one direction"):
        MeZO(strict="mezo", num_directions=2)


def test_strict_refuses_what_the_released_code_does_not_do():
    problems = localplug.check(network().to(torch.bfloat16), MeZO(strict="mezo"), clipping=1.0, accumulation=2)
    assert len(problems) == 3
    assert any("float32" in p for p in problems) and any("max_grad_norm=0" in p for p in problems)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stochastic_rounding_keeps_the_mean_of_steps_below_the_rounding_unit(dtype):
    model = nn.Linear(200, 200, bias=False).to(dtype)
    run = localplug.Run(model, [("weight", model.weight)], seed=0)
    directions = localplug.Directions(run)
    start = model.weight.detach().float()
    factor, steps = 2e-6, 400
    for step in range(steps):
        run.step = step
        run.parameters[0][1].data = directions.update_(model.weight.data, 0, [], decay=factor)
    moved = (model.weight.detach().float() - start) / start
    expected = (1 - factor) ** steps - 1
    big = start.abs() > 0.02
    assert float(moved[big].mean()) == pytest.approx(expected, rel=0.15)
    nearest = torch.full((1000,), 0.05, dtype=dtype)
    for _ in range(steps):
        nearest = (nearest.float() * (1 - factor)).to(dtype)
    assert torch.equal(nearest, torch.full((1000,), 0.05, dtype=dtype))  # without it nothing would have moved
