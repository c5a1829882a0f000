"""Self-Tuning Networks: hyper-parameters found in one run, against the exact optimum and against a grid of runs.

    python tests/benchmarks/updates_self_tuning.py --data FOLDER [--quick]

ridge: 60 rows and 40 features, w normal times 0.5, noise 2, 60 rows to validate; lambda from exp(-6). The validation loss of
the exact solution at lambda: where it began, at its best, and at the lambda found; weights and response by Adam on gradients,
2,000 steps. ridge without backpropagation: 12 rows and 6 features, weights and response by Adam on estimates of mezo with 6
directions, 3,000 steps. digits: 200 rows, 300 to validate, 400 to test, a network of two hidden layers of 64 with dropout
behind each, AdamW at 1e-3, batches of 64, 1,500 steps. The grid has each pair of dropout and label smoothing constant; the
best of it by validation loss, and a self-tuning run from either end, are tested once. `again` is the plain network trained
anew at the values found. FOLDER has digits/digits.csv.gz.
"""

import argparse
import logging
import math
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_updates.self_tuning import HyperParameter, SelfTuning

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

GRID = {"dropout": (0.0, 0.2, 0.4, 0.6, 0.8), "smoothing": (0.0, 0.1)}
SHORTER = 1


class Penalty:
    weight = 0.0


def ridge(n, d, num_validation, seed):
    g = torch.Generator().manual_seed(seed)
    rows = n + num_validation
    X, w = torch.randn(rows, d, generator=g), torch.randn(d, generator=g) * 0.5
    y = X @ w + 2 * torch.randn(rows, generator=g)
    X, y, Xv, yv = X[:n], y[:n], X[n:], y[n:]

    def exact(u):
        w = torch.linalg.solve(X.T @ X / n + math.exp(u) * torch.eye(d), X.T @ y / n)
        return float((Xv @ w - yv).square().mean())

    return X, y, Xv, yv, exact


def tuned_ridge(n, d, seed, *, q=0, steps, rate, lr, start):
    X, y, Xv, yv, exact = ridge(n, d, 60, seed)
    penalty, model = Penalty(), nn.Sequential(nn.Linear(d, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    decay = HyperParameter("decay", [(penalty, "weight")], start=math.exp(start))
    tuner = SelfTuning(
        model, [decay], lambda step: (model(Xv)[:, 0] - yv).square().mean(), warmup=200, lr=lr, seed=seed
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    engine = None
    if q:
        method = localplug.method("mezo", num_directions=q, update="trainer")
        engine = localplug.Engine(model, method, optimizer, seed=seed)

    def loss():
        return (model(X)[:, 0] - y).square().mean() + penalty.weight * model[0].weight.square().sum()

    with tuner.attach(optimizer):
        for _ in range(steps // SHORTER):
            if engine is not None:
                engine.step(loss, optimizer)
                continue
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    u = math.log(tuner.values["decay"])
    best = min((k / 100 for k in range(-800, 400)), key=exact)
    return {
        "log_lambda": {"start": start, "best": best, "found": u},
        "validation_loss": {"start": exact(start), "best": exact(best), "found": exact(u)},
        "over_best": exact(u) / exact(best) - 1,
    }


def network(seed):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10)
    )
    with torch.no_grad():
        for p in net.parameters():
            p.copy_((2 * torch.rand(p.shape, generator=g) - 1) / 8)
    return net


def digits(parts, seed, dropout, smoothing, *, tune):
    torch.manual_seed(seed)  # dropout's
    (x, y), (xv, yv) = (tuple(c[:200] for c in parts.train.columns), parts.validation.columns)
    net, loss = network(seed), nn.CrossEntropyLoss(label_smoothing=smoothing)
    drops = [m for m in net if isinstance(m, nn.Dropout)]
    for m in drops:
        m.p = dropout
    tuner = None
    if tune:
        hypers = [
            HyperParameter("dropout", [(m, "p") for m in drops], start=dropout, high=0.95),
            HyperParameter("smoothing", [(loss, "label_smoothing")], start=smoothing, high=0.5),
        ]
        tuner = SelfTuning(net, hypers, lambda step: F.cross_entropy(net(xv), yv), warmup=100, lr=0.05, seed=seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    if tuner is not None:
        tuner.attach(optimizer)
    generator = torch.Generator().manual_seed(seed + 1000)
    for _ in range(1500 // SHORTER):
        rows = torch.randint(200, (64,), generator=generator)
        optimizer.zero_grad()
        loss(net(x[rows]), y[rows]).backward()
        optimizer.step()
    row = {"dropout": dropout, "smoothing": smoothing}
    if tuner is not None:
        row |= {"found": tuner.fold()}
    net.eval()
    return row | {"validation_loss": float(F.cross_entropy(net(xv), yv).detach())}, net


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("localplug").setLevel(logging.ERROR)
    if arguments.quick:
        SHORTER = 10
    parts = localplug.task("digits", data=arguments.data).parts(0)
    x_test, y_test = parts.test.look().columns
    name = "updates_self_tuning"
    result = earlier(name, {"grid": {k: list(v) for k, v in GRID.items()}}, quick=arguments.quick)

    def tested(net):
        with torch.no_grad():
            out = net(x_test)
        accuracy = float((out.argmax(1) == y_test).float().mean())
        return {"test_loss": float(F.cross_entropy(out, y_test)), "test_accuracy": round(accuracy, 4)}

    def grid():
        runs = [digits(parts, 0, p, s, tune=False) for p in GRID["dropout"] for s in GRID["smoothing"]]
        best, net = min(runs, key=lambda pair: pair[0]["validation_loss"])
        return {"runs": [row for row, _ in runs], "best": best | tested(net)}

    def tuned(dropout, smoothing):
        row, net = digits(parts, 0, dropout, smoothing, tune=True)
        again, plain = digits(parts, 0, *row["found"].values(), tune=False)
        return row | tested(net) | {"again": again | tested(plain)}

    jobs = {
        **{
            f"ridge, seed {seed}": lambda seed=seed: tuned_ridge(
                60, 40, seed, steps=2000, rate=0.01, lr=0.03, start=-6.0
            )
            for seed in range(3)
        },
        "digits, grid": grid,
        "digits, self-tuning from 0.05": lambda: tuned(0.05, 0.02),
        "digits, self-tuning from 0.8": lambda: tuned(0.8, 0.2),
        **{
            f"ridge without backpropagation, seed {seed}": lambda seed=seed: tuned_ridge(
                12, 6, seed, q=6, steps=3000, rate=0.02, lr=0.03, start=-5.0
            )
            for seed in range(3)
        },
    }
    for key, job in jobs.items():
        if key in result:
            continue
        began = time.process_time()
        result[key] = job() | {"seconds": round(time.process_time() - began, 1)}
        print(key, result[key], flush=True)
        if not arguments.quick:
            save(name, result)
