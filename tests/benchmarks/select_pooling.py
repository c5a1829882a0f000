"""Parameter-free mixing: does a network learn layer by layer when pooling stands where 3 x 3 convolutions stood?

    python tests/benchmarks/select_pooling.py [--data ../shared/data/mnist] [--quick]

After PfLayer (arXiv:2202.02777): 1 x 1 convolution, spatial mixing, 1 x 1 convolution. The mixing is a 3 x 3 convolution or
max pooling over 3 x 3 at stride 1, which has no weights to train and belongs to the unit before it. MNIST at 14 x 14 pixels,
10,000 images; 400 steps of `tpsgd` with Adam, of 64 images. Two learning rates; 1,000 validation images choose on seed 0, and
two seeds are tested on 2,000 images. Also: the parameters of ResNet-50 with this change, counted from its shapes, beside
those that the paper's repository prints.
"""

import argparse
import pathlib
import sys
import time

import torch
from torch import nn

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import mnist
from record import earlier, save

NAME = "select_pooling"
METHODS = {
    "tpsgd": ({}, 400, (3e-3, 1e-2)),
}


def network(mixing, seed):
    def mix(width):
        return nn.Conv2d(width, width, 3, padding=1) if mixing == "convolution" else nn.MaxPool2d(3, 1, 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), mix(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 1), nn.ReLU(), mix(32), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(16 * 49, 10)),
        )


def resnet50(mixing):
    """Parameters in millions: torchvision's ResNet-50, its 3 x 3 convolutions replaced by pooling; "hybrid" keeps those at
    stride 2 (behind average pooling)."""
    total, inside = 64 * 3 * 49 + 2 * 64, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            keeps = mixing == "convolution" or (mixing == "hybrid" and stage > 0 and block == 0)
            total += inside * width + 2 * width + (9 * width**2 + 2 * width) * keeps + 4 * width * width + 8 * width
            if block == 0:
                total += inside * 4 * width + 8 * width
            inside = 4 * width
    return round((total + 2048 * 1000 + 1000) / 1e6, 3)


def images(folder):
    found = []
    for split in ("train", "t10k"):
        x, y = mnist.read(split, folder)
        found.append((nn.functional.avg_pool2d(x, 2), y))
    (x, y), (u, v) = found
    return {"train": (x[:10000], y[:10000]), "chosen_on": (x[-1000:], y[-1000:]), "test": (u[:2000], v[:2000])}


@torch.no_grad()
def accuracy(net, part):
    return round(float((net(part[0]).argmax(1) == part[1]).float().mean()), 4)


def run(parts, mixing, method, rate, seed, steps):
    net = network(mixing, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    x, y = parts["train"]
    labels = None
    with localplug.attach(net, method, optimizer, seed=seed, targets=lambda args, kwargs: labels, **METHODS[method][0]):
        for _ in range(steps):
            rows = torch.randint(len(x), (64,), generator=generator)
            labels = y[rows]
            nn.functional.cross_entropy(net(x[rows]), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"validation": accuracy(net, parts["chosen_on"]), "test": accuracy(net, parts["test"])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=mnist.DATA)
    parser.add_argument("--quick", action="store_true", help="few steps, nothing saved")
    options = parser.parse_args()
    result = earlier(
        NAME, {"batch": 64, "methods": {m: [s, list(r)] for m, (_, s, r) in METHODS.items()}}, quick=options.quick
    )
    parts, runs = images(options.data), result.setdefault("runs", {})
    result["resnet50_millions"] = {mixing: resnet50(mixing) for mixing in ("convolution", "pooling", "hybrid")}
    result["published_millions"] = {"convolution": 25.6, "pooling": 14.2, "hybrid": 17.3}
    result["parameters"] = {
        mixing: sum(p.numel() for p in network(mixing, 0).parameters()) for mixing in ("convolution", "pooling")
    }
    for seed in (0,) if options.quick else (0, 1):
        for method, (_, steps, rates) in METHODS.items():
            for mixing in ("convolution", "pooling"):
                first = {rate: runs.get(f"{method}, {mixing}, {rate}, seed 0") for rate in rates}
                some = rates if seed == 0 else [max(rates, key=lambda rate: first[rate]["validation"])]
                for rate in some:
                    name = f"{method}, {mixing}, {rate}, seed {seed}"
                    if name not in runs:
                        start = time.process_time()
                        runs[name] = run(parts, mixing, method, rate, seed, 5 if options.quick else steps)
                        print(name, runs[name], f"{time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
                        if not options.quick:
                            save(NAME, result)
    table = result["table"] = {}
    for method, (_, _, rates) in METHODS.items():
        for mixing in ("convolution", "pooling"):
            best = max(rates, key=lambda rate: runs[f"{method}, {mixing}, {rate}, seed 0"]["validation"])
            tests = [runs[n]["test"] for s in (0, 1) if (n := f"{method}, {mixing}, {best}, seed {s}") in runs]
            table[f"{method}, {mixing}"] = {
                "rate": best,
                "test": round(sum(tests) / len(tests), 4),
                "seeds": len(tests),
            }
    if options.quick:
        print(result)
    else:
        save(NAME, result)
