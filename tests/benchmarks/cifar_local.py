"""Local losses on a part of CIFAR-10 against backpropagation: accuracy, saved memory and time of a small convolutional network.

    python tests/benchmarks/cifar_local.py [--data ../shared/data] [--epochs 10] [--seed 0] [--only NAME ...]

4,000 training images, of which the last 500 are for validation, and 1,000 test images; flipped at random in training. Five
convolutions with batch norm and ReLU (16, 32, 32, 64, 64 channels, three poolings) and a linear read-out. Adam, batch 100, the
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
import zlib

import torch
from torch import nn
from torch.nn import functional as F

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from block_local_lm import saved_bytes

from record import RESULTS, save

BATCH, VALIDATION = 100, 500
ROWS = {
    "backprop": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "last layer": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "predsim": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "dgl": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}],
    "infopro": [{"lr": lr, "lambda1": weights} for lr in (1e-3, 3e-3) for weights in ((5.0, 0.0), (0.5, 0.0))],
    "tpsgd": [{"lr": lr, "scale": scale} for lr in (1e-3, 3e-3) for scale in (1.0, 3.0)],
}


def pixels(file):
    """An 8-bit RGB or RGBA image in PNG, as (height, width, 3)."""
    raw, at, packed = file.read_bytes(), 8, b""
    while at < len(raw):
        size, kind = int.from_bytes(raw[at : at + 4], "big"), raw[at + 4 : at + 8]
        part = raw[at + 8 : at + 8 + size]
        at += 12 + size
        if kind == b"IHDR":
            width, height = int.from_bytes(part[:4], "big"), int.from_bytes(part[4:8], "big")
            depth, colour, interlaced, num = part[8], part[9], part[12], {2: 3, 6: 4}[part[9]]
            assert (depth, interlaced) == (8, 0), (depth, colour, interlaced)
        elif kind == b"IDAT":
            packed += part
    lines = zlib.decompress(packed)
    rows, above, stride = [], bytearray(width * num), width * num
    for y in range(height):
        start = y * (stride + 1)
        rows.append(above := unfiltered(lines[start], bytearray(lines[start + 1 : start + 1 + stride]), above, num))
    flat = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8)
    return flat.view(height, width, num)[:, :, :3]


def unfiltered(kind, line, above, num):
    """One line of a PNG from what its filter left: sub, up, average or Paeth of the neighbours before and above."""
    for i in range(len(line)) if kind else ():
        a, b, c = (line[i - num] if i >= num else 0), above[i], (above[i - num] if i >= num else 0)
        if kind == 4:
            p = a + b - c
            near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
        else:
            near = (0, a, b, (a + b) // 2)[kind]
        line[i] = (line[i] + near) & 255
    return line


def read(data):
    """(x, y) for training, validation and test, the images with mean 0 and deviation 1 in each colour."""
    import numpy

    labels = numpy.load(data / "cifar10/cifar10_lossless_labels.npz")
    files = {"train": [f"train_{i}" for i in range(4)], "test": ["test_0"]}
    found = {}
    for split, names in files.items():
        images = [pixels(data / f"cifar10/cifar10_lossless_{n}.png").reshape(1000, 32, 32, 3) for n in names]
        found[split] = torch.cat(images).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels[split]).long()
    (x, y), (x_test, y_test) = found["train"], found["test"]
    mean, deviation = x[:-VALIDATION].mean((0, 2, 3), keepdim=True), x[:-VALIDATION].std((0, 2, 3), keepdim=True)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    return (x[:-VALIDATION], y[:-VALIDATION]), (x[-VALIDATION:], y[-VALIDATION:]), (x_test, y_test)


def network(seed):
    torch.manual_seed(seed)
    layers, channels = [], 3
    for width, pools in ((16, True), (32, False), (32, True), (64, False), (64, True)):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pools else []
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))


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
    args = parser.parse_args()
    torch.set_num_threads(1)
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
