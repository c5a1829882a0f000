"""M-FAC: what it makes of an estimate along random directions, and what it trains, by three sources of gradients.

    python tests/benchmarks/updates_m_fac.py --data FOLDER [--quick]

M-FAC has the paper's damping of 1e-5, alone and with the estimate's variance added.

cosines: the gradient g of a logistic loss of 2,000 weights at 0 (1,000 rows), 40 estimates of it along q random directions
(by exact slopes), a window of 32. cos(step, estimate) is 1 where M-FAC changes nothing; cos(step, g) less than cos(estimate,
g) says that it harms. digits: the bench's network of two hidden layers of 64, batches of 128, 400 steps, one unit for each
layer, a window of 32; by backpropagation, by local losses (dgl: each unit learns from a head of its own) and by zeroth order.
Each rule has the best of its learning rates by validation loss; the chosen one is tested once. FOLDER has
digits/digits.csv.gz.
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

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

STEPS = 400
RATES = {
    "sgd": (0.1, 0.3, 1.0),
    "adam": (1e-3, 3e-3, 1e-2),
    "m-fac": (1e-4, 1e-3, 1e-2),
}
ZEROTH = {  # one direction bears smaller steps
    "sgd": (4e-4, 1.2e-3),
    "m-fac": (1e-6, 1e-5, 1e-4),
    "m-fac, variance": (0.3, 1.0, 3.0),
}


def optimizer_of(rule, model, lr, method):
    if rule in ("sgd", "adam"):
        return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule](model.parameters(), lr=lr)
    units = [{"params": list(m.parameters())} for m in model.modules() if isinstance(m, nn.Linear)]
    variance = (lambda: method.variance) if rule.endswith("variance") else None
    return localplug.update_rule("m-fac")(units, lr=lr, window=32, variance=variance)


def cosines(q):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2000))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 2000, generator=generator)
    x = x * (x @ torch.randn(2000, generator=generator)).sign()[:, None]
    g, found = -0.5 * x.mean(0), {}
    tr_cov = float(g.square().sum()) * 2001 / q
    for name, variance in (("alone", None), ("variance handed over", lambda: tr_cov)):
        model, rows = Wide(), []
        rule = localplug.update_rule("m-fac")(model.parameters(), lr=1.0, window=32, variance=variance)
        noise = torch.Generator().manual_seed(1)
        for k in range(40):
            z = torch.randn(q, 2000, generator=noise)
            model.w.grad = (z @ g) @ z / q
            with torch.no_grad():
                model.w.zero_()
            rule.step()
            if k >= 32:
                triple = -model.w.detach(), model.w.grad, g
                rows.append(
                    [float(F.cosine_similarity(triple[a], triple[b], dim=0)) for a, b in ((0, 1), (1, 2), (0, 2))]
                )
        mean = torch.tensor(rows).mean(0).tolist()
        found[name] = dict(zip(("step, estimate", "estimate, g", "step, g"), mean, strict=True))
    return found | {"rho": 2001 / q, "g squared over d": float(g.square().mean())}


def digits(parts, source, rule, lr, seed=0):
    model = TASK.fresh_model(seed)
    batches = torch.Generator().manual_seed(seed + 1000)
    engine = method = None
    if source.startswith("zeroth order"):
        q = int(source.rsplit("=", 1)[1])
        estimator = localplug.estimator("two-sided", eps=1e-3, num_directions=q)
        method = localplug.method("zo", estimator=estimator, update="trainer")
    elif source == "dgl":
        method = localplug.method("dgl")
    optimizer = optimizer_of(rule, model, lr, method)
    if method is not None:
        engine = localplug.Engine(model, method, optimizer, seed=seed, max_bad_steps=STEPS + 1)
    x, y = parts.train.columns
    for _ in range(STEPS):
        rows = torch.randint(1097, (128,), generator=batches)
        if engine is not None:
            engine.step(lambda rows=rows: F.cross_entropy(model(x[rows]), y[rows]), optimizer, targets=y[rows])
            continue
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        if not math.isfinite(float(loss.detach())):
            break
    return {"lr": lr, **measured(model, *parts.validation.columns)}, model


def measured(net, x, y):
    net.eval()
    with torch.no_grad():
        out = net(x)
    loss = float(F.cross_entropy(out, y))
    return {
        "loss": loss if math.isfinite(loss) else None,
        "accuracy": round(float((out.argmax(1) == y).float().mean()), 4),
    }


def worth(row):
    return -math.inf if row["loss"] is None else -row["loss"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true", help="20 steps, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("localplug").setLevel(logging.ERROR)
    if arguments.quick:
        STEPS = 20
    TASK = localplug.task("digits", data=arguments.data)
    parts = TASK.parts(0)
    test = parts.test.look().columns
    result = earlier("updates_m_fac", {"steps": STEPS, "window": 32, "seed": 0}, quick=arguments.quick)

    def kept(key, make):
        if key in result:
            return
        began = time.process_time()
        result[key] = make() | {"seconds": round(time.process_time() - began, 1)}
        print(key, result[key], flush=True)
        if not arguments.quick:
            save("updates_m_fac", result)

    def chosen(source, rule, rates):
        row, model = max((digits(parts, source, rule, lr) for lr in rates), key=lambda pair: worth(pair[0]))
        return row | {"test_accuracy": measured(model, *test)["accuracy"]}

    for q in (1, 16, 256):
        kept(f"cosines, q={q}", lambda q=q: cosines(q))
    for source in ("backpropagation", "dgl", "zeroth order, q=1"):
        for rule, rates in (ZEROTH if source.startswith("zeroth") else RATES).items():
            kept(f"digits, {source}, {rule}", lambda s=source, r=rule, rates=rates: chosen(s, r, rates))
