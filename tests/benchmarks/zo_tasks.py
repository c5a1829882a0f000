"""Zeroth-order fine-tuning of SmolLM2-135M against backpropagation at equal cost, on SST-2, RTE, BoolQ and TREC.

    python tests/benchmarks/zo_tasks.py [--data ../shared/data] [--task sst2] [--minutes 60] [--list]

Cost is counted in forward passes over a batch of 16 rows; a backpropagation step counts as three. Every way of training has
the same budget. Its learning rate is chosen on seed 0, by the accuracy on rows of the training file that no run trains on,
after a quarter of the budget for backpropagation and the whole of it for zeroth order, where a rate that is fine for a
quarter diverges later; the test rows are looked at once, at the end of each run. All trials are kept, and so are the
runs that rates from shorter trials had spoiled ("diverged"). What is done already is in
results/zo_tasks.json and is not done again: the script can be stopped at any time and started again.
"""

import argparse
import csv
import dataclasses
import json
import pathlib
import random
import re
import sys
import time
from collections.abc import Callable

import torch

import localplug
from localplug_transformers import offline_models, sentiment

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import RESULTS, save

BATCH, BACKPROP_COST = 16, 3  # forward passes that a forward and a backward pass count as
NAME = "zo_tasks"


@dataclasses.dataclass
class Task:
    """Prompts with the number of the right word; `chosen_on` are rows apart from both others."""

    words: tuple[str, ...]
    max_tokens: int
    budget: int  # forward passes of one run
    seeds: int
    train: list[tuple[str, int]]
    chosen_on: list[tuple[str, int]]
    test: list[tuple[str, int]]


def _parts(rows, count, apart, seed=0):
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows[:count], rows[count : count + apart]


def _table(path):
    return csv.DictReader(path.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)


def sst2_rows(data):
    """All rows of the training file, in its order."""
    return [(f"{r['sentence'].strip()} It was", int(r["label"])) for r in _table(data / "sst2/train.tsv")]


def sst2(data):
    test = [(f"{r['content'].strip()} It was", int(r["label"])) for r in _table(data / "sst2/dev.tsv")]
    return Task((" terrible", " great"), 64, 400, 3, *_parts(sst2_rows(data), 1000, 200), test)


def rte(data):
    def rows(name):
        return [
            (
                f'{r["sentence1"]}\nDoes this mean that "{r["sentence2"]}" is true? Yes or No?\n',
                int(r["label"] == "entailment"),
            )
            for r in _table(data / "rte" / name)
        ]

    return Task(("No", "Yes"), 160, 400, 1, *_parts(rows("train.tsv"), 1000, 200), rows("dev.tsv"))


def boolq(data):
    def rows(name):
        lines = (json.loads(line) for line in (data / "boolq" / name).read_text().splitlines())
        return [(f"{r['passage']} {r['question']}?\n", int(r["label"] in (True, "True", "true", 1))) for r in lines]

    test, _ = _parts(rows("val.jsonl"), 500, 0)
    return Task(("No", "Yes"), 192, 400, 1, rows("train.jsonl"), rows("dev32.jsonl"), test)


def trec(data):
    labels = {"DESC": 0, "ENTY": 1, "ABBR": 2, "HUM": 3, "LOC": 4, "NUM": 5}
    words = (" description", " thing", " abbreviation", " person", " place", " number")

    def rows(name):
        lines = (data / "trec" / name).read_text(encoding="latin-1").splitlines()
        found = (re.match(r"(\w+):\S+ (.*)", line) for line in lines)
        return [(f"{m.group(2)} The answer is a", labels[m.group(1)]) for m in found if m]

    return Task(words, 64, 400, 1, *_parts(rows("TREC.train"), 1000, 200), rows("TREC.test"))


TASKS = {"sst2": sst2, "rte": rte, "boolq": boolq, "trec": trec}


@dataclasses.dataclass
class Way:
    """A way of training: by a method of localplug, or by backpropagation with AdamW where it has none."""

    rates: tuple[float, ...]
    lora: bool = False
    method: Callable[[], localplug.Method] | None = None


def _by(name, **options):
    return lambda: localplug.method(name, **options)


WAYS = {
    "backprop, LoRA": Way((1e-3, 3e-3), lora=True),
    "backprop, all weights": Way((1e-5, 3e-5)),
    "mezo, all weights": Way((3e-5, 6e-5, 1.2e-4), method=_by("mezo")),
    "mezo, LoRA": Way((3e-3, 1e-2), lora=True, method=_by("mezo", eps=1e-2)),
    "mezo with momentum, all weights": Way((1e-5, 2e-5), method=_by("zo-sgd-momentum")),
}
REFERENCE = ("backprop, LoRA", "backprop, all weights")
ALWAYS = ("mezo, all weights", "mezo, LoRA")


def model_for(task, way):
    torch.manual_seed(0)
    model, tokenizer = sentiment.classifier(str(offline_models.smollm2()), task.words)
    if way is not None and way.lora:
        import peft

        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(model, lora)
    return model, tokenizer


def prompts(rows, tokenizer, task):
    ids = [tokenizer.encode(text, add_special_tokens=False)[-task.max_tokens :] for text, _ in rows]
    data = sentiment.Prompts([], tokenizer)
    data.rows = [{"input_ids": i, "labels": label} for i, (_, label) in zip(ids, rows, strict=True)]
    return data


def train(task, way, rate, seed, budget):
    """(model, tokenizer, losses) after `budget` forward passes."""
    model, tokenizer = model_for(task, way)
    data = prompts(task.train, tokenizer, task)
    rows = sorted(data.rows, key=lambda row: len(row["input_ids"]))  # rows of one length share a batch: little padding
    collate, order = sentiment.collator(model.config.pad_token_id), random.Random(1000 + seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    if way.method is None:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
        cost, engine = BACKPROP_COST, None
    else:
        optimizer = torch.optim.SGD(trained, lr=rate)
        engine = localplug.Engine(model, way.method(), optimizer, seed=seed)
        cost = engine.method.num_evaluations
    steps, losses = budget // cost, []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / steps)
    model.train()
    for _ in range(steps):
        first = order.randrange(max(len(rows) - BATCH, 0) + 1)
        batch = collate(rows[first : first + BATCH])
        if engine is None:
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        else:
            loss = engine.step(lambda batch=batch: model(**batch).loss, optimizer)
        schedule.step()
        losses.append(round(float(loss.detach()), 4))
    if engine is not None:
        engine.close()
    return model, tokenizer, losses


class Record:
    """results/zo_tasks.json, written after every run."""

    def __init__(self):
        path = RESULTS / f"{NAME}.json"
        whole = json.loads(path.read_text())["result"] if path.exists() else {}
        self.trials, self.runs, self.zero_shot, self.diverged = (
            whole.get(k, e) for k, e in (("trials", []), ("runs", []), ("zero_shot", {}), ("diverged", []))
        )

    def write(self):
        save(
            NAME,
            {
                "batch": BATCH,
                "zero_shot": self.zero_shot,
                "runs": self.runs,
                "diverged": self.diverged,
                "trials": self.trials,
                "table": self.table(),
            },
        )

    def trial(self, task, way, rate, budget):
        key = (task, way, rate, budget)
        return next((t for t in self.trials if (t["task"], t["way"], t["rate"], t["budget"]) == key), None)

    def run(self, task, way, seed):
        return next((r for r in self.runs if (r["task"], r["way"], r["seed"]) == (task, way, seed)), None)

    def best_rate(self, task, way, budget):
        tried = [t for t in self.trials if (t["task"], t["way"], t["budget"]) == (task, way, budget)]
        return max(tried, key=lambda t: t["accuracy"])["rate"]

    def table(self):
        """{task: {way: mean accuracy over its seeds, their spread, and the gap to backprop with LoRA in points}}."""
        found = {}
        for task in {r["task"] for r in self.runs}:
            by_way = {}
            for r in self.runs:
                if r["task"] == task:
                    by_way.setdefault(r["way"], []).append(r["accuracy"])
            reference = by_way.get(REFERENCE[0])
            found[task] = {
                way: {
                    "accuracy": round(sum(a) / len(a), 4),
                    "seeds": len(a),
                    "spread": round(max(a) - min(a), 4),
                    "points_below_backprop_lora": round(100 * (sum(reference) / len(reference) - sum(a) / len(a)), 1)
                    if reference
                    else None,
                }
                for way, a in by_way.items()
            }
        return found


def jobs(record, tasks):
    """What is not done yet, in order: (what, task, way, rate or seed)."""
    for name, task in tasks.items():
        if name not in record.zero_shot:
            yield ("zero-shot", name, None, None)
        ways = list(WAYS) if name == "sst2" else [*REFERENCE, *ALWAYS, *_best(record, task)]
        for way in ways:
            budget = trial_budget(task, way)
            yield from (
                ("trial", name, way, rate) for rate in WAYS[way].rates if not record.trial(name, way, rate, budget)
            )
        run = [*REFERENCE, *ALWAYS, *_best(record, task)]
        for seed in range(task.seeds):
            yield from (("run", name, way, seed) for way in dict.fromkeys(run) if not record.run(name, way, seed))


def trial_budget(task, way):
    """Forward passes of a trial."""
    return task.budget if WAYS[way].method is not None else task.budget // 4


def _best(record, task):
    """The zeroth-order way that was best on SST-2's chosen_on rows, once all of them were tried."""
    ways = {w for w, way in WAYS.items() if way.method is not None}
    tried = [t for t in record.trials if t["task"] == "sst2" and t["way"] in ways and t["budget"] == task.budget]
    if {t["way"] for t in tried} != ways:
        return []
    return [max(tried, key=lambda t: t["accuracy"])["way"]]


def work(record, task, job):
    what, name, way, number = job
    started = time.time()
    if what == "zero-shot":
        model, tokenizer = model_for(task, None)
        record.zero_shot[name] = sentiment.accuracy(model, prompts(task.test, tokenizer, task))
    elif what == "trial":
        model, tokenizer, losses = train(task, WAYS[way], number, 0, trial_budget(task, way))
        accuracy = sentiment.accuracy(model, prompts(task.chosen_on, tokenizer, task))
        record.trials.append(
            {
                "task": name,
                "way": way,
                "rate": number,
                "budget": trial_budget(task, way),
                "accuracy": accuracy,
                "loss": _ends(losses),
            }
        )
    else:
        rate = record.best_rate(name, way, trial_budget(task, way))
        model, tokenizer, losses = train(task, WAYS[way], rate, number, task.budget)
        accuracy = sentiment.accuracy(model, prompts(task.test, tokenizer, task))
        record.runs.append(
            {"task": name, "way": way, "seed": number, "rate": rate, "budget": task.budget, "accuracy": accuracy,
             "loss": _ends(losses)}
        )  # fmt: skip
    print(f"{job}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)


def _ends(losses):
    """Mean loss of the first and of the last tenth of the steps."""
    tenth = max(len(losses) // 10, 1)
    return [round(sum(losses[:tenth]) / tenth, 4), round(sum(losses[-tenth:]) / tenth, 4)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new run after so long")
    parser.add_argument("--list", action="store_true", help="say what is left to do")
    options = parser.parse_args()
    tasks = {name: TASKS[name](options.data) for name in options.task or TASKS}
    record, end = Record(), time.time() + 60 * options.minutes
    if options.list:
        print("\n".join(map(str, jobs(record, tasks))))
        sys.exit()
    while time.time() < end and (job := next(jobs(record, tasks), None)) is not None:
        work(record, tasks[job[1]], job)
        record.write()
