"""Which weights should a zeroth-order run train? SaRA's smallest, the largest, random ones or all, on a changed task.

    python tests/benchmarks/select_masks.py [--data ../shared/data/mnist] [--quick]

An MLP 64-128-128-10 learns MNIST at 8 x 8 pixels by backpropagation (the old task). Then `mezo` (q = 1, 1,000 steps of 64
images) teaches it the same images turned by 90 degrees (the new task) with each mask, a tenth of the weights, at each of three
learning rates. 1,000 validation images choose two of them on seed 0: the best on the new task, and the best of those that keep
85 % on the old one. The other two seeds of directions run at these. Test images take no part in a choice. The
network, the images and the directions of a seed are the same in all ways.

Also: what setting the smallest tenth to zero does to the old task, and which weights the mask takes. Runs that are in
results/select_masks.json already are not made again.
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

NAME = "select_masks"
SHARE, SEEDS, KEPT = 0.1, 3, 0.85
WAYS = {
    "smallest": {"parameters": "sara:0.1"},
    "largest": {"which": "largest"},
    "random": {"parameters": "random:0.1"},
    "all": {},
    "smallest, chosen anew every 250 steps": {"parameters": "sara:0.1:250"},
    "smallest, low rank 0.05": {"parameters": "sara:0.1", "low_rank": 0.05},
}
RATES = {way: (1e-4, 3e-4, 1e-3) if way == "all" else (3e-3, 1e-2, 2e-2) for way in WAYS}


def network():
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def images(folder):
    """{part: (x (N, 64), y)}; the file's training images are cut into those to train and those to validate."""
    found = {}
    for split in ("train", "t10k"):
        x, y = mnist.read(split, folder)
        small = nn.functional.adaptive_avg_pool2d(x.view(-1, 1, 28, 28), 8).flatten(1)
        found[split] = (small, y)
    x, y = found["train"]
    return {
        "train": (x[:10000], y[:10000]),
        "chosen_on": (x[-1000:], y[-1000:]),
        "test": tuple(t[:2000] for t in found["t10k"]),
    }


def turned(part):
    x, y = part
    return torch.rot90(x.view(-1, 8, 8), 1, (1, 2)).reshape(len(x), 64), y


@torch.no_grad()
def accuracy(net, part):
    x, y = part
    return round(float((net(x).argmax(1) == y).float().mean()), 4)


def old_network(train, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
    optimizer, generator = torch.optim.Adam(net.parameters(), lr=1e-3), torch.Generator().manual_seed(seed)
    x, y = train
    for _ in range(2000):
        rows = torch.randint(len(x), (64,), generator=generator)
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def method(way):
    options = dict(WAYS[way])
    if options.pop("which", ""):
        options["parameters"] = localplug.selector("magnitude", share=SHARE, which="largest")
    weight = options.pop("low_rank", 0.0)
    update = localplug.update("low-rank", weight=weight) if weight else "sgd"
    return localplug.method("zo", estimator=localplug.estimator("two-sided", eps=1e-3), update=update, **options)


def run(old, parts, way, rate, seed, steps):
    """What one run reaches on both tasks, on the validation images and on the test images."""
    net = network()
    net.load_state_dict(old)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    engine = localplug.Engine(net, method(way), optimizer, seed=seed, max_bad_steps=steps)
    generator = torch.Generator().manual_seed(1000 + seed)
    x, y = turned(parts["train"])
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=generator)
        engine.step(lambda rows=rows: nn.functional.cross_entropy(net(x[rows]), y[rows]), optimizer)
    with torch.no_grad():
        changed = sum(int((p != old[n]).sum()) for n, p in net.named_parameters())
    engine.close()
    return {
        "new": accuracy(net, turned(parts["chosen_on"])),
        "old": accuracy(net, parts["chosen_on"]),
        "new_test": accuracy(net, turned(parts["test"])),
        "old_test": accuracy(net, parts["test"]),
        "weights_changed": changed,
    }


def mask_of(old):
    """What the smallest tenth is: of which matrices, how much of it looks at dead pixels, and whether it matters."""
    net = network()
    net.load_state_dict(old)
    selector = localplug.selector("sara", share=SHARE)
    named = list(net.named_parameters())
    selector.setup(localplug.Run(net, named, 0), range(len(named)))
    masks = [selector.mask(i, p.data.flatten(), 0, 0).view_as(p) for i, (_, p) in enumerate(named)]
    return net, named, masks


def chosen_rates(runs, way):
    """(best on the new task, best of those that keep the old one or None), by the validation images of seed 0."""
    first = [r for r in runs if r["way"] == way and r["seed"] == 0]
    if len(first) < len(RATES[way]):
        return ()
    keeping = [r for r in first if r["old"] >= KEPT]
    best = [max(some, key=lambda r: r["new"])["rate"] if some else None for some in (first, keeping)]
    return tuple(best)


def table(runs):
    """{way: {which rate: means over seeds on the test images}}."""
    found = {}
    for way in WAYS:
        for what, rate in zip(("best", "keeps 85 %"), chosen_rates(runs, way), strict=False):
            some = [r for r in runs if (r["way"], r["rate"]) == (way, rate)]
            if not some:
                continue
            new = [r["new_test"] for r in some]
            found.setdefault(way, {})[what] = {
                "rate": rate,
                "seeds": len(some),
                "new_test": round(sum(new) / len(new), 4),
                "spread": round(max(new) - min(new), 4),
                "old_test": round(sum(r["old_test"] for r in some) / len(some), 4),
                "weights_changed": max(r["weights_changed"] for r in some),
            }
    return found


def jobs(runs, seeds):
    """(way, rate, seed) of what is not done yet: all rates of seed 0, then the chosen ones of the others."""
    done = {(r["way"], r["rate"], r["seed"]) for r in runs}
    for way in WAYS:
        yield from ((way, rate, 0) for rate in RATES[way] if (way, rate, 0) not in done)
    for seed in range(1, seeds):
        for way in WAYS:
            rates = [rate for rate in dict.fromkeys(chosen_rates(runs, way)) if rate is not None]
            yield from ((way, rate, seed) for rate in rates if (way, rate, seed) not in done)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=mnist.DATA)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new run after so long")
    parser.add_argument("--quick", action="store_true", help="few steps, nothing saved")
    options = parser.parse_args()
    steps = 50 if options.quick else 1000
    setting = {"share": SHARE, "steps": steps, "batch": 64, "network": [64, 128, 128, 10]}
    result = earlier(NAME, setting, quick=options.quick)
    parts = images(options.data)
    net = old_network(parts["train"])
    old = {k: v.clone() for k, v in net.state_dict().items()}
    if "before" not in result:
        pruned, named, masks = mask_of(old)
        dead = parts["train"][0].std(0) < 1e-3
        result["before"] = {
            "old_test": accuracy(net, parts["test"]),
            "new_test": accuracy(net, turned(parts["test"])),
            "mask_by_parameter": {n: round(float(m.float().mean()), 3) for (n, _), m in zip(named, masks, strict=True)},
            "dead_pixels": int(dead.sum()),
            "mask_at_dead_pixels": round(float(masks[0][:, dead].sum()) / sum(int(m.sum()) for m in masks), 4),
        }
        with torch.no_grad():
            for (_, p), m in zip(named, masks, strict=True):
                p[m] = 0
        result["before"]["old_test_with_the_smallest_tenth_at_zero"] = accuracy(pruned, parts["test"])
    runs, end = result.setdefault("runs", []), time.time() + 60 * options.minutes
    while time.time() < end and (job := next(jobs(runs, 1 if options.quick else SEEDS), None)) is not None:
        way, rate, seed = job
        start = time.process_time()
        runs.append({"way": way, "rate": rate, "seed": seed, **run(old, parts, way, rate, seed, steps)})
        print(
            job, runs[-1]["new"], runs[-1]["old"], f"{time.process_time() - start:.1f} s", file=sys.stderr, flush=True
        )
        result["table"] = table(runs)
        if not options.quick:
            save(NAME, result)
    print(result["before"], result["table"], file=sys.stderr)
