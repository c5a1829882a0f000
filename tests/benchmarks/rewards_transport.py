"""Generators trained towards an optimal-transport reward by evaluations alone, against backpropagation and the floor of
sampling.

    python tests/benchmarks/rewards_transport.py [--seeds 0 1 2]

A generator (Linear 2-24, tanh, Linear 24-24, tanh, Linear 24-2; 722 weights) makes 64 points of the plane from 64 points of
noise, new ones in each step; 64 examples are drawn anew from two half moons. mezo raises the reward ot-samples (the
negative exact W2^2, POT's plans), es the same with its own estimate, and `backprop` follows the gradient of the squared
distances under the plan of each step, which POT's reward does not give and which is therefore computed here. Every way has
the same number of evaluations of the reward; backpropagation, whose step counts as three, has a third of the steps. Rates
are chosen on seed 0 by W2^2 between 512 generated points and 512 validation examples; `test` is that on 512 other ones,
looked at once. `floor` is W2^2 between two draws of 512 examples. Seconds are of one thread, for the training alone.

tokens: a table of logits, one row for each of 12 places, is trained by mezo (8 directions) to write a text of 12 of 20
tokens: by ot-tokens, with the weight of places at 0.2 and 1, by the share of right tokens and by exact match, from the same
start, each at the rate that was best for another text. `right` is the share of wanted tokens that are at their place
afterwards, `present` of those that are written anywhere.
"""

import argparse
import math
import pathlib
import sys
import time

import torch
from torch import nn

import localplug
from localplug_rewards import transport
from localplug_rewards.distribution import SampleTransport
from localplug_rewards.tokens import TokenTransport

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

NAME = "rewards_transport"
POINTS, EVALUATIONS, DIRECTIONS, EPS = 64, 4800, 4, 0.02
RATES = {"mezo": [0.01, 0.03, 0.1], "es": [0.003, 0.01, 0.03], "backprop": [0.03, 0.1, 0.3]}
TOKEN_RATES = [5.0, 20.0]


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 2))

    def forward(self, noise, targets):
        samples = self.net(noise)
        return {"loss": samples.sum(), "samples": samples}


def moons(num, generator):
    turn = torch.pi * torch.rand(num, generator=generator)
    upper = torch.rand(num, generator=generator) < 0.5
    x = torch.where(upper, turn.cos(), 1 - turn.cos())
    y = torch.where(upper, turn.sin(), 0.5 - turn.sin())
    return torch.stack([x, y], 1) + 0.05 * torch.randn(num, 2, generator=generator)


def fresh(seed):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return Generator()


@torch.no_grad()
def distance(model, seed):
    """W2^2 between 512 generated points and 512 examples, both drawn by this seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(512, 2, generator=generator)
    return transport.exact(model.net(noise), moons(512, generator))


def trained(way, lr, seed):
    import ot

    model, generator = fresh(seed), torch.Generator().manual_seed(100 + seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if way == "backprop" else 0.0)
    weights = torch.full((POINTS,), 1 / POINTS, dtype=torch.float64).numpy()

    def batches(num):
        for step in range(num):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / num)
            yield {"noise": torch.randn(POINTS, 2, generator=generator), "targets": moons(POINTS, generator)}

    began = time.process_time()
    if way == "backprop":
        for batch in batches(EVALUATIONS // 3):
            cost = torch.cdist(model(**batch)["samples"], batch["targets"]).square()
            if not cost.isfinite().all():
                break
            plan = torch.from_numpy(ot.emd(weights, weights, cost.detach().double().numpy())).float()
            (plan * cost).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        # two evaluations a direction of mezo, one of es, whose mean over them stands in for the centre
        num = DIRECTIONS if way == "mezo" else 2 * DIRECTIONS
        with localplug.attach(
            model, way, optimizer, objective=SampleTransport(), num_directions=num, eps=EPS, seed=seed
        ):
            for batch in batches(EVALUATIONS // (2 * DIRECTIONS)):
                model(**batch)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
    return model, round(time.process_time() - began, 1)


class Table(nn.Module):
    """Logits of 12 places; the first row of a language model's logits is of the second place, and so there are 13."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(13, 20))

    def forward(self, labels):
        return {"loss": self.table.sum(), "logits": self.table.unsqueeze(0)}


def share(outputs, batch):
    return (outputs["logits"][:, :-1].argmax(-1) == batch["labels"][:, 1:]).float().mean()


def exact_match(outputs, batch):
    return (share(outputs, batch) == 1).float()


OBJECTIVES = {
    "ot-tokens": TokenTransport(),
    "ot-tokens, weight 1": TokenTransport(weight=1.0),
    "share of tokens": share,
    "exact match": exact_match,
}


def tokens(name, lr, seed, steps=300):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.tensor([-100]), torch.randint(0, 20, (12,), generator=generator)]).unsqueeze(0)
    model = Table()
    with torch.no_grad():
        model.table.copy_(torch.randn(13, 20, generator=generator))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    before = float(share(model(labels), {"labels": labels}))
    options = {"objective": OBJECTIVES[name], "num_directions": 8, "eps": 1.5, "seed": seed}
    with localplug.attach(model, "mezo", optimizer, **options):
        for _ in range(steps):
            model(labels=labels)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    written, wanted = model(labels)["logits"][0, :-1].argmax(-1), labels[0, 1:]
    return {
        "right before": before,
        "right": float((written == wanted).float().mean()),
        "present": float(torch.isin(wanted, written).float().mean()),
        "ot-tokens": TokenTransport().of_pair(written, wanted),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = {"evaluations": EVALUATIONS, "directions": DIRECTIONS, "eps": EPS, "rates": RATES}
    result = earlier(NAME, setting)
    generator = torch.Generator().manual_seed(5)
    result.setdefault("floor", transport.exact(moons(512, generator), moons(512, generator)))
    result.setdefault("before", distance(fresh(0), 2))
    for way, rates in RATES.items():
        row = result.setdefault(way, {"validation": {}, "seeds": {}})
        for lr in rates:
            if str(lr) not in row["validation"]:
                found = distance(trained(way, lr, 0)[0], 1)
                row["validation"][str(lr)] = found if math.isfinite(found) else None  # it ran away
        row["lr"] = min(
            rates, key=lambda lr: math.inf if row["validation"][str(lr)] is None else row["validation"][str(lr)]
        )
        for seed in arguments.seeds:
            if str(seed) not in row["seeds"]:
                model, seconds = trained(way, row["lr"], seed)
                row["seeds"][str(seed)] = {"test": distance(model, 2), "seconds": seconds}
        print(way, row, flush=True)
        save(NAME, result)
    for name in OBJECTIVES:
        row = result.setdefault("tokens", {}).setdefault(name, {"trials": {}, "seeds": {}})
        for lr in TOKEN_RATES:
            if str(lr) not in row["trials"]:
                row["trials"][str(lr)] = tokens(name, lr, 100)
        row["lr"] = max(TOKEN_RATES, key=lambda lr: row["trials"][str(lr)]["right"])
        for seed in arguments.seeds:
            if str(seed) not in row["seeds"]:
                row["seeds"][str(seed)] = tokens(name, row["lr"], seed)
        print(name, row, flush=True)
        save(NAME, result)
