"""relu-admm and relu-scp: objectives against CVXPY, and networks against Adam on the same architecture and objective.

    python tests/benchmarks/convex.py [--seed 0] [--only agreement mnist cifar vowel]

agreement: 60 examples, 6 features, float64; every value from the solver, its bound and CVXPY (pip install cvxpy). mnist: 3
against 8, 2,000 training rows; cifar: airplane against automobile, the 762 training rows at hand (pip install pillow).
Both in float32, without biases; rows are centred and divided by their mean length. The last fifth of the training rows is for
validation: beta is chosen there, and with it Adam's learning rate; the network is then solved again on all training
rows and the test rows are looked at once. Adam has the width of the solver's network, the same loss and decay, full
batches, and as many seconds of processor time as the solver took. `ratio` is the time Adam took until the solver's objective,
as a fraction of the solver's time; null where it did not get there in PATIENCE times as long. vowel: UCI's 11 vowels,
528 rows of 8 speakers to train on and 462 of 7 others to test on, standardised, with biases; the last two training
speakers are for validation. Seconds are of one thread.
"""

import argparse
import gzip
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from cifar import images
from record import save

DATA = pathlib.Path(__file__).parents[3] / "shared/data"
BETAS = (0.3, 1.0, 3.0)
RATES = (1e-3, 3e-3, 1e-2)
PATIENCE = 3


def agreement(seed):
    import cvxpy as cp

    from localplug_convex import patterns

    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(60, 6, dtype=torch.float64, generator=generator)
    y = torch.randn(60, dtype=torch.float64, generator=generator)
    table = {}
    for P, beta in ((4, 0.1), (8, 0.1), (8, 1.0), (50, 0.1)):
        began = time.process_time()
        solver = localplug.solver(
            "relu-admm", beta=beta, num_patterns=P, tolerance=1e-9, max_iterations=20_000, seed=seed
        )
        solution = solver(X, y)
        seconds = time.process_time() - began
        S = patterns.sample(X, P, seed)[0].numpy()
        V, W = cp.Variable((6, S.shape[1])), cp.Variable((6, S.shape[1]))
        fit = cp.sum(cp.multiply(S, X.numpy() @ (V - W)), axis=1)
        norms = cp.sum(cp.norm(V, axis=0)) + cp.sum(cp.norm(W, axis=0))
        cones = [cp.multiply(2 * S - 1, X.numpy() @ block) >= 0 for block in (V, W)]
        reference = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(fit - y.numpy()) + beta * norms), cones)
        table[f"relu-admm, P={P}, beta={beta}"] = figures(solution, seconds) | {
            "cvxpy": float(reference.solve(solver="CLARABEL"))
        }
    labels, Phi = (y > 0).long(), None
    for loss in ("squared", "hinge", "bce"):
        began = time.process_time()
        solver = localplug.solver("relu-scp", beta=0.5, num_neurons=200, loss=loss, max_iterations=20_000, seed=seed)
        solution = solver(X, y if loss == "squared" else labels)
        seconds = time.process_time() - began
        if Phi is None:
            u = patterns.gates(200, 6, seed, X)
            Phi = (X @ (u / u.norm(dim=0))).clamp(min=0).numpy()
        alpha = cp.Variable(200)
        f, sign = Phi @ alpha, 2 * labels.numpy() - 1
        value = {
            "squared": lambda f=f: 0.5 * cp.sum_squares(f - y.numpy()),
            "hinge": lambda f=f, sign=sign: cp.sum(cp.pos(1 - cp.multiply(sign, f))),
            "bce": lambda f=f, sign=sign: cp.sum(cp.logistic(-cp.multiply(sign, f))),
        }[loss]()
        reference = cp.Problem(cp.Minimize(value + 0.5 * cp.norm1(alpha)))
        table[f"relu-scp, {loss}, M=200, beta=0.5"] = figures(solution, seconds) | {
            "cvxpy": float(reference.solve(solver="CLARABEL"))
        }
    return table


def figures(solution, seconds):
    return {
        "objective": solution.objective,
        "network_objective": solution.network_objective,
        "lower_bound": solution.lower_bound,
        "iterations": solution.iterations,
        "converged": solution.converged,
        "neurons": solution.network[0].weight.shape[0],
        "seconds": round(seconds, 2),
    }


def mnist():
    def read(split):
        with gzip.open(DATA / f"mnist/{split}-images-idx3-ubyte.gz") as f:
            x = torch.frombuffer(bytearray(f.read()[16:]), dtype=torch.uint8).view(-1, 784)
        with gzip.open(DATA / f"mnist/{split}-labels-idx1-ubyte.gz") as f:
            y = torch.frombuffer(bytearray(f.read()[8:]), dtype=torch.uint8)
        chosen = (y == 3) | (y == 8)
        return x[chosen].float(), (y[chosen] == 8).long()

    x, y = read("train")
    return x[:2000], y[:2000], *read("t10k")


def cifar():
    found = []
    for split in ("train", "test"):
        x, y = images(split)
        found += [x[y < 2].flatten(1) * 255, y[y < 2]]
    return tuple(found)


def vowel():
    lines = (DATA / "vowel/uci_vowel.csv").read_text().split()[1:]
    rows = torch.tensor([[float(cell) for cell in line.split(";")] for line in lines])
    train = rows[:, -1] == 1
    x, y = rows[:, 1:-1], rows[:, 0].long() - 1
    x = (x - x[train].mean(0)) / x[train].std(0)
    return x[train], y[train], x[~train], y[~train]


def accuracy(network, x, y):
    with torch.no_grad():
        out = network(x)
    return float(((out > 0).squeeze(1).long() if out.shape[1] == 1 else out.argmax(1)).eq(y).float().mean())


def decayed(network, loss, x, y, beta):
    return loss(network(x), y) + 0.5 * beta * sum(p.square().sum() for p in network.parameters())


def half_squares(out, y):
    target = (2.0 * y - 1).unsqueeze(1) if out.shape[1] == 1 else 2.0 * F.one_hot(y, out.shape[1]) - 1
    return 0.5 * (out - target).square().sum()


def logistic(out, y):
    return F.softplus(-(2.0 * y - 1).unsqueeze(1) * out).sum()


def cross_entropy(out, y):
    return F.cross_entropy(out, y, reduction="sum")


def adam(like, loss, x, y, beta, lr, seconds, seed, goal=None):
    """A network as wide as `like`, after so many seconds; and the fraction of them it took to reach the goal."""
    torch.manual_seed(seed)
    width, biased = like[0].weight.shape[0], like[0].bias is not None
    network = nn.Sequential(
        nn.Linear(x.shape[1], width, bias=biased), nn.ReLU(), nn.Linear(width, like[2].weight.shape[0], bias=False)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    began, steps, reached, kept = time.process_time(), 0, None, None
    while True:
        spent = time.process_time() - began
        if kept is None and spent >= seconds:
            kept = [p.detach().clone() for p in network.parameters()]
            value_kept, steps_kept = float(decayed(network, loss, x, y, beta).detach()), steps
        if kept is not None and (goal is None or reached is not None or spent >= PATIENCE * seconds):
            break
        optimizer.zero_grad()
        value = decayed(network, loss, x, y, beta)
        if goal is not None and reached is None and value.item() <= goal:
            reached = spent / seconds
        value.backward()
        optimizer.step()
        steps += 1
    with torch.no_grad():
        for p, k in zip(network.parameters(), kept, strict=True):
            p.copy_(k)
    return network, {"network_objective": value_kept, "steps": steps_kept, "ratio": reached}


def compare(x, y, x_test, y_test, num_validation, methods, seed):
    """Choose beta (and Adam's rate) on the last training rows, solve on all of them, look at the test rows once."""
    table = {}
    fit, held = slice(0, len(x) - num_validation), slice(len(x) - num_validation, None)
    for title, (name, loss, options) in methods.items():
        tried = {}
        for beta in BETAS:
            began = time.process_time()
            solution = localplug.solver(name, beta=beta, seed=seed, **options)(x[fit], y[fit])
            seconds = time.process_time() - began
            tried[beta] = accuracy(solution.network, x[held], y[held])
            for lr in RATES:
                network, _ = adam(solution.network, loss, x[fit], y[fit], beta, lr, 0.5 * seconds, seed)
                tried[beta, lr] = accuracy(network, x[held], y[held])
        beta = max(BETAS, key=lambda b: tried[b])
        began = time.process_time()
        solution = localplug.solver(name, beta=beta, seed=seed, **options)(x, y)
        seconds = time.process_time() - began
        row = figures(solution, seconds) | {
            "beta": beta,
            "test_accuracy": accuracy(solution.network, x_test, y_test),
            "train_accuracy": accuracy(solution.network, x, y),
        }
        lr = max(RATES, key=lambda r: tried[beta, r])
        network, found = adam(solution.network, loss, x, y, beta, lr, seconds, seed, goal=solution.network_objective)
        found |= {"lr": lr, "test_accuracy": accuracy(network, x_test, y_test)}
        table[title] = row | {
            "adam, same beta": found,
            "validation": {str(key): round(value, 4) for key, value in tried.items()},
        }
        print(title, table[title], flush=True)
    return table


def prepared(x, y, x_test, y_test):
    mean = x.mean(0)
    x, x_test = x - mean, x_test - mean
    length = x.norm(dim=1).mean()
    return x / length, y, x_test / length, y_test


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=["agreement", "mnist", "cifar", "vowel"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seed, result = arguments.seed, {}
    ADMM = {"num_patterns": 20, "max_iterations": 100}
    SCP = {"num_neurons": 1000, "max_iterations": 300, "tolerance": 1e-3}
    if "agreement" in arguments.only:
        result["agreement"] = agreement(seed)
        print(result["agreement"], flush=True)
    for task, read in (("mnist", mnist), ("cifar", cifar)):
        if task in arguments.only:
            data = prepared(*read())
            methods = {
                "relu-admm": ("relu-admm", half_squares, ADMM),
                "relu-scp, bce": ("relu-scp", logistic, SCP | {"loss": "bce"}),
            }
            result[task] = compare(*data, len(data[0]) // 5, methods, seed)
    if "vowel" in arguments.only:
        methods = {
            "relu-admm": ("relu-admm", half_squares, {"num_patterns": 50, "max_iterations": 300, "bias": True}),
            "relu-scp, cross_entropy": ("relu-scp", cross_entropy, SCP | {"loss": "cross_entropy", "bias": True}),
        }
        result["vowel"] = compare(*vowel(), 132, methods, seed)
    save("convex" if len(result) == 4 else f"convex_{'_'.join(result)}", {"seed": seed, **result})
