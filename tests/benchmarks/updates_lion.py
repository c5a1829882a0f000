"""Lion with a dense momentum and from seeds, along estimates of more and less noise.

    python tests/benchmarks/updates_lion.py --data FOLDER [--quick]

logistic: 500 weights from 0, 1,000 rows that a hyperplane separates, full batches, 400 steps: the loss, which begins at ln 2.
digits: a 64-32-10 network, batches of 128, 400 steps: validation loss and accuracy; FOLDER has digits/digits.csv.gz. Each has
the best of its learning rates, by the loss that is shown (logistic, where there is nothing else) or by the validation loss
(digits); the accuracy on the test rows is that of the chosen one. `state` counts the numbers that a checkpoint holds beside
weights: of a dense momentum one for each weight.
"""

import argparse
import math
import pathlib
import sys
import time

import torch
from torch.nn import functional as F

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save
from updates_learning_rate_free import Digits, Logistic

STEPS = 400
WAYS = {  # way: (q, update, learning rates of logistic and of digits)
    "gradient, lion": (0, "lion", (3e-3, 1e-2, 3e-2), (1e-3, 3e-3)),
    "gradient, sgd": (0, "sgd", (3.0, 30.0), (0.3, 1.0)),
    "q=10, lion": (10, "lion", (1e-3, 3e-3, 1e-2), (3e-4, 1e-3)),
    "q=10, lion-seeds": (10, "lion-seeds", (1e-3, 3e-3, 1e-2), (3e-4, 1e-3)),
    "q=10, sign": (10, "sign", (1e-3, 3e-3, 1e-2), (3e-4, 1e-3)),
    "q=10, sgd": (10, "sgd", (0.06, 0.6), (4e-3, 1.2e-2)),
    "q=1, lion": (1, "lion", (3e-4, 1e-3, 3e-3), (1e-4, 3e-4)),
    "q=1, lion-seeds": (1, "lion-seeds", (3e-4, 1e-3, 3e-3), (1e-4, 3e-4)),
    "q=1, sgd": (1, "sgd", (0.006, 0.06), (4e-4, 1.2e-3)),
}


def train(task, parts, q, update, lr, seed):
    generator = torch.Generator().manual_seed(seed)
    model = Digits(generator, parts) if task == "digits" else Logistic(generator)
    batches = torch.Generator().manual_seed(seed + 1000)
    parameters = list(model.parameters())
    dense = update == "lion"
    optimizer = (localplug.update_rule("lion") if dense else torch.optim.SGD)(parameters, lr=lr)
    attached, state = None, sum(p.numel() for p in parameters) if dense else 0
    if q:
        rule = localplug.update("trainer" if dense else update)
        estimator = localplug.estimator("two-sided", eps=1e-3, num_directions=q)
        method = localplug.method("zo", estimator=estimator, update=rule)
        attached = localplug.attach(model, method, optimizer, seed=seed)
    for _ in range(STEPS):
        batch = torch.randint(1097, (128,), generator=batches) if task == "digits" else None
        optimizer.zero_grad()
        model(batch).backward()
        optimizer.step()
    if attached is not None:
        attached.close()
        if not dense:
            state = sum(len(row) for row in rule.state_dict().get("past", []))
    row = {"lr": lr, "state": state}
    with torch.no_grad():
        if task == "logistic":
            return row | {"loss": float(model(None))}, model
        x, y = model.validation
        out = model.net(x)
        accuracy = float((out.argmax(1) == y).float().mean())
        return row | {"loss": float(F.cross_entropy(out, y)), "accuracy": round(accuracy, 4)}, model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true", help="20 steps, nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        STEPS = 20
    parts = localplug.task("digits", data=arguments.data).parts(0)
    x_test, y_test = parts.test.look().columns
    result = earlier("updates_lion", {"steps": STEPS, "eps": 1e-3, "window": 20, "seed": 0}, quick=arguments.quick)
    for task in ("logistic", "digits"):
        for way, (q, update, *rates) in WAYS.items():
            if (key := f"{task}, {way}") in result:
                continue
            began = time.process_time()
            tried = [train(task, parts, q, update, lr, 0) for lr in rates[task == "digits"]]
            row, model = min(tried, key=lambda pair: pair[0]["loss"] if math.isfinite(pair[0]["loss"]) else math.inf)
            if task == "digits":
                with torch.no_grad():
                    row["test_accuracy"] = round(float((model.net(x_test).argmax(1) == y_test).float().mean()), 4)
            result[key] = row | {"seconds": round(time.process_time() - began, 1)}
            print(key, result[key], flush=True)
            if not arguments.quick:
                save("updates_lion", result)
