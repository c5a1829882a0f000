"""A writer of linear programs, trained further by a solver's verdict alone; and what the verdict can tell.

    python tests/benchmarks/rewards_verified.py [--seeds 1 2] [--only verdicts training]

verdicts: of 500 problems from four templates, the reference and three corruptions of it (a number of the program changed by
10 % and at least 1, the sense of the objective turned round, the right side of a constraint halved), each judged by both
papers' rules: 1e-4 absolute (OptiBench) and 5 % relative (OptMATH). A corruption that leaves the optimum as it is cannot be
found by any verdict on the optimum, and is counted apart. `files` is how many questions there are in the published files,
and how many have no answer.

training: the task `linear-models`, a network that reads a problem and writes a program, byte by byte. It is trained by
backpropagation on 300 problems until the loss of a batch is below 0.25, when it writes some programs right, and then by
`es` (16 evaluations a step) on its attention's questions alone, 2,016 of 19,552 weights. The objective is the mean reward
of SolverReward on 64 of 500 other problems: right 1, a program with an optimum 0.3, a program 0.1. The rate is chosen on
validation problems with seed 0 and 150 steps; with the other seeds, 150 and 600 steps, test problems are looked at once in
a run, before and after in one look. `loss` goes on with the cross-entropy instead, with the same number of evaluations, at
the rate that is chosen for it. `first 20` and `last 20` are means over steps of what is lowered. Seconds are of one thread,
with the solver's.
"""

import argparse
import pathlib
import random
import re
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_rewards import problems, questions, writing
from localplug_rewards.solved import SolverReward
from localplug_rewards.verifying import OPTIBENCH, OPTMATH, Tolerance, Verifier

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

DATA = pathlib.Path(__file__).parents[3] / "shared/data/optimodel"
NAME = "rewards_verified"
RATES = {"reward": [0.01, 0.02], "loss": [0.01, 0.02]}
STEPS, DIRECTIONS, EPS, PRETRAINED, BATCH = [150, 600], 16, 0.02, 0.25, 64
WEIGHTS = ["asks", "query.*"]
CORRUPTIONS = ("number", "sense", "bound")


def corrupted(text, how, draw):
    if how == "sense":
        return text.replace("max", "MIN").replace("min", "max").replace("MIN", "min")
    found = list(re.finditer(r"(?<![\w.])\d+" if how == "number" else r"(?<=[=] )\d+", text))
    chosen = draw.choice(found)
    value = int(chosen[0])
    value = value // 2 if how == "bound" else value + max(1, value // 10)
    return text[: chosen.start()] + str(value) + text[chosen.end() :]


def verdicts():
    draw = random.Random(0)
    rules = {"1e-4 absolute": Verifier(Tolerance(absolute=OPTIBENCH.absolute)), "5 % relative": Verifier(OPTMATH)}
    table = {rule: {"references right": 0} for rule in rules}
    same = dict.fromkeys(CORRUPTIONS, 0)
    ones = [problems.problem(family, seed) for seed in range(125) for family in problems.FAMILIES]
    for one in ones:
        texts = {how: corrupted(one.reference, how, draw) for how in CORRUPTIONS}
        for rule, verify in rules.items():
            row = table[rule]
            row["references right"] += verify(one.reference, one.wanted).is_right
            for how, text in texts.items():
                verdict = verify(text, one.wanted)
                is_same = verdict.value is not None and abs(verdict.value - one.wanted) <= 1e-6 * max(
                    1, abs(one.wanted)
                )
                if rule == "1e-4 absolute":
                    same[how] += is_same
                if not is_same:
                    row[f"{how}: changed and found"] = row.get(f"{how}: changed and found", 0) + (not verdict.is_right)
    files = {}
    for path in sorted(DATA.glob("*.json")):
        kept, left_out = questions.read(path)
        files[path.stem] = {"questions": len(kept), "without an answer": left_out}
    return {"problems": len(ones), "optimum unchanged": same, "rules": table, "files": files}


class WithLoss(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, labels, wanted):
        logits = self.model(ids)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def write(outputs, batch):
    return list(zip(writing.texts(outputs["logits"].argmax(-1)), batch["wanted"].tolist(), strict=True))


def pretrained(task, parts, seed):
    model = task.fresh_model(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        loss = task.loss(model, parts.train.batch(torch.randint(300, (32,), generator=generator)))
        if float(loss.detach()) < PRETRAINED:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def further(task, parts, seed, by, lr, steps):
    """The model after that; and the seconds."""
    model = WithLoss(pretrained(task, parts, seed))
    reward = SolverReward(lambda m, batch: write(m(**batch), batch)) if by == "reward" else None
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(100 + seed)
    began = time.process_time()
    seen = []
    options = {"num_directions": DIRECTIONS, "eps": EPS, "seed": seed, "parameters": WEIGHTS}
    with localplug.attach(model, "es", optimizer, objective=reward, **options):
        for step in range(steps):
            ids, labels, wanted = parts.train.batch(300 + torch.randint(500, (BATCH,), generator=generator))
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            loss = model(ids=ids, labels=labels, wanted=wanted)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(float(loss.detach()))
    first, last = (sum(part) / len(part) for part in (seen[:20], seen[-20:]))
    return model.model, {"seconds": round(time.process_time() - began, 1), "first 20": first, "last 20": last}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--only", nargs="*", default=["verdicts", "training"])
    parser.add_argument("--quick", action="store_true", help="a few steps, and no file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        STEPS, RATES = (20,), {by: rates[1:2] for by, rates in RATES.items()}
    setting = {
        "rates": RATES,
        "steps": STEPS,
        "directions": DIRECTIONS,
        "eps": EPS,
        "pretrained": PRETRAINED,
        "weights": WEIGHTS,
    }
    result = earlier(NAME, setting, quick=arguments.quick)
    keep = (lambda: None) if arguments.quick else lambda: save(NAME, result)
    if "verdicts" in arguments.only and "verdicts" not in result:
        result["verdicts"] = verdicts()
        print(result["verdicts"], flush=True)
        keep()
    task = localplug.task("linear-models", num_train=800, num_held=200)
    table = result.setdefault("training", {"trials": {}, "seeds": {}}) if "training" in arguments.only else None
    for by, rates in RATES.items() if table else ():
        for lr in rates:
            if f"{by}, lr {lr}" not in table["trials"]:
                parts = task.parts(0)
                start = task.quality(pretrained(task, parts, 0), parts.validation)
                model, row = further(task, parts, 0, by, lr, STEPS[0])
                row |= {"validation before": start, "validation": task.quality(model, parts.validation)}
                table["trials"][f"{by}, lr {lr}"] = row
                print(by, lr, row, flush=True)
                keep()
        chosen = max(rates, key=lambda lr: table["trials"][f"{by}, lr {lr}"]["validation"])
        for seed, steps in ((seed, steps) for steps in STEPS for seed in arguments.seeds):
            key = f"{by}, {steps} steps, seed {seed}"
            if key not in table["seeds"]:
                parts = task.parts(seed)
                model, row = further(task, parts, seed, by, chosen, steps)
                test = parts.test.look()
                row |= {"lr": chosen, "test before": task.quality(pretrained(task, parts, seed), test)}
                row |= {"test after": task.quality(model, test)}
                table["seeds"][key] = row
                print(key, row, flush=True)
                keep()
