"""Directional attacks: evaluations until a network's output is where it was wanted, with an attack and without.

    python tests/benchmarks/blackbox_attacks.py [--seeds 10] [--quick]

The problem of a seed: a random network Phi of two tanh layers, R^20 -> 32 -> R^10, drawn from normals divided by the root
of the fan-in; a target t = Phi(x*), x* normal; the objective |Phi(x) - t|^2 from a normal start, in the box [-5, 5]. Recorded:
evaluations of the objective until 1 % and until 0.01 % of its value at the start, at most 4,000 (0.01 %); null where that was
not enough. An attack through the network is a forward and a backward pass, which is counted as 2 evaluations. num_probes and
probe_share were chosen on the seeds 1000 to 1004, recorded as `choice`; cma, zeroth-order (lr and sigma chosen there as
well) and random points are there to compare.
"""

import argparse
import itertools
import pathlib
import statistics
import sys

import torch

from localplug_blackbox import Box, DirectionalAttacks, ZerothOrderSearch, gradient_attack
from localplug_blackbox.cma_es import CMAES
from localplug_blackbox.sobol import SobolSearch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

NUM, LIMIT, LEVELS = 20, 4000, (1e-2, 1e-4)
BOX = Box([-5.0] * NUM, [5.0] * NUM)


class Problem:
    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.first, self.second = normal(NUM, 32) / NUM**0.5, normal(32, 10) / 32**0.5
        self.target = self.network(normal(1, NUM))
        self.start = normal(NUM)
        self.num_attacks = 0

    def network(self, x):
        return (x @ self.first).tanh() @ self.second

    def objective(self, x):
        return (self.network(x) - self.target).square().sum(1)

    def attack(self):
        inner = gradient_attack(self.network, lambda output: 2 * (output - self.target))

        def counted(x, radius):
            self.num_attacks += 1
            return inner(x, radius)

        return counted


def searchers(choice):
    """{name: a function of a problem and a seed}."""
    probes = {key: choice["zeroth-order attack"][key] for key in ("num_probes", "probe_share")}
    poll = dict(covering_radius=0.0, attack=None)
    return {
        "poll alone, n+1": lambda p, s: DirectionalAttacks(BOX, p.start, poll="n+1", seed=s, **poll),
        "poll alone, 2n": lambda p, s: DirectionalAttacks(BOX, p.start, poll="2n", seed=s, **poll),
        "poll, cover and line": lambda p, s: DirectionalAttacks(BOX, p.start, attack=None, seed=s),
        "attack through the network": lambda p, s: DirectionalAttacks(BOX, p.start, attack=p.attack(), seed=s),
        "zeroth-order attack": lambda p, s: DirectionalAttacks(BOX, p.start, seed=s, **probes),
        "zeroth-order descent": lambda p, s: ZerothOrderSearch(BOX, p.start, seed=s, **choice["zeroth-order descent"]),
        "cma": lambda p, s: CMAES(BOX, p.start, sigma=0.5, seed=s),
        "random points": lambda p, s: SobolSearch(BOX, seed=s),
    }


def reached(make, seed, limit):
    """Evaluations until each level; None for not within the limit."""
    problem = Problem(seed)
    searcher = make(problem, seed)
    levels = [level * float(problem.objective(problem.start[None])) for level in LEVELS]
    found = [None] * len(levels)
    while searcher.num_evaluations + 2 * problem.num_attacks < limit and not searcher.finished:
        X = searcher.ask(1)
        searcher.tell(X, problem.objective(X))
        for i, level in enumerate(levels):
            if found[i] is None and searcher.best.value <= level:
                found[i] = searcher.num_evaluations + 2 * problem.num_attacks
        if found[-1] is not None:
            break
    return found


def median(values, limit):
    """None if more than half did not get there."""
    found = statistics.median(limit * 10 if v is None else v for v in values)
    return None if found > limit else found


def chosen(limit):
    """On seeds of their own: by the sum of the evaluations to the second level, the limit where it was not reached."""
    cost = lambda make: sum(reached(make, 1000 + s, limit)[1] or limit for s in range(5))  # noqa: E731
    attacks = {}
    for q, share in itertools.product((1, 5, 10, 20), (0.01, 0.1, 1.0)):
        options = dict(num_probes=q, probe_share=share)
        attacks[q, share] = cost(lambda p, s, o=options: DirectionalAttacks(BOX, p.start, seed=s, **o))
    descents = {
        (lr, sigma): cost(lambda p, s, lr=lr, sigma=sigma: ZerothOrderSearch(BOX, p.start, lr=lr, sigma=sigma, seed=s))
        for lr, sigma in itertools.product((0.03, 0.1, 0.3), (0.01, 0.1))
    }
    q, share = min(attacks, key=attacks.get)
    lr, sigma = min(descents, key=descents.get)
    return {
        "zeroth-order attack": {"num_probes": q, "probe_share": share},
        "zeroth-order descent": {"lr": lr, "sigma": sigma},
        "costs of attacks": {f"num_probes {q}, probe_share {share}": v for (q, share), v in attacks.items()},
        "costs of descents": {f"lr {lr}, sigma {sigma}": v for (lr, sigma), v in descents.items()},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two seeds and 300 evaluations, not recorded")
    options = parser.parse_args()
    seeds, limit = (2, 300) if options.quick else (options.seeds, LIMIT)
    result = earlier("blackbox_attacks", {"limit": limit, "levels": list(LEVELS)}, quick=options.quick)
    keep = (lambda: None) if options.quick else lambda: save("blackbox_attacks", result)
    if "choice" not in result:
        result["choice"] = chosen(limit)
        keep()
    runs = result.setdefault("runs", {})
    for name, make in searchers(result["choice"]).items():
        for seed in range(seeds):
            if str(seed) not in runs.setdefault(name, {}):
                runs[name][str(seed)] = reached(make, seed, limit)
    result["median"] = {
        name: [median([run[i] for run in found.values()], limit) for i in range(len(LEVELS))]
        for name, found in runs.items()
    }
    result["solved"] = {
        name: [sum(run[i] is not None for run in found.values()) for i in range(len(LEVELS))]
        for name, found in runs.items()
    }
    keep()
    if options.quick:
        print(result["median"], result["solved"])


if __name__ == "__main__":
    main()
