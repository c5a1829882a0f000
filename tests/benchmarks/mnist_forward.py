"""The Forward-Forward family on full MNIST, each beside its backprop twin and the last layer alone, on one CPU thread.

    python tests/benchmarks/mnist_forward.py [--only ff pepita] [--seed 0] [--validate] [--rows 60000]
    python tests/benchmarks/mnist_forward.py --images fashion [--fashion FOLDER]     # the same on Fashion-MNIST
    python tests/benchmarks/mnist_forward.py --images cifar                          # and on 4,000 images of CIFAR-10

Each row trains the same network in the same data order: by the method, by backprop, and with all but the output layer left
as it began (`last layer`); epochs, learning rates and options are in ROWS. They were chosen on the last 10,000 training rows,
from runs on 10,000 to 20,000 others (--validate trains on the first 50,000, or on --rows of them, and reports the error on the
last 10,000). A run without --validate trains on all 60,000 and looks at the 10,000 test images once, at its end. Batches of
100. pepita's options were chosen anew on 50,000 rows, after a first choice had diverged in a run on all of them (90 % test
error). ff has three rows, each of which was added after the one before it had been seen on the test images. Nothing was chosen
on Fashion-MNIST or CIFAR-10: they have MNIST's options as they are, CIFAR-10 five times the epochs, since its images are a
fifteenth.

cpu_seconds are the process's own, on a machine that other programs shared; saved_bytes is the most that autograd holds at one
time in one step of 100 images, weights left out; "table" has means over the seeds and the ratios to backprop. A row that is in
the results file already is not run again, so that a run can be taken up where it ended.
"""

import argparse
import itertools
import json
import math
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_forward.softhebb import start_softhebb

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from image_sets import FASHION, SHAPES, read
from record import RESULTS, save
from saved_tensors import saved_bytes

IMAGES = "mnist"  # a key of SHAPES; main sets it


def mlp(*widths):
    layers = [nn.Flatten()]
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(before, after), nn.ReLU()][: 1 if i == len(widths) - 2 else 2]
    return nn.Sequential(*layers)


def wide_start(model):
    """Hinton's: weights of standard deviation 1 / sqrt(number of outputs), in the hidden layers."""
    for layer in list(model.modules())[:-1]:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.out_features**-0.5)
            nn.init.zeros_(layer.bias)
    return model


def num_inputs():
    return math.prod(SHAPES[IMAGES])


def blocks():
    """CaFo's blocks, narrower: convolution, ReLU, pooling, norm; three times."""
    layers = []
    channels, side, _ = SHAPES[IMAGES]
    for before, after in ((channels, 8), (8, 16), (16, 32)):
        norm = nn.BatchNorm2d(after, eps=1e-4)
        layers += [nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), norm)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (side // 8) ** 2, 10))


def competing():
    """SoftHebb's: inputs without their mean, a layer without bias, and each of its answers standardised before the ReLU."""
    n = num_inputs()
    model = nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(n, eps=1.0, affine=False), nn.LayerNorm(n, elementwise_affine=False),
        nn.Linear(n, 1000, bias=False), nn.BatchNorm1d(1000, affine=False), nn.ReLU(), nn.Linear(1000, 10),
    )  # fmt: skip
    start_softhebb(model[3], norm=3.0, seed=torch.initial_seed())
    return model


def adam(lr):
    return lambda model: torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)


def sgd(lr, of_hidden=None):
    """With momentum 0.9; hidden layers may have a rate of their own, and then no momentum."""

    def make(model):
        hidden, head = list(model.parameters())[:-2], list(model.parameters())[-2:]
        if of_hidden is None:
            hidden, head = [], [*hidden, *head]
        groups = [{"params": [p for p in head if p.requires_grad]}]
        groups += [{"params": [p], "lr": of_hidden, "momentum": 0.0} for p in hidden if p.requires_grad]
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)

    return make


def linear_decay(done):
    return 1 - done


def half_then_linear(done):
    return min(1.0, 2 * (1 - done))


def variants(*methods, plain):
    """{variant: (method or None, options, epochs, optimizer)}; `plain` is what backprop and the last layer alone get."""
    found = {name: (name.split(" ")[0], *rest) for name, *rest in methods}
    return {**found, "backprop": (None, {}, *plain), "last layer": (None, {}, *plain)}


# row: (network, schedule of the learning rate, variants)
ROWS = {
    "ff": (
        lambda: wide_start(mlp(num_inputs(), 500, 500, 500, 10)),
        half_then_linear,
        variants(
            ("ff", {"label_value": 10.0}, 15, adam(3e-3)),
            ("ff at 1e-3", {"label_value": 10.0}, 30, adam(1e-3)),
            ("ff at 1e-3, longer", {"label_value": 10.0}, 60, adam(1e-3)),
            plain=(5, adam(1e-3)),
        ),
    ),
    "mono-forward": (
        lambda: mlp(num_inputs(), 1000, 1000, 10),
        linear_decay,
        variants(("mono-forward", {}, 3, adam(1e-3)), plain=(3, adam(1e-3))),
    ),
    "cafo": (
        blocks,
        linear_decay,
        variants(
            ("cafo by cross-entropy", {"loss": "ce"}, 3, adam(1e-3)),
            ("cafo in closed form", {"loss": "mse-closed-form"}, 1, adam(1e-3)),
            plain=(3, adam(1e-3)),
        ),
    ),
    "pepita": (
        lambda: mlp(num_inputs(), 1024, 10),
        linear_decay,
        variants(("pepita", {}, 5, adam(1e-3)), plain=(5, adam(1e-3))),
    ),
    "softhebb": (
        competing,
        linear_decay,
        variants(("softhebb", {"temperature": 0.3}, 3, sgd(0.01, of_hidden=0.3)), plain=(3, sgd(0.01))),
    ),
}


def frozen_but_last(model):
    for p in model.parameters():
        p.requires_grad_(False)
    for p in list(model.modules())[-1].parameters():
        p.requires_grad_(True)


def errors(model, x, y):
    model.eval()
    with torch.no_grad():
        wrong = sum(int((model(a).argmax(1) != b).sum()) for a, b in zip(x.split(500), y.split(500), strict=True))
    return wrong / len(y)


def step(model, engine, optimizer, x, y):
    if engine is None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        engine.step(lambda: F.cross_entropy(model(x), y), optimizer, targets=y)


def train(row, how, seed, validate, num_rows, fashion):
    network, schedule, found = ROWS[row]
    method, options, epochs, make_optimizer = found[how]
    epochs *= 5 if IMAGES == "cifar" else 1
    torch.manual_seed(seed)
    model = network()
    (x, y), (x_test, y_test) = read(IMAGES, "train", fashion), read(IMAGES, "test", fashion)
    if validate:
        x, y, x_test, y_test = x[:num_rows], y[:num_rows], x[50_000:], y[50_000:]
    if how == "last layer":
        frozen_but_last(model)
    optimizer = make_optimizer(model)
    rates = [group["lr"] for group in optimizer.param_groups]
    engine = localplug.Engine(model, localplug.method(method, **options), optimizer, seed=seed) if method else None
    steps_done, num_steps, start = 0, epochs * -(-len(x) // 100), time.process_time()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(x), generator=torch.Generator().manual_seed(1000 * seed + epoch)).split(100):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(steps_done / num_steps)
            step(model, engine, optimizer, x[chosen], y[chosen])
            steps_done += 1
    seconds = time.process_time() - start
    found = {"epochs": epochs, "cpu_seconds": round(seconds, 1), "cpu_seconds_a_step": round(seconds / num_steps, 5)}
    name = "validation_error" if validate else "test_error"
    if engine is None or not engine.method.prediction:
        found[name] = errors(model, x_test, y_test)
    else:
        found[name] = errors(localplug.Predictor(model, engine.method, seed=seed), x_test, y_test)
    if method == "ff":
        by_goodness = localplug.method("ff", **options, inference="goodness", reads_first=True)
        engine.close()
        found[f"{name}_by_goodness"] = errors(localplug.Predictor(model, by_goodness, seed=seed), x_test, y_test)
    found["saved_bytes"] = memory(row, how, seed, x[:100], y[:100])
    return found


def memory(row, how, seed, x, y):
    """Of the second step of a fresh network."""
    network, _, found = ROWS[row]
    method, options, _, make_optimizer = found[how]
    torch.manual_seed(seed)
    model = network()
    if how == "last layer":
        frozen_but_last(model)
    optimizer = make_optimizer(model)
    engine = localplug.Engine(model, localplug.method(method, **options), optimizer, seed=seed) if method else None
    step(model, engine, optimizer, x, y)
    with saved_bytes(model, x, y) as peak:
        step(model, engine, optimizer, x, y)
    return peak[0]


def table(result):
    """{row, how: means over the seeds, and ratios to backprop on the same network}."""
    groups = {}
    for key, found in result.items():
        if key != "table":
            groups.setdefault(key.rsplit(", seed", 1)[0], []).append(found)
    names = ("test_error", "test_error_by_goodness", "saved_bytes", "cpu_seconds_a_step")
    rows = {}
    for key, runs in groups.items():
        values = {name: [run[name] for run in runs if name in run] for name in names}
        rows[key] = {name: round(sum(v) / len(v), 5) for name, v in values.items() if v}
        rows[key] |= {"seeds": len(runs), "spread": round(max(values["test_error"]) - min(values["test_error"]), 4)}
    for key, row in rows.items():
        plain = rows.get(f"{key.split(', ')[0]}, backprop", {})
        for name in names[2:]:
            if name in row and name in plain:
                row[f"{name}_over_backprop"] = round(row[name] / plain[name], 3)
    return rows


def saved(path):
    return json.loads(path.read_text())["result"] if path.exists() else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--images", choices=SHAPES, default=IMAGES)
    parser.add_argument("--fashion", type=pathlib.Path, default=FASHION, help="folder of Fashion-MNIST's files")
    options = parser.parse_args()
    if options.validate and options.images != "mnist":
        sys.exit("--validate chooses on MNIST; the other images have its options")
    torch.set_num_threads(1)
    IMAGES = options.images
    file = "mnist_forward_validation" if options.validate else f"{IMAGES}_forward"
    path = RESULTS / f"{file}.json"
    for row in options.only:
        for how in ROWS[row][2]:
            key = f"{row}, {how}, seed {options.seed}"
            if key not in saved(path):
                found = train(row, how, options.seed, options.validate, options.rows, options.fashion)
                result = {**saved(path), key: found}
                save(file, {**result, **({} if options.validate else {"table": table(result)})})
