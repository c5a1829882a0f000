"""Bayesian optimization with the kernel of a network, and ROOT, each beside its plain alternative.

    python tests/benchmarks/blackbox_surrogates.py [--seeds 3] [--quick]

online: 40 evaluations, 10 of them Sobol's and then 3 at a time, by expected improvement with botorch's Matern kernel and with
that of an infinitely wide network, and 40 Sobol points. On Branin (2 numbers, least 0.398), Ackley (10 numbers in [-4, 6],
least 0 at 0, which is not the middle) and a random network of one hidden layer of 64 tanh (40 numbers in [-1, 1]). Recorded
is the best value of each run.

offline: 300 points of Branin, the worst 60 % of 500 random ones; the best true value among 16 proposals, of ROOT with five
weights of guidance, and of descent on the mean of a Gaussian process. No weight was chosen: all are there, since a user who
cannot evaluate could not choose either. `first` is the proposal that the searcher itself puts first.
"""

import argparse
import math
import pathlib
import sys

import torch

from localplug_blackbox import ROOT, BayesianSearch, Box, MeanDescent, SobolSearch, minimize

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

GUIDANCE = (-1.5, -0.5, 0.0, 0.5, 1.5)


def branin(X):
    x, y = X.unbind(1)
    return (y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * x.cos() + 10


def ackley(X):
    valley = -20 * torch.exp(-0.2 * X.square().mean(1).sqrt())
    return valley - torch.exp((2 * math.pi * X).cos().mean(1)) + 20 + math.e


def network(X):
    generator = torch.Generator().manual_seed(7)
    first = torch.randn(40, 64, generator=generator, dtype=torch.float64)
    second = torch.randn(64, generator=generator, dtype=torch.float64) / 8
    return (X @ first / 40**0.5 * 3).tanh() @ second


PROBLEMS = {
    "branin": (branin, Box([-5.0, 0.0], [10.0, 15.0])),
    "ackley, 10 numbers": (ackley, Box([-4.0] * 10, [6.0] * 10)),
    "network, 40 numbers": (network, Box([-1.0] * 40, [1.0] * 40)),
}
SEARCHERS = {
    "matern": lambda box, seed: BayesianSearch(box, seed=seed),
    "infinite-width": lambda box, seed: BayesianSearch(box, kernel="infinite-width", seed=seed),
    "sobol": lambda box, seed: SobolSearch(box, seed=seed),
}


def offline(seed):
    box = PROBLEMS["branin"][1]
    X = box.from_unit(torch.rand(500, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    y = branin(X)
    X, y = X[y.argsort(descending=True)[:300]], y.sort(descending=True).values[:300]
    found = {"best known": {"value": float(y.min())}}
    searchers = {f"root, guidance {w}": ROOT(box, guidance=w, seed=seed) for w in GUIDANCE}
    for name, searcher in {"mean-descent": MeanDescent(box), **searchers}.items():
        searcher.fit(X, y)
        values = branin(searcher.ask(16))
        found[name] = {"value": float(values.min()), "first": float(values[0])}
    return found


def mean(values):
    values = list(values)
    return round(sum(values) / len(values), 3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 evaluations of Branin, not recorded")
    options = parser.parse_args()
    num = 16 if options.quick else 40
    result = earlier("blackbox_surrogates", {"evaluations": num, "batch": 3}, quick=options.quick)
    keep = (lambda: None) if options.quick else lambda: save("blackbox_surrogates", result)
    online, past = result.setdefault("online", {}), result.setdefault("offline", {})
    for seed in range(1 if options.quick else options.seeds):
        if str(seed) not in past:
            past[str(seed)] = offline(seed)
            keep()
        for problem in list(PROBLEMS)[: 1 if options.quick else None]:
            objective, box = PROBLEMS[problem]
            for name, make in SEARCHERS.items():
                runs = online.setdefault(problem, {}).setdefault(name, {})
                if str(seed) not in runs:
                    runs[str(seed)] = minimize(objective, make(box, seed), num, batch=3).value
                    keep()
    result["online, mean"] = {
        problem: {name: mean(runs.values()) for name, runs in found.items()} for problem, found in online.items()
    }
    result["offline, mean"] = {
        name: {key: mean(past[seed][name][key] for seed in past) for key in past["0"][name]} for name in past["0"]
    }
    keep()
    if options.quick:
        print(result)


if __name__ == "__main__":
    main()
