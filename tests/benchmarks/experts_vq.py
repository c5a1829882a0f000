"""VQ units on MNIST, beside the same network without codebooks, and codes without training; one CPU thread.

    python tests/benchmarks/experts_vq.py [--seed 0]

784-128-VQ-10: a linear layer with tanh, a codebook of 256 codes of 128, a linear read-out; 20,000 training images, 3 epochs,
batches of 100, SGD at 0.03 with momentum 0.9 for layers and at 1 for codes, which makes it their moving average. Rows: vq; the
same with the codebook fixed where place_codes_ put it; vq without commitment; mono-forward on the network without a codebook.
decay and commitment were chosen on the last 10,000 training images from DECAYS and COMMITMENTS in one epoch on 5,000; the
10,000 test images are looked at once for each row. perplexity: exp of the entropy of the codes' shares over the test images.
"""

import argparse
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_experts import VQ, VectorQuantizer, place_codes_

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from mnist import accuracy, read
from record import earlier, save

ROWS, EPOCHS, CODES, WIDTH, RATE = 20_000, 3, 256, 128, 0.03
DECAYS, COMMITMENTS = (0.8, 0.99), (0.25, 2.0)


def network(x, seed, *, coded=True):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(784, WIDTH), nn.Tanh()]
    layers += [VectorQuantizer(CODES, WIDTH, seed=seed)] if coded else []
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    if coded:
        place_codes_(model, x[:1000], seed=seed)
    return model


def train(x, y, epochs, seed, *, decay=0.99, commitment=0.25, fixed=False, coded=True):
    model = network(x, seed, coded=coded)
    codes = [p for m in model if isinstance(m, VectorQuantizer) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not c for c in codes)]
    for p in codes:
        p.requires_grad_(not fixed)
    groups = [{"params": others, "momentum": 0.9}]
    groups += [{"params": codes, "lr": 1.0}] if coded and not fixed else []
    optimizer = torch.optim.SGD(groups, lr=RATE)
    units = ["1", "3", "4"] if coded else None  # by name, since fixed codes have no trained weights
    method = (
        VQ(decay=decay, commitment=commitment, units=units)
        if coded
        else localplug.method("mono-forward", joins_head=False)
    )
    engine = localplug.Engine(model, method, optimizer, seed=seed)
    g = torch.Generator().manual_seed(seed)
    began = time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=g).split(100):
            a, b = x[rows], y[rows]
            engine.step(lambda a=a, b=b: F.cross_entropy(model(a), b), optimizer, targets=b)
    return model, round(time.process_time() - began, 1)


@torch.no_grad()
def figures(model, x, y, seconds):
    found = {"test_accuracy": accuracy(model, x, y), "cpu_seconds": seconds}
    for at, module in enumerate(model):
        if isinstance(module, VectorQuantizer):
            share = torch.bincount(module.nearest(model.eval()[:at](x)), minlength=CODES) / len(x)
            found["perplexity"] = round(float((-(share * share.clamp(min=1e-12).log()).sum()).exp()), 1)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    torch.set_num_threads(1)
    x, y = read("train")
    x_test, y_test = read("t10k")
    setting = {"rows": ROWS, "epochs": EPOCHS, "codes": CODES, "width": WIDTH, "rate": RATE}
    result = earlier("experts_vq", setting)
    if "validation" not in result:
        result["validation"] = {}
        for decay in DECAYS:
            for commitment in COMMITMENTS:
                model, _ = train(x[:5000], y[:5000], 1, 0, decay=decay, commitment=commitment)
                result["validation"][f"{decay}, {commitment}"] = accuracy(model, x[50_000:], y[50_000:])
        save("experts_vq", result)
    decay, commitment = (float(v) for v in max(result["validation"], key=result["validation"].get).split(", "))
    ways = {
        "vq": {"decay": decay, "commitment": commitment},
        "vq, codes fixed": {"decay": decay, "commitment": commitment, "fixed": True},
        "vq, no commitment": {"decay": decay, "commitment": 0.0},
        "mono-forward, no codes": {"coded": False},
    }
    for name, options in ways.items():
        key = f"{name}, seed {seed}"
        if key not in result:
            model, seconds = train(x[:ROWS], y[:ROWS], EPOCHS, seed, **options)
            result[key] = figures(model, x_test, y_test, seconds)
            save("experts_vq", result)
