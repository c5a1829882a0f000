"""Zeroth order on a packed ternary network: its scales and biases alone (mezo), or its codes as well (ternary-signs), on MNIST.

    python tests/benchmarks/ternary_signs.py [--data ../shared/data/mnist] [--steps 3000] [--quick]

An MLP 784-64-64-10, ternary by tequila with one scale a row, is trained for 30 steps of backpropagation (Adam, 64 images each)
and packed. From there each way makes as many steps of 256 images and two forward passes, with a learning rate that falls to 0
in a straight line. The rate of each way (of ternary-signs that of codes, too) is chosen on seed 0 by the loss on the last
10,000 training images, which nothing trains on. Test images are looked at once, at the end of each run. Minutes on one core.
What is done already is in results/ternary_signs.json and is not done again.
"""

import argparse
import math
import pathlib
import sys
import time

import torch
from torch import nn

import localplug
from localplug_ternary import TernaryConfig, freeze_, ternarize_, train_scales_

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mnist import DATA, read
from record import earlier, save

NAME, SEEDS, BATCH, KEPT = "ternary_signs", (0, 1), 256, 10_000
RECOVERY = 30  # steps of backpropagation
WAYS = {
    "scales and biases": ("mezo", [(lr, {"eps": 1e-3}) for lr in (3e-4, 1e-3, 3e-3)]),
    "codes as well": ("ternary-signs", [(lr, {"rate": rate}) for lr in (3e-4, 1e-3) for rate in (0.03, 0.1, 0.3)]),
}


def start(x, y):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    ternarize_(net, TernaryConfig("tequila", None))
    optimizer, order = torch.optim.Adam(net.parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    for _ in range(RECOVERY):
        some = torch.randint(len(x), (64,), generator=order)
        nn.functional.cross_entropy(net(x[some]), y[some]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return train_scales_(freeze_(net))


@torch.no_grad()
def measured(net, x, y):
    logits = torch.cat([net(part) for part in x.split(2000)])
    loss, accuracy = nn.functional.cross_entropy(logits, y), (logits.argmax(-1) == y).float().mean()
    return {"loss": round(float(loss), 4), "accuracy": round(float(accuracy), 4)}


def trained(name, lr, options, seed, steps, x, y):
    """The network after its steps, and how many codes moved; None for one that diverged."""
    net = start(x, y)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr)
    engine = localplug.Engine(net, localplug.method(name, **options), optimizer, seed=seed)
    order, moved = torch.Generator().manual_seed(1000 + seed), 0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        some = torch.randint(len(x), (BATCH,), generator=order)
        try:
            engine.step(lambda some=some: nn.functional.cross_entropy(net(x[some]), y[some]), optimizer)
        except localplug.EngineError:
            return None, moved
        moved += getattr(engine.method, "num_moved", 0)
    engine.close()
    return net, moved


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=DATA)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--quick", action="store_true", help="five steps: shows that it works, and writes nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    steps = 5 if given.quick else given.steps
    x, y = read("train", given.data)
    test = read("t10k", given.data)
    x, y, chosen_on = x[:-KEPT], y[:-KEPT], (x[-KEPT:], y[-KEPT:])
    setting = {"steps": steps, "batch": BATCH, "recovery": RECOVERY}
    result = earlier(NAME, setting, quick=given.quick)

    def keep(what, found):
        print(f"{what}: {found}", file=sys.stderr, flush=True)
        if not given.quick:
            save(NAME, result)

    if "before" not in result:
        result["before"] = measured(start(x, y), *test)
        keep("before", result["before"])
    for way, (name, tried) in WAYS.items():
        found = result.setdefault(way, {"trials": [], "runs": []})
        for lr, options in tried[: 1 if given.quick else None]:
            if [lr, options] in [[trial["lr"], trial["options"]] for trial in found["trials"]]:
                continue
            net, moved = trained(name, lr, options, SEEDS[0], steps, x, y)
            loss = None if net is None else measured(net, *chosen_on)["loss"]
            found["trials"].append({"lr": lr, "options": options, "chosen_on": loss, "codes moved": moved})
            keep(way, found["trials"][-1])
        best = min(found["trials"], key=lambda trial: math.inf if trial["chosen_on"] is None else trial["chosen_on"])
        for seed in SEEDS:
            if seed in [run["seed"] for run in found["runs"]]:
                continue
            began = time.perf_counter()
            net, moved = trained(name, best["lr"], best["options"], seed, steps, x, y)
            ended = {"loss": None, "accuracy": None} if net is None else measured(net, *test)
            found["runs"].append(
                {"seed": seed, "lr": best["lr"], "options": best["options"], **ended, "codes moved": moved,
                 "seconds": round(time.perf_counter() - began)}
            )  # fmt: skip
            keep(way, found["runs"][-1])


if __name__ == "__main__":
    main()
