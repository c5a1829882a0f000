"""NoProp on full MNIST beside a backprop twin: the same network, data order, optimizer and epochs.

    python tests/benchmarks/mnist_noprop.py [--rows dt block backprop shallow ct fm] [--seed 0] [--validate [--set JSON]]
    python tests/benchmarks/mnist_noprop.py --images fashion [--fashion FOLDER]     # the same on Fashion-MNIST
    python tests/benchmarks/mnist_noprop.py --images cifar                          # and on 4,000 images of CIFAR-10

Blocks of two strided convolutions (16 and 32 channels), 128 wide; embeddings are one-hot, but fm's are learned (dimension
20). dt, backprop and shallow: three blocks with batch normalisation and the discrete schedule; `backprop` trains the
network's forward pass (the inference) end to end, `shallow` its last layer alone. End to end it gets stuck with several
classes merged, since gradients have to pass softmaxes that are certain already; so `block` trains one of the three blocks by
backprop on its own logits, at z_0, and is what the others should be compared with. ct and fm: one block without
normalisation. AdamW, batch 128, a learning rate that falls to zero along a cosine, no augmentation. Options were chosen with
--validate, which trains on the first 55,000 training images and scores the last 5,000; without it the 60,000 are trained
on, and the 10,000 test images are looked at once, after the last epoch. Rows that the result file already holds are kept;
delete it to start again. One thread.

Nothing was chosen on Fashion-MNIST or CIFAR-10: they have MNIST's options as they are, CIFAR-10 five times the epochs, since
its images are a fifteenth. saved_bytes is the most that autograd holds at one time in one step of 128 images, weights left out.
"""

import argparse
import contextlib
import json
import math
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_noprop.blocks import Block
from localplug_noprop.embeddings import one_hot, orthogonal
from localplug_noprop.network import NoPropCTNet, NoPropFMNet, NoPropNet

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from image_sets import FASHION, SHAPES, read
from mnist import accuracy
from record import RESULTS, save
from saved_tensors import saved_bytes

IMAGES = "mnist"  # a key of SHAPES; main sets it
CHOSEN = {
    "dt": dict(epochs=5, lr=2e-3, max_signal=0.99, embedding="one-hot", eta=0.1),
    "backprop": dict(epochs=5, lr=2e-3, max_signal=0.99, embedding="one-hot"),
    "block": dict(epochs=5, lr=2e-3, max_signal=0.99, embedding="one-hot"),
    "shallow": dict(epochs=1, lr=2e-3, max_signal=0.99, embedding="one-hot"),
    "ct": dict(epochs=10, lr=2e-3, max_signal=0.99, min_signal=0.05, embedding="one-hot", eta=1.0),
    "fm": dict(epochs=5, lr=2e-3, embedding="learned", anchor=10.0),
}


class OneBlock(nn.Module):
    """The first block of a NoPropNet as a classifier by itself; z is the noise that a prediction begins with."""

    def __init__(self, net):
        super().__init__()
        denoiser = net.noprop["t001"]
        self.block, self.z_D = denoiser.block, net._start(torch.zeros(1, 1))[0]

    def forward(self, x):
        return self.block(self.z_D.expand(len(x), -1), x)


def so_far():
    path = RESULTS / f"{IMAGES}_noprop.json"
    return json.loads(path.read_text())["result"] if path.exists() else {}


def images(is_normalised):
    def norm(num):
        return nn.BatchNorm2d(num) if is_normalised else nn.Identity()

    channels, side, _ = SHAPES[IMAGES]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2), norm(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), norm(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 128), nn.ReLU(),
    )  # fmt: skip


def network(row, o, seed):
    torch.manual_seed(seed)
    W = one_hot(10) if o["embedding"] == "one-hot" else nn.Parameter(orthogonal(10, 20))
    is_discrete = row not in ("ct", "fm")

    def block():
        return Block(images(is_discrete), embedded=128, z_dim=W.shape[1], num_classes=10, takes_time=not is_discrete)

    if row == "fm":
        return NoPropFMNet(block(), W, num_steps=o.get("num_steps", 100))
    if row == "ct":
        return NoPropCTNet(
            block(), W, num_steps=o.get("num_steps", 100), max_signal=o["max_signal"], min_signal=o["min_signal"]
        )
    return NoPropNet([block() for _ in range(o.get("blocks", 3))], W, max_signal=o["max_signal"])


def train(row, o, seed, is_validated, fashion):
    x, y = read(IMAGES, "train", fashion)
    held = (x[55_000:], y[55_000:])
    if is_validated:
        x, y = x[:55_000], y[:55_000]
    model = network(row, o, seed)
    if row == "block":
        model = OneBlock(model)
    if row == "shallow":
        model.requires_grad_(False)
        model.noprop["out"].requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=o["lr"], weight_decay=1e-3)
    epochs = o["epochs"] * (5 if IMAGES == "cifar" else 1)
    steps = epochs * math.ceil(len(x) / 128)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    labels, plug = [None], None
    if row in ("dt", "ct", "fm"):
        own = {k: o[k] for k in ("eta", "anchor", "block_steps") if k in o}
        plug = localplug.attach(
            model, f"noprop-{row}", optimizer, seed=seed, targets=lambda args, kwargs: labels[0], **own
        )
    began, curve, held_bytes = time.process_time(), [], 0
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for number, chosen in enumerate(order.split(128)):
            labels[0] = y[chosen]
            batch = x[chosen]
            with saved_bytes(model, batch) if (epoch, number) == (0, 1) else contextlib.nullcontext([0]) as peak:
                loss = F.cross_entropy(model(batch), labels[0])
                loss.backward()
            held_bytes = max(held_bytes, peak[0])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if is_validated:
            curve.append(accuracy(model, *held))
        print(row, "epoch", epoch + 1, f"{time.process_time() - began:.0f} s", curve[-1:], flush=True)
    seconds = time.process_time() - began
    if plug is not None:
        plug.close()
    weights = sum(p.numel() for p in model.parameters())
    found = {
        "options": o, "seed": seed, "weights": weights, "saved_bytes": held_bytes,
        "cpu_seconds_of_training": round(seconds), "cpu_seconds_a_step": round(seconds / steps, 5),
    }  # fmt: skip
    if is_validated:
        return {**found, "validation_accuracy": curve}
    x_test, y_test = read(IMAGES, "test", fashion)
    return {**found, "test_accuracy": accuracy(model, x_test, y_test)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="*", default=list(CHOSEN), choices=list(CHOSEN))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--set", default="{}", help="JSON with options in the place of the chosen ones, for --validate")
    parser.add_argument("--images", choices=SHAPES, default=IMAGES)
    parser.add_argument("--fashion", type=pathlib.Path, default=FASHION, help="folder of Fashion-MNIST's files")
    options = parser.parse_args()
    if options.validate and options.images != "mnist":
        sys.exit("--validate chooses on MNIST; the other images have its options")
    torch.set_num_threads(1)
    IMAGES = options.images
    for row in options.rows:
        if options.validate:
            chosen = {**CHOSEN[row], **json.loads(options.set)}
            print(json.dumps({row: train(row, chosen, options.seed, True, options.fashion)}))
        elif (key := f"{row}, seed {options.seed}") not in so_far():
            found = train(row, CHOSEN[row], options.seed, False, options.fashion)
            save(f"{IMAGES}_noprop", {**so_far(), key: found})  # another process may have written rows meanwhile
