"""Local losses on a part of CIFAR-10 against backpropagation: accuracy, saved memory and time of a small convolutional network.

    python tests/benchmarks/cifar_local.py [--data ../shared/data] [--epochs 10] [--seed 0] [--only NAME ...]
    python tests/benchmarks/cifar_local.py --vgg11 --name cifar_vgg11 --only backprop "last layer" tpsgd

4,000 training images, of which the last 500 are for validation, and 1,000 test images; flipped at random in training. Five
convolutions with batch norm and ReLU (16, 32, 32, 64, 64 channels, three poolings) and a linear read-out; with --vgg11 the
eight convolutions and five poolings of VGG-11, a quarter as wide (16 ... 128). Adam, batch 100, the
learning rate up over the first tenth of the steps and then down to 0 in a straight line.

Rows: backprop; last layer (the rest stays as it began); predsim, dgl, infopro and tpsgd, each convolution a unit of its
own and the read-out the last. What is in a row's list of choices is tried for a fifth of the epochs on the validation
images; the best one is trained for all epochs, and the test images are looked at once.

saved_bytes is the most that autograd holds at one time in one step, weights left out, and its ratio that to backprop's;
seconds are of the process, not of the clock. Each row is written as it ends, and one that is there is not run again.
"""

import argparse
import json
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from cifar import images
from record import RESULTS, save
from saved_tensors import saved_bytes

BATCH, VALIDATION = 100, 500
ROWS = {
    "backprop": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "last layer": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "predsim": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "dgl": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "infopro": [{"lr": lr, "lambda1": weights} for lr in (1e-3, 3e-3) for weights in ((5.0, 0.0), (0.5, 0.0))],
    "tpsgd": [{"lr": lr, "scale": scale} for lr in (1e-3, 3e-3) for scale in (1.0, 3.0)],
}


def read(data):
    """(x, y) for training, validation and test, the images with mean 0 and deviation 1 in each colour."""
    (x, y), (x_test, y_test) = images("train", data), images("test", data)
    mean, deviation = x[:-VALIDATION].mean((0, 2, 3), keepdim=True), x[:-VALIDATION].std((0, 2, 3), keepdim=True)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    return (x[:-VALIDATION], y[:-VALIDATION]), (x[-VALIDATION:], y[-VALIDATION:]), (x_test, y_test)


SMALL = ((16, True), (32, False), (32, True), (64, False), (64, True))
VGG11 = ((16, True), (32, True), (64, False), (64, True), (128, False), (128, True), (128, False), (128, True))
CONVOLUTIONS = SMALL  # (channels, whether pooling follows)


def network(seed):
    torch.manual_seed(seed)
    layers, channels = [], 3
    for width, pools in CONVOLUTIONS:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pools else []
        channels = width
    side = 32 >> sum(pools for _, pools in CONVOLUTIONS)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, 10))


def accuracy(model, x, y):
    model.eval()
    with torch.no_grad():
        right = sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    model.train()
    return right / len(y)


def loop(how, model, seed, lr, **options):
    """The optimizer, and what one step on a batch is."""
    if how == "last layer":
        for p in list(model.parameters())[:-2]:
            p.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    if how in ("backprop", "last layer"):

        def step(x, y):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return optimizer, step
    if how != "tpsgd":
        options = {"kind": "layer", "joins_head": False, **options}
    engine = localplug.Engine(model, localplug.method(how, **options), optimizer, seed=seed)
    return optimizer, lambda x, y: engine.step(lambda: F.cross_entropy(model(x), y), optimizer, targets=y)


def trained(how, choice, epochs, seed, x, y):
    model = network(seed).train()
    optimizer, step = loop(how, model, seed, **choice)
    steps = epochs * (len(x) // BATCH)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm))
    )
    start = time.process_time()
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            flip = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
            images = x[chosen]
            step(torch.where(flip, images.flip(3), images), y[chosen])
            schedule.step()
    return model, (time.process_time() - start) / steps


def memory(how, choice, seed, x, y):
    model = network(seed).train()
    _, step = loop(how, model, seed, **{**choice, "lr": 0.0})
    x, y = x[:BATCH], y[:BATCH]
    step(x, y)  # so that heads are there, and not counted
    with saved_bytes(model, x, y) as peak:
        step(x, y)
    return peak[0]


def row(how, epochs, seed, train, validation, test):
    tried = []
    for choice in ROWS[how]:
        model, _ = trained(how, choice, max(1, epochs // 5), seed, *train)
        tried.append((accuracy(model, *validation), choice))
    best = max(tried, key=lambda pair: pair[0])[1]
    model, seconds = trained(how, best, epochs, seed, *train)
    return {
        "validation_after_a_fifth": [{"accuracy": a, **c} for a, c in tried],
        "choice": best,
        "validation_accuracy": accuracy(model, *validation),
        "test_accuracy": accuracy(model, *test),
        "saved_bytes": memory(how, best, seed, *train),
        "process_seconds_a_step": round(seconds, 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(ROWS))
    parser.add_argument("--name", default="cifar_local", help="of the file in results/")
    parser.add_argument("--vgg11", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.vgg11:
        global CONVOLUTIONS
        CONVOLUTIONS = VGG11
    file = RESULTS / f"{args.name}.json"
    result = json.loads(file.read_text())["result"] if file.exists() else {}
    parts = read(args.data)
    for how in args.only:
        key = f"{how}, {args.epochs} epochs, seed {args.seed}"
        if key in result:
            continue
        result[key] = found = row(how, args.epochs, args.seed, *parts)
        base = result.get(f"backprop, {args.epochs} epochs, seed {args.seed}")
        if base is not None:
            for name in ("saved_bytes", "process_seconds_a_step"):
                found[f"{name}_over_backprop"] = round(found[name] / base[name], 3)
        save(args.name, result)


if __name__ == "__main__":
    main()
