"""tpSGD, DRTP, DFA and FA on full MNIST against their backprop twins: same network, data order, optimizer and epochs.

    python tests/benchmarks/mnist_tpsgd.py [--minutes 60] [--only mlp cnn gru "two-layer gru"] [--seeds 0 1 2] [--list]
    python tests/benchmarks/mnist_tpsgd.py --fashion /usr/share/datasets/fashion-mnist    # the same on Fashion-MNIST

MLP 784-256-256-10 (tanh), CNN conv16-conv32-fc64-10 (ReLU, max pooling), GRU over the 28 rows (64 hidden, one or two layers)
with a linear read-out of its last step. Adam, batch 128, three epochs. The learning rate, and the scale of the targets, are
chosen for each method and network on the last 5,000 training images, after one epoch of the first 20,000 with seed 0; then
all 60,000 are trained on, with seeds 0, 1, 2, and the 10,000 test images are looked at once, after the last epoch. `last
layer` trains the output layer alone, on the random features below it: what a local method must beat. `truncation 28` lets a
recurrent layer's own gradient go back through all time steps; layers still learn apart. Saved memory is the largest number of
elements that autograd holds, in an MLP of 2, 4, 8, 16, 32 layers.

What is done is in results/mnist_tpsgd.json (fashion_tpsgd.json) and is not done again. Fashion-MNIST is Debian's package
dataset-fashion-mnist.
"""

import argparse
import functools
import json
import pathlib
import sys
import time

import torch
from torch.nn import functional as F

import localplug
from localplug.testing.local_method import saved_elements
from mnist import DATA, NETWORKS, accuracy, mlp, read
from record import RESULTS, save

EPOCHS, BATCH = 3, 128
RATES = (1e-3, 3e-3)
SCALED = tuple(dict(lr=lr, scale=scale) for lr in RATES for scale in (1.0, 3.0))
PLAIN = tuple(dict(lr=lr) for lr in RATES)
WAYS = {
    "backprop": (None, {}, PLAIN),
    "last layer": (None, {}, PLAIN),
    "tpsgd": ("tpsgd", {}, SCALED),
    "tpsgd, truncation 28": ("tpsgd", dict(truncation=28, time="last"), SCALED),
    "drtp": ("drtp", {}, PLAIN),
    "dfa": ("dfa", {}, PLAIN),
    "fa": ("fa", {}, PLAIN),
}


def ways(network):
    """Recurrent layers are tpSGD's alone."""
    if "gru" in network:
        return ["backprop", "last layer", "tpsgd", "tpsgd, truncation 28"]
    return [way for way in WAYS if way != "tpsgd, truncation 28"]


def train(network, way, options, seed, x, y, epochs):
    name, fixed, _ = WAYS[way]
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    if way == "last layer":
        for p in model.parameters():
            p.requires_grad_(False)
        for p in list(model.modules())[-1].parameters():
            p.requires_grad_(True)
    options = {**fixed, **options}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=options.pop("lr"))
    engine = localplug.Engine(model, localplug.method(name, **options), optimizer, seed=seed) if name else None
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for chosen in order.split(BATCH):
            images, labels = x[chosen], y[chosen]
            if engine is not None:
                engine.step(lambda a=images, b=labels: F.cross_entropy(model(a), b), optimizer, targets=labels)
                continue
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    if engine is not None:
        engine.close()
    return model


def held(depth, way):
    """Largest number of elements that autograd holds at one time in one step of batch 128, weights and inputs left out."""
    torch.manual_seed(0)
    model, x, y = mlp(depth), torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    with saved_elements(model, (x,)) as peak:
        if way == "backprop":
            F.cross_entropy(model(x), y).backward()
        else:
            engine = localplug.Engine(model, localplug.method(way))
            engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    return peak[0]


def table(runs):
    found = {}
    for run in runs:
        found.setdefault(run["network"], {}).setdefault(run["way"], []).append(run["test_accuracy"])
    return {
        network: {
            way: {"accuracy": round(sum(a) / len(a), 4), "seeds": len(a), "spread": round(max(a) - min(a), 4)}
            for way, a in rows.items()
        }
        for network, rows in found.items()
    }


def jobs(result, networks, seeds):
    """What is not done yet, in order."""
    for network in networks:
        for way in ways(network):
            tried = [t["options"] for t in result["trials"] if (t["network"], t["way"]) == (network, way)]
            yield from (("trial", network, way, options) for options in WAYS[way][2] if options not in tried)
    for seed in seeds:
        for network in networks:
            for way in ways(network):
                if (network, way, seed) not in [(r["network"], r["way"], r["seed"]) for r in result["runs"]]:
                    yield "run", network, way, seed


def work(result, job, data):
    what, network, way, value = job
    x, y = data["train"]
    if what == "trial":
        model = train(network, way, value, 0, x[:20_000], y[:20_000], epochs=1)
        found = accuracy(model, x[55_000:], y[55_000:])
        result["trials"].append({"network": network, "way": way, "options": value, "accuracy": found})
    else:
        tried = [t for t in result["trials"] if (t["network"], t["way"]) == (network, way)]
        best = max(tried, key=lambda t: t["accuracy"])["options"]
        model = train(network, way, best, value, x, y, EPOCHS)
        found = accuracy(model, *data["t10k"])
        result["runs"].append({"network": network, "way": way, "seed": value, "options": best, "test_accuracy": found})
    print(job, found, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new run after so long")
    parser.add_argument("--only", nargs="*", default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--fashion", type=pathlib.Path, help="folder of Fashion-MNIST's files")
    parser.add_argument("--list", action="store_true", help="say what is left to do")
    options = parser.parse_args()
    name, folder = ("fashion_tpsgd", options.fashion) if options.fashion else ("mnist_tpsgd", DATA)
    path, end = RESULTS / f"{name}.json", time.time() + 60 * options.minutes
    result = json.loads(path.read_text())["result"] if path.exists() else {"trials": [], "runs": []}
    todo = functools.partial(jobs, result, options.only, options.seeds)
    if options.list:
        print("\n".join(map(str, todo())))
        sys.exit()
    data = {split: read(split, folder) for split in ("train", "t10k")}
    while time.time() < end and (job := next(todo(), None)) is not None:
        work(result, job, data)
        result["table"] = table(result["runs"])
        save(name, result)
    result["held"] = {
        way: {depth: held(depth, way) for depth in (2, 4, 8, 16, 32)}
        for way in ("backprop", "tpsgd", "drtp", "dfa", "fa")
    }
    save(name, result)
