"""Experts on parts of a domain: how well they solve Poisson's equation, and their functions trained without backpropagation.

    python tests/benchmarks/experts_poisson.py

u'' = -k^2 sin(kx) on [0, 1], k = 20, 16 random tanh features, float64. Each part has its values at its own two ends (those of
the solution sin(kx)), so that the experts solve apart. errors: relative L2 error at 1,001 points by the number of experts, the
mean over SEEDS of the features. gradient: of the mean squared residual in one bias, by the implicit function theorem and by
finite differences. trained: two experts with 6 features each, whose weights learn to make what is left of the equation small;
relative error before and after STEPS steps of Adam by the implicit gradient (autograd, through one expert at a time), and of
mezo with num_directions=4 (eight evaluations a step). Rates from RATES by the residual itself, which needs no solution.
"""

import pathlib
import sys
import time

import torch
from torch import nn

import localplug
from localplug_experts import HardConstraint, derivative

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

K = 20.0
SEEDS = range(5)
STEPS = 200
RATES = {"implicit gradient": (0.003, 0.01, 0.03), "mezo": (1e-4, 1e-3, 1e-2)}


class Features(nn.Module):
    def __init__(self, num, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(10 * torch.randn(num, 1, generator=g, dtype=torch.float64))
        self.bias = nn.Parameter(5 * torch.randn(num, generator=g, dtype=torch.float64))

    def forward(self, x):
        return torch.tanh(x @ self.weight.T + self.bias)


def layer(experts, basis, points=40):
    edges = torch.linspace(0, 1, experts + 1, dtype=torch.float64)
    inner = torch.linspace(0, 1, points, dtype=torch.float64)
    ends = torch.stack([edges[:-1], edges[1:]], 1)[..., None]

    def rows(basis, x_EPD):
        A = torch.cat([derivative(basis, x_EPD, order=2) / K**2, 10 * basis(ends)], 1)
        b = torch.cat([-torch.sin(K * x_EPD[..., 0]), 10 * torch.sin(K * ends[..., 0])], 1)
        return A, b

    points_EPD = (edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * inner)[..., None]
    return HardConstraint(basis, rows, edges.tolist(), points_EPD, ridge=1e-12)


@torch.no_grad()
def error(made):
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
    u = torch.sin(K * x[:, 0])
    return float((made(x) - u).norm() / u.norm())


def left(made):
    return made.residuals().square().mean()


def trained(way, rate, seed, steps):
    """(relative error, what is left of the equation) after training."""
    made = layer(2, Features(6, seed))
    optimizer = (
        torch.optim.Adam(made.parameters(), lr=rate) if way != "mezo" else torch.optim.SGD(made.parameters(), lr=rate)
    )
    engine = None
    if way == "mezo":
        method = localplug.method("mezo", eps=1e-3, num_directions=4)
        engine = localplug.Engine(made, method, optimizer, seed=seed)
    for _ in range(steps):
        if engine is not None:
            engine.step(lambda: torch.log(left(made)), optimizer)
            continue
        torch.log(left(made)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return error(made), float(left(made))


def gradient():
    made = layer(2, Features(6, 0))
    (found,) = torch.autograd.grad(left(made), made.basis.bias)
    sides = []
    with torch.no_grad():
        for sign in (1, -1):
            made.basis.bias[0] += sign * 1e-5
            sides.append(float(left(made)))
            made.basis.bias[0] -= sign * 1e-5
    return {"implicit": float(found[0]), "finite differences": (sides[0] - sides[1]) / 2e-5}


if __name__ == "__main__":
    torch.set_num_threads(1)
    began = time.process_time()
    errors = {n: sum(error(layer(n, Features(16, s))) for s in SEEDS) / len(SEEDS) for n in (1, 2, 4, 8, 16)}
    print(errors, gradient(), flush=True)
    rows = {}
    for way, steps in (("implicit gradient", STEPS), ("mezo", STEPS)):
        tried = {rate: [trained(way, rate, s, steps) for s in SEEDS] for rate in RATES[way]}
        finite = {r: v for r, v in tried.items() if all(f[1] == f[1] for f in v)}
        rate = min(finite, key=lambda r: sum(f[1] for f in finite[r]))
        rows[way] = {"rate": rate, "error": [f[0] for f in tried[rate]], "residual": [f[1] for f in tried[rate]]}
        print(way, rows[way], flush=True)
    start = [layer(2, Features(6, s)) for s in SEEDS]
    with torch.no_grad():
        rows["before"] = {"error": [error(made) for made in start], "residual": [float(left(made)) for made in start]}
    seconds = round(time.process_time() - began, 1)
    save("experts_poisson", {"errors": errors, "gradient": gradient(), "trained": rows, "cpu_seconds": seconds})
