"""Zeroth order on the scales and biases of a packed ternary SmolLM2-135M, on SST-2: against no training, and in what memory.

    python tests/benchmarks/ternary_scales.py [--data ../shared/data] [--minutes 60] [--seen] [--quick]

The model that it starts from is made once, and kept in the cache folder of localplug: SmolLM2-135M as a classifier by the
words " terrible" and " great", ternary by tequila with one scale for 64 inputs; some steps of straight-through backpropagation
on labelled prompts (AdamW, 16 rows each); then it is packed (freeze_). From there mezo trains scales and biases alone
(train_scales_), by 16 rows and two forward passes a step, with a learning rate that falls to 0 in a straight line, on 3,000
rows that the recovery has not seen; with --seen on the 1,000 rows that it has seen twice, where next to nothing is left to
learn (results/ternary_scales_seen.json). The rate is chosen on seed 0 by the loss on 200 rows that nothing trains on, after
half of the steps. The dev rows are looked at once, at the end of each run: differences to the model without that training are
paired, row by row, with their standard errors. "z" is a difference by its error; bar: z of the loss below -2 in each seed.

Memory: largest resident memory of a process that loads the packed model and makes one step of 16 x 64 tokens, by that of one
that makes plain inference of the same batch. Bar: at most 1.1.

What is done already is in results/ternary_scales.json and is not done again: the script can be stopped at any time and started
again.
"""

import argparse
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import time

import torch

import localplug
from localplug_ternary import TernaryConfig, freeze_, ternarize_, train_scales_
from localplug_transformers import offline_models, peak_memory, sentiment

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import zo_tasks
from record import earlier, save

NAME, BATCH, GROUP_SIZE, SEEDS = "ternary_scales", 16, 64, (0, 1)
RATES, RATES_SEEN, EPS = (1e-4, 2e-4), (1e-4, 3e-4, 1e-3), 1e-3
NUM_FRESH = 3_000  # rows that mezo trains on
RECOVERY_RATE = 3e-4
WARM_UP = 5  # steps of the recovery


def starting_model(task):
    """SmolLM2 as a classifier, and its tokenizer."""
    return zo_tasks.model_for(task, None)


def by_length(task, rows, tokenizer):
    return sorted(zo_tasks.prompts(rows, tokenizer, task).rows, key=lambda row: len(row["input_ids"]))


def batch_of(rows, order, model):
    """16 rows of about one length."""
    first = order.randrange(max(len(rows) - BATCH, 0) + 1)
    return sentiment.collator(model.config.pad_token_id)(rows[first : first + BATCH])


def recovered(task, given):
    """The packed model that all runs start from."""
    model, tokenizer = starting_model(task)
    path = offline_models.cache_folder() / f"{NAME}-{given.recovery_steps}.pt"
    if path.exists() and not given.quick:
        model = ternarize_(model, TernaryConfig("tequila", GROUP_SIZE, packed=True))
        model.load_state_dict(torch.load(path, weights_only=True))
        return model, tokenizer
    rows, order = by_length(task, task.train, tokenizer), random.Random(7)
    ternarize_(model, TernaryConfig("tequila", GROUP_SIZE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECOVERY_RATE, weight_decay=0.0)
    steps = given.recovery_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / WARM_UP, (steps - t) / steps))
    model.train()
    for _ in range(steps):
        model(**batch_of(rows, order, model)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    freeze_(model)
    if not given.quick:
        torch.save(model.state_dict(), path)
    return model, tokenizer


def fresh_rows(task, data):
    """Prompts of the training file that are neither in task.train nor in task.chosen_on."""
    known = {text for text, _ in task.train + task.chosen_on}
    rows = [row for row in zo_tasks.sst2_rows(data) if row[0] not in known]
    random.Random(1).shuffle(rows)
    return rows[:NUM_FRESH]


def train(model, tokenizer, task, rows, rate, seed, steps, whole):
    """mezo on scales and biases, for the first `steps` of `whole` steps of the falling learning rate's own length."""
    train_scales_(model).train()
    rows, order = by_length(task, rows, tokenizer), random.Random(1000 + seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=rate)
    engine = localplug.Engine(model, localplug.method("mezo", eps=EPS), optimizer, seed=seed)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / whole)
    for _ in range(steps):
        batch = batch_of(rows, order, model)
        engine.step(lambda batch=batch: model(**batch).loss, optimizer)
        schedule.step()
    engine.close()
    return sum(p.numel() for p in trained)


@torch.no_grad()
def answers(model, tokenizer, task, rows):
    """(loss, whether right) of each row."""
    model.eval()
    rows, collate = by_length(task, rows, tokenizer), sentiment.collator(model.config.pad_token_id)
    losses, right = [], []
    for start in range(0, len(rows), 32):
        batch = collate(rows[start : start + 32])
        labels_B = batch.pop("labels")
        logits_BC = model(**batch).logits
        losses += torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="none").tolist()
        right += (logits_BC.argmax(-1) == labels_B).int().tolist()
    return losses, right


def mean(values):
    return sum(values) / len(values)


def against(before, after):
    """What changed, row by row, with standard errors."""
    result = {"loss": round(mean(after[0]), 4), "accuracy": round(mean(after[1]), 4)}
    for name, old, new in (("loss", before[0], after[0]), ("accuracy", before[1], after[1])):
        changes = [b - a for a, b in zip(old, new, strict=True)]
        error = math.sqrt(sum((c - mean(changes)) ** 2 for c in changes) / (len(changes) - 1) / len(changes))
        result[f"{name} change"], result[f"{name} error"] = round(mean(changes), 4), round(error, 4)
        result[f"{name} z"] = round(mean(changes) / max(error, 1e-12), 2)
    return result


def one_step(how, tokens):
    """In a process of its own: peak and loaded resident memory, in bytes, of one step or of plain inference."""
    task = zo_tasks.Task((" terrible", " great"), tokens, 0, 0, [], [], [])
    model, _ = starting_model(task)
    model = train_scales_(ternarize_(model, TernaryConfig("tequila", GROUP_SIZE, packed=True)))
    for p in model.parameters():
        p.data = p.data.clone()  # in memory for good, not in a mapped file whose pages come and go
    x = torch.arange(BATCH * tokens).view(BATCH, tokens) % (model.config.vocab_size - 10) + 5
    labels = x[:, 0] % 2
    localplug.noise.add_normal_(torch.zeros(8), 0, 0, 1.0)  # what is set up once, whatever the model
    with torch.no_grad():
        model(x[:1, :4])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    loaded = peak_memory.resident("VmRSS")
    peak_memory.reset_peak()
    if how == "inference":
        with torch.no_grad():
            model(input_ids=x, labels=labels)
    else:
        engine = localplug.Engine(model.train(), localplug.method("mezo", eps=EPS), optimizer, seed=0)
        engine.step(lambda: model(input_ids=x, labels=labels).loss, optimizer)
    print(json.dumps({"loaded": loaded, "peak": peak_memory.resident("VmHWM")}))


def memory(tokens):
    found = {}
    for how in ("inference", "mezo"):
        command = [sys.executable, __file__, "--one-step", how, "--tokens", str(tokens)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **peak_memory.STEADY})
        if done.returncode:
            raise RuntimeError(f"measuring {how} failed: {done.stderr[-500:]}")
        found[how] = json.loads(done.stdout.splitlines()[-1])
    above = {how: m["peak"] - m["loaded"] for how, m in found.items()}
    return {
        "bytes": found,
        "peak by that of inference": round(found["mezo"]["peak"] / found["inference"]["peak"], 3),
        "above the model, by that of inference": round(above["mezo"] / above["inference"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--recovery-steps", type=int, default=120, help="of backpropagation, before it is packed")
    parser.add_argument("--steps", type=int, default=200, help="of mezo")
    parser.add_argument("--seen", action="store_true", help="train on the rows that the recovery has seen")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so long")
    parser.add_argument("--quick", action="store_true", help="a step of each kind: shows that it works, writes nothing")
    parser.add_argument("--one-step", choices=("inference", "mezo"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_step:
        return one_step(given.one_step, given.tokens)
    end = time.time() + 60 * given.minutes
    if given.quick:
        given.recovery_steps, given.steps, given.tokens = 1, 2, 8
    task = zo_tasks.sst2(given.data)
    random.Random(0).shuffle(task.test)
    task.test = task.test[: 8 if given.quick else 400 if given.seen else None]
    task.chosen_on = task.chosen_on[: 8 if given.quick else None]
    setting = {
        "recovery_steps": given.recovery_steps, "steps": given.steps, "eps": EPS,
        "tokens": given.tokens, "chosen_on": len(task.chosen_on), "test": len(task.test),
    }  # fmt: skip
    name, rates = (f"{NAME}_seen", RATES_SEEN) if given.seen else (NAME, RATES)
    rows = task.train if given.seen else fresh_rows(task, given.data)
    result = earlier(name, setting, quick=given.quick)

    def keep(what, found):
        print(f"{what}: {found}", file=sys.stderr, flush=True)
        if not given.quick:
            save(name, result)

    if "memory" not in result:
        result["memory"] = memory(given.tokens)
        keep("memory", result["memory"])
    began = time.perf_counter()
    model, tokenizer = recovered(task, given)
    start = {name: t.clone() for name, t in model.state_dict().items()}
    if "before" not in result:
        losses, right = answers(model, tokenizer, task, task.test)
        validation = answers(model, tokenizer, task, task.chosen_on)[0]
        result["before"] = {
            "loss": round(mean(losses), 4), "accuracy": round(mean(right), 4), "chosen_on": round(mean(validation), 4),
            "losses": [round(x, 5) for x in losses], "right": right, "seconds": round(time.perf_counter() - began),
        }  # fmt: skip
        keep("before", {k: v for k, v in result["before"].items() if type(v) is not list})
    before = result["before"]["losses"], result["before"]["right"]

    def trained(rate, seed, steps, whole):
        train_scales_(model)
        with torch.no_grad():
            for key, t in model.state_dict().items():
                t.copy_(start[key])
        return train(model, tokenizer, task, rows, rate, seed, steps, whole)

    trials = result.setdefault("trials", {})
    for rate in rates[: 1 if given.quick else None]:
        if f"{rate:g}" in trials or time.time() > end:
            continue
        half = max(given.steps // 2, 1)
        result["trained numbers"] = trained(rate, SEEDS[0], half, half)
        trials[f"{rate:g}"] = round(mean(answers(model, tokenizer, task, task.chosen_on)[0]), 4)
        keep(f"rate {rate:g}", trials[f"{rate:g}"])
    if len(trials) < len(rates) and not given.quick:
        return
    best = float(min(trials, key=lambda rate: trials[rate] if math.isfinite(trials[rate]) else math.inf))
    runs = result.setdefault("runs", {})
    for seed in SEEDS:
        if str(seed) in runs or time.time() > end:
            continue
        began = time.perf_counter()
        trained(best, seed, given.steps, given.steps)
        found = against(before, answers(model, tokenizer, task, task.test))
        runs[str(seed)] = {"rate": best, **found, "seconds": round(time.perf_counter() - began)}
        keep(f"seed {seed}", runs[str(seed)])


if __name__ == "__main__":
    main()
