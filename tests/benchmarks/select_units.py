"""Do forward-only scores say which units are worth training? Rank correlations with real gains, and the combination of RoBoT.

    python tests/benchmarks/select_units.py [--data ../shared/data/mnist] [--quick]

A residual MLP (an input layer, six blocks of width 64, a head) learns MNIST at 8 x 8 pixels; then its task changes in one of
five ways: images turned, inverted or noisy, labels permuted or merged to odd and even. Its units, and all pairs of them, are
trained alone: 100 steps of Adam, the better of two rates by the loss on 1,000 validation images, whose decrease is the gain.
Two networks of each. The scores see 64 training images of the new task and no gradient.

correlation: Spearman's, between a score and the gains of the 8 single units, mean over the ten cases. chosen: what the choice
of a pair gains on 1,000 test images, as a share of what the best of the 28 pairs gains there; its rank among them by
validation. Cases that are in results/select_units.json already are not made again.
"""

import argparse
import itertools
import pathlib
import random
import statistics
import sys
import time

import torch
from torch import nn

from localplug_select import SCORES, Scoring, Trial, combine
from localplug_select.choosing import candidates

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mnist
from record import earlier, save
from select_masks import images, turned

NAME = "select_units"
NETWORKS, BUDGET, SEEDS = 2, 6, 20
RATES = (1e-3, 1e-2)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 64), *(Block(64) for _ in range(6)), nn.Linear(64, 10))


def noisy(part):
    x, y = part
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x))), y


TASKS = {
    "turned": turned,
    "inverted": lambda part: (-part[0], part[1]),
    "noisy": noisy,
    "labels permuted": lambda part: (part[0], (part[1] + 3) % 10),
    "labels merged": lambda part: (part[0], part[1] % 2),
}


def fit(net, part, trained, rate, steps, seed=0):
    optimizer, generator = torch.optim.Adam(trained, lr=rate), torch.Generator().manual_seed(seed)
    x, y = part
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
        for p, g in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            p.grad = g
        optimizer.step()


@torch.no_grad()
def loss_on(net, part):
    return float(nn.functional.cross_entropy(net(part[0]), part[1]))


def gains(net, parts, units, steps):
    """(on the validation images, on the test images) of training these units alone."""
    trained = [p for unit in units for p in unit.parameters]
    kept = [p.detach().clone() for p in trained]
    before, found = (loss_on(net, parts["chosen_on"]), loss_on(net, parts["test"])), []
    for rate in RATES:
        fit(net, parts["train"], trained, rate, steps)
        found.append((before[0] - loss_on(net, parts["chosen_on"]), before[1] - loss_on(net, parts["test"])))
        with torch.no_grad():
            for p, w in zip(trained, kept, strict=True):
                p.copy_(w)
    return [round(gain, 5) for gain in max(found)]


def case(net, parts, steps):
    """Scores and gains of the units of one network on one changed task."""
    units = candidates(net, kind="layer", units=[str(i) for i in range(8)])
    x, y = (t[:64] for t in parts["train"])
    scoring = Scoring(net, units, lambda: nn.functional.cross_entropy(net(x), y))
    scores = {name: [float(f"{v:.6g}") for v in score(scoring)] for name, score in SCORES.items()}
    forwards = scoring.num_forwards
    batch, turn = [t[:3200].split(64) for t in parts["train"]], itertools.count()

    def loss():
        k = next(turn) // 2 % 50  # both evaluations of a step see one batch
        return nn.functional.cross_entropy(net(batch[0][k]), batch[1][k])

    trial = Trial(net, loss, lr=3e-3, steps=min(steps, 50), validation=lambda: nn.functional.cross_entropy(net(x), y))
    scores["trial of 50 steps of mezo"] = [round(trial(scoring.names(unit)), 6) for unit in units]
    sets = [*itertools.combinations(range(8), 1), *itertools.combinations(range(8), 2)]
    return {
        "units": [unit.name for unit in units],
        "scores": scores,
        "forwards_of_all_scores": forwards,
        "gains": {",".join(map(str, some)): gains(net, parts, [units[k] for k in some], steps) for some in sets},
    }


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    for rank, k in enumerate(order):
        found[k] = rank
    return found


def spearman(a, b):
    return statistics.correlation(ranks(a), ranks(b))


def summary(cases):
    """Correlations by score, and what each way of choosing a pair reaches."""
    pairs = list(itertools.combinations(range(8), 2))
    names = list(SCORES)
    correlation = {name: [] for name in cases[0]["scores"]}
    chosen = {f"{name} alone": [] for name in names} | {
        "sum of all scores": [],
        f"combined, {BUDGET} observed": [],
        f"random, {BUDGET} observed": [],
    }
    for one in cases:
        single = [one["gains"][str(k)][0] for k in range(8)]
        for name, values in one["scores"].items():
            correlation[name].append(spearman(values, single))
        by_pair = [one["gains"][f"{a},{b}"] for a, b in pairs]
        best, place = max(test for _, test in by_pair), ranks([-gain for gain, _ in by_pair])

        def took(pair, best=best, by_pair=by_pair, place=place):
            return by_pair[pair][1] / best, place[pair] + 1

        normal = []
        for name in names:
            values = one["scores"][name]
            low, high = min(values), max(values)
            normal.append([(values[a] + values[b] - 2 * low) / ((high - low) or 1.0) for a, b in pairs])
            chosen[f"{name} alone"].append(took(max(range(28), key=normal[-1].__getitem__)))
        total = [sum(column) for column in zip(*normal, strict=True)]
        chosen["sum of all scores"].append(took(max(range(28), key=total.__getitem__)))
        for seed in range(SEEDS):
            found = combine(normal, lambda c, by_pair=by_pair: by_pair[c][0], budget=BUDGET, seed=seed)
            chosen[f"combined, {BUDGET} observed"].append(took(found.best))
            drawn = random.Random(seed).sample(range(28), BUDGET)
            chosen[f"random, {BUDGET} observed"].append(took(max(drawn, key=lambda c, by_pair=by_pair: by_pair[c][0])))
    return {
        "correlation": {
            name: {"mean": round(statistics.mean(rs), 3), "lowest": round(min(rs), 3), "highest": round(max(rs), 3)}
            for name, rs in correlation.items()
        },
        "chosen": {
            way: {
                "share_of_the_best_gain": round(statistics.mean(share for share, _ in found), 3),
                "lowest_share": round(min(share for share, _ in found), 3),
                "mean_rank_of_28": round(statistics.mean(rank for _, rank in found), 2),
            }
            for way, found in chosen.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=mnist.DATA)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new case after so long")
    parser.add_argument("--quick", action="store_true", help="few steps, one case, nothing saved")
    options = parser.parse_args()
    steps, end = 5 if options.quick else 100, time.time() + 60 * options.minutes
    result = earlier(NAME, {"steps": steps, "rates": list(RATES), "budget": BUDGET, "probes": 8}, quick=options.quick)
    parts, cases = images(options.data), result.setdefault("cases", {})
    for seed in range(NETWORKS):
        net = None
        for task, change in TASKS.items():
            name = f"{task}, network {seed}"
            if name in cases or time.time() > end or (options.quick and cases):
                continue
            start = time.process_time()
            if net is None:
                net = network(seed)
                fit(net, parts["train"], list(net.parameters()), 1e-3, 10 * steps, seed)
                for p in net.parameters():
                    p.grad = None
            new = {part: change(rows) for part, rows in parts.items()}
            new["test"] = tuple(t[:1000] for t in new["test"])
            cases[name] = case(net, new, steps)
            result.update(summary(list(cases.values())))
            print(name, f"{time.process_time() - start:.1f} s", file=sys.stderr, flush=True)
            if not options.quick:
                save(NAME, result)
    print({k: result[k] for k in ("correlation", "chosen")}, file=sys.stderr)
