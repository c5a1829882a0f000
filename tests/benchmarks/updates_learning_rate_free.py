"""Prodigy and D-Adaptation on gradients with more and less noise: what is left of a learning rate that finds itself.

    python tests/benchmarks/updates_learning_rate_free.py --data FOLDER [--seeds 1] [--quick]

FOLDER has digits/digits.csv.gz, which scikit-learn's package carries. rho is (kappa - 1) / q, the squared error of an estimate
along q random directions over the squared gradient; 0 for the gradient itself, by backpropagation.

quadratic: 1/2 sum h_i (w_i - t_i)^2, 100 weights, h from 0.1 to 1, w from 0, t standard normal: the loss over that of the
start after 400 steps. logistic: 500 weights from 0, 1,000 rows of standard normal inputs that a hyperplane separates, full
batches, 400 steps: the loss, which begins at ln 2. digits: a 64-32-10 network of 2,410 weights, 1,097 rows in batches of 128,
400 steps: validation loss and accuracy. `found` is d. sgd has the best of three constant learning rates on the same
estimates, chosen by what is shown: a bound for what the noise lets any rate reach, and no fair competitor.
"""

import argparse
import math
import pathlib
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

STEPS = 400
DIRECTIONS = {
    "quadratic": (0, 64, 16, 4, 1),
    "logistic": (0, 64, 16, 4, 1),
    "digits": (0, 1, 64),
}  # 0: the gradient itself
RULES = ("prodigy", "d-adaptation", "sgd")
RATES = {  # of sgd, times q / (d + q): beyond that it diverges along random directions
    "quadratic": (0.3, 1.0, 3.0),
    "logistic": (0.3, 3.0, 30.0),
    "digits": (0.3, 1.0, 3.0),
}


class Quadratic(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(100))
        self.h, self.t = torch.logspace(-1, 0, 100), torch.randn(100, generator=generator)

    def forward(self, batch):
        return 0.5 * (self.h * (self.w - self.t).square()).sum()


class Logistic(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(500))
        x = torch.randn(1000, 500, generator=generator)
        self.x = x * (x @ torch.randn(500, generator=generator)).sign()[:, None]

    def forward(self, batch):
        return F.softplus(-self.x @ self.w).mean()


class Digits(nn.Module):
    def __init__(self, generator, parts):
        super().__init__()
        self.train_rows, self.validation = parts.train.columns, parts.validation.columns
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        with torch.no_grad():
            for p in self.net.parameters():
                bound = p.shape[-1] ** -0.5 if p.dim() == 2 else 0.1
                p.copy_((2 * torch.rand(p.shape, generator=generator) - 1) * bound)

    def forward(self, batch):
        x, y = (column[batch] for column in self.train_rows)
        return F.cross_entropy(self.net(x), y)


def outcome(task, model, first):
    with torch.no_grad():
        if task != "digits":
            value = float(model(None)) / (first if task == "quadratic" else 1.0)
            return {"loss": value if math.isfinite(value) else None}
        x, y = model.validation
        out = model.net(x)
        loss = float(F.cross_entropy(out, y))
        return {
            "loss": loss if math.isfinite(loss) else None,
            "accuracy": round(float((out.argmax(1) == y).float().mean()), 4),
        }


def train(task, model, rule, q, rate, seed):
    generator = torch.Generator().manual_seed(seed + 1000)
    with torch.no_grad():
        first = float(model(torch.arange(8)))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=rate if rule == "sgd" else 1.0)
    update = None if rule == "sgd" else localplug.update(rule, max_noise=math.inf)
    rho, attached = 0.0, None
    if q:
        estimator = localplug.estimator("two-sided", eps=1e-3, num_directions=q)
        method = localplug.method("zo", estimator=estimator, update=update or "sgd")
        attached = localplug.attach(model, method, optimizer, seed=seed, max_bad_steps=10_000)
        rho = (sum(p.numel() for p in parameters) + 1) / q
    elif update is not None:
        optimizer = update._made([{"params": parameters}])
    try:
        for _ in range(STEPS):
            batch = torch.randint(1097, (128,), generator=generator) if task == "digits" else None
            loss = model(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not math.isfinite(float(loss.detach())):
                break
    finally:
        if attached is not None:
            attached.close()
    row = {"rho": rho, **outcome(task, model, first)}
    if rule == "sgd":
        return row | {"lr": rate}
    return row | {"found": update.distance if q else float(optimizer.param_groups[0]["d"])}


def made(task, seed, parts):
    generator = torch.Generator().manual_seed(seed)
    return (
        Digits(generator, parts)
        if task == "digits"
        else {"quadratic": Quadratic, "logistic": Logistic}[task](generator)
    )


def best(rows):
    return min(rows, key=lambda row: math.inf if row["loss"] is None else row["loss"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one seed, 20 steps, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        STEPS, arguments.seeds = 20, 1
    parts = localplug.task("digits", data=arguments.data).parts(0)
    name = "updates_learning_rate_free"
    result = earlier(
        name, {"steps": STEPS, "eps": 1e-3, "rates": {k: list(v) for k, v in RATES.items()}}, quick=arguments.quick
    )
    for seed in range(arguments.seeds):
        for task in ("quadratic", "logistic", "digits"):
            for q in DIRECTIONS[task]:
                for rule in RULES:
                    key = f"{task}, {rule}, {f'q={q}' if q else 'gradient'}, seed {seed}"
                    if key in result:
                        continue
                    began = time.process_time()
                    d = sum(p.numel() for p in made(task, seed, parts).parameters())
                    scale = q / (d + q) if q else 1.0
                    rates = [r * scale for r in RATES[task]] if rule == "sgd" else [1.0]
                    if rule == "sgd" and q == 64:
                        rates = rates[1:2]  # the dearest column: its middle rate alone
                    result[key] = best([train(task, made(task, seed, parts), rule, q, rate, seed) for rate in rates])
                    result[key]["seconds"] = round(time.process_time() - began, 1)
                    print(key, result[key], flush=True)
                    if not arguments.quick:
                        save(name, result)
