"""LFP on full MNIST beside its backprop twin and the last layer alone, and pruning by relevance, on one CPU thread.

    python tests/benchmarks/credit_mnist.py [--seed 0] [--only mlp cnn step prune] [--validate]

Networks: mlp 784-256-256-10 and cnn (two convolutions, two linear layers), both with ReLU; step, the mlp with a Heaviside step
in the place of each ReLU, which has no derivative: backprop trains its last layer alone. SGD with momentum 0.9, batches of 100,
learning rates, eps and epochs in CHOSEN. They were chosen on the last 10,000 training rows from runs of one epoch on the first
10,000 with some of TRIED and TRIED_EPS (--validate makes them all). A run without it trains on all 60,000 rows and looks at the
10,000 test images once, at its end. The rate of lfp on cnn was chosen anew, from a run on 50,000 rows: a first choice, 1.0 and
eps 0.01, had diverged in a run of three epochs on all of them (its row is kept, `first choice`).

prune: the weights of the mlp that backprop has trained are put to 0, those with the smallest score first (relevance of 1,000
training images by localplug_credit.scores; abs(w); a random order), no training after that; the test images are looked at once
for each share and score. cpu_seconds are the process's own, on a machine that other programs shared. What is in the results
file already is not run again.
"""

import argparse
import itertools
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_credit.attribution import masks, scores

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mnist import accuracy, cnn, read
from record import earlier, save

TRIED, TRIED_EPS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0), (1e-6, 0.01, 0.1, 1.0)
CHOSEN = {
    ("mlp", "lfp"): (1.0, 0.01, 3),
    ("mlp", "backprop"): (0.1, None, 3),
    ("mlp", "last layer"): (1.0, None, 3),
    ("cnn", "lfp"): (0.3, 1e-6, 1),
    ("cnn", "backprop"): (0.03, None, 1),
    ("cnn", "last layer"): (0.3, None, 1),
    ("step", "lfp"): (0.3, 0.1, 3),
    ("step", "last layer"): (0.1, None, 3),
}
"""The learning rate, eps of lfp, and epochs."""
SHARES = (0.5, 0.8, 0.9, 0.95)


class Step(nn.Module):
    """1 where the input is positive, 0 elsewhere."""

    def forward(self, x):
        return torch.heaviside(x, x.new_zeros(()))


def mlp(activation=nn.ReLU):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256), activation(),
        nn.Linear(256, 256), activation(),
        nn.Linear(256, 10),
    )  # fmt: skip


NETWORKS = {"mlp": mlp, "cnn": cnn, "step": lambda: mlp(Step)}


def train(network, method, lr, eps, epochs, x, y, seed):
    """The trained network, and seconds of processor time."""
    torch.manual_seed(seed)
    model = NETWORKS[network]()
    if method == "last layer":
        for p in model[:-1].parameters():
            p.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    engine = (
        localplug.Engine(model, localplug.method("lfp", eps=eps), optimizer, seed=seed) if method == "lfp" else None
    )
    generator = torch.Generator().manual_seed(seed)
    began = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(100):
            a, b = x[rows], y[rows]
            if engine is not None:
                engine.step(lambda a=a, b=b: F.cross_entropy(model(a), b), optimizer)
                continue
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model, time.process_time() - began


def pruned(model, chosen, x, y):
    """Accuracy with the chosen weights at 0."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in chosen:
                p.mul_(~chosen[name])
        found = accuracy(model, x, y)
        for name, p in model.named_parameters():
            p.copy_(kept[name])
    return found


def prune(x, y, x_test, y_test, seed):
    model, _ = train("mlp", "backprop", *CHOSEN["mlp", "backprop"], x, y, seed)
    weights = {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}
    by_relevance = scores(model, x[:1000].split(100))
    generator = torch.Generator().manual_seed(seed)
    criteria = {
        "relevance": {n: by_relevance[n] for n in weights},
        "abs(w)": {n: w.abs() for n, w in weights.items()},
        "random": {n: torch.rand(w.shape, generator=generator) for n, w in weights.items()},
    }
    return {"unpruned": accuracy(model, x_test, y_test)} | {
        f"{name}, {share}": pruned(model, masks(found, share, largest=False), x_test, y_test)
        for name, found in criteria.items()
        for share in SHARES
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=["mlp", "cnn", "step", "prune"])
    parser.add_argument("--validate", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x, y = read("train")
    if arguments.validate:
        held, fit = slice(50_000, None), slice(0, 10_000)
        for network, method in CHOSEN:
            if network in arguments.only:
                for lr, eps in itertools.product(TRIED, TRIED_EPS if method == "lfp" else [None]):
                    model, _ = train(network, method, lr, eps, 1, x[fit], y[fit], arguments.seed)
                    print(network, method, lr, eps, accuracy(model, x[held], y[held]), flush=True)
        sys.exit()
    x_test, y_test = read("t10k")
    setting = {
        "lr, eps and epochs": {", ".join(k): list(v) for k, v in CHOSEN.items()},
        "shares": list(SHARES),
    }
    result = earlier("credit_mnist", setting)
    for network, method in CHOSEN:
        key = f"{network}, {method}, seed {arguments.seed}"
        if network in arguments.only and key not in result:
            model, seconds = train(network, method, *CHOSEN[network, method], x, y, arguments.seed)
            result[key] = {"test_accuracy": accuracy(model, x_test, y_test), "cpu_seconds": round(seconds, 1)}
            save("credit_mnist", result)
    key = f"prune, seed {arguments.seed}"
    if "prune" in arguments.only and key not in result:
        result[key] = prune(x, y, x_test, y_test, arguments.seed)
        save("credit_mnist", result)
