"""Zeroth-order methods by what they train: all weights or LoRA, of SmolLM2-135M on SST-2, at equal cost.

    python tests/benchmarks/zo_bench_table.py [--data ../shared/data] [--minutes 10] [--seeds 0] [--only zo-adam] [--list]

After the table of ZO-Bench (Zhang et al., arXiv:2402.11592): ZO-SGD and its variants, the forward gradient, and
backpropagation, each by fine-tuning scheme. Prompts, rows and the loop are those of zo_tasks.py, with sentences of at most 24
tokens. Cost is counted in forward passes over a batch of 16; a step of backpropagation counts as three, and so does one of the
forward gradient with its tangents. Every learning rate of a way is tried with seed 0 and judged on 200 rows of the training
file that no run trains on; the test rows are looked at once, by the weights of the best rate. Directions have rank 1, which
vary as much as normal ones and take less time. What is in results/zo_bench_table.json is not done again: the default run stops
after ten minutes, and the same line goes on.
"""

import argparse
import dataclasses
import pathlib
import sys
import time

import torch

import zo_tasks
from localplug_transformers import sentiment
from record import earlier, save

NAME, BUDGET, TOKENS = "zo_bench_table", 240, 24
SETTING = {
    "budget": BUDGET,
    "max_tokens": TOKENS,
    "batch": zo_tasks.BATCH,
    "directions": "rank-1",
    "lora": "r 8, alpha 16",
}
FORWARD_GRADIENT = 3  # forward passes that one with tangents counts as
RATES = {  # all weights; LoRA
    "zo-sgd": ((3e-5, 1e-4), (3e-3, 1e-2)),
    "zo-sgd-momentum": ((1e-5, 3e-5), (1e-3, 3e-3)),
    "zo-sgd-sign": ((1e-6, 1e-5), (1e-4, 1e-3)),
    "zo-sgd-conservative": ((3e-5, 1e-4), (3e-3, 1e-2)),
    "zo-adam": ((1e-6, 1e-5), (1e-4, 1e-3)),
    "forward-grad": ((3e-5, 1e-4), (3e-3, 1e-2)),
    "backprop": ((1e-5, 3e-5), (1e-3, 3e-3)),
}
SCHEMES = ("all weights", "LoRA")


def way_of(method, scheme):
    lora = scheme == "LoRA"
    rates = RATES[method][lora]
    if method == "backprop":
        return zo_tasks.Way(rates, lora)
    options = {} if method == "forward-grad" else {"eps": 1e-2 if lora else 1e-3}
    return zo_tasks.Way(rates, lora, zo_tasks._by(method, directions="rank-1", **options))


def sst2(data, tokenizer):
    """Short sentences alone, so that a run takes a minute."""

    def short(rows):
        return [r for r in rows if len(tokenizer.encode(r[0], add_special_tokens=False)) <= TOKENS]

    train, apart = zo_tasks._parts(short(zo_tasks.sst2_rows(data)), 1000, 200)
    return dataclasses.replace(
        zo_tasks.sst2(data), max_tokens=TOKENS, train=train, chosen_on=apart, test=short(zo_tasks.sst2(data).test)
    )


def work(result, task, method, scheme, seed):
    way, tried, best = way_of(method, scheme), [], None
    known = result["runs"].get(f"{method}, {scheme}, seed 0")
    budget = BUDGET // (FORWARD_GRADIENT if method == "forward-grad" else 1)
    for rate in way.rates if known is None else (known["rate"],):
        started = time.process_time()
        model, tokenizer, losses = zo_tasks.train(task, way, rate, seed, budget)
        seconds = time.process_time() - started
        accuracy = sentiment.accuracy(model, zo_tasks.prompts(task.chosen_on, tokenizer, task))
        tried.append(
            {
                "rate": rate,
                "validation": round(accuracy, 4),
                "loss": zo_tasks._ends(losses),
                "cpu_seconds": round(seconds),
            }
        )
        if best is None or accuracy > best[0]:
            best = accuracy, rate, model
    test = sentiment.accuracy(best[2], zo_tasks.prompts(task.test, tokenizer, task))
    return {"rate": best[1], "test": round(test, 4), "tried": tried}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--only", nargs="*", choices=RATES, default=list(RATES), metavar="METHOD")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--minutes", type=float, default=10, help="start no new way of training after so long")
    parser.add_argument("--list", action="store_true", help="say what is left to do")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result, end = earlier(NAME, SETTING), time.time() + 60 * options.minutes
    runs = result.setdefault("runs", {})
    jobs = [
        (m, s, seed)
        for seed in options.seeds
        for s in SCHEMES
        for m in options.only
        if f"{m}, {s}, seed {seed}" not in runs
    ]
    if options.list:
        print("\n".join(f"{m}, {s}, seed {seed}" for m, s, seed in jobs))
        sys.exit()
    _, tokenizer = zo_tasks.model_for(zo_tasks.sst2(options.data), None)
    task = sst2(options.data, tokenizer)
    if "zero_shot" not in result:
        model, _ = zo_tasks.model_for(task, None)
        result["zero_shot"] = round(sentiment.accuracy(model, zo_tasks.prompts(task.test, tokenizer, task)), 4)
        result["rows"] = {"train": len(task.train), "chosen on": len(task.chosen_on), "test": len(task.test)}
    for method, scheme, seed in jobs:
        if time.time() > end:
            break
        key = f"{method}, {scheme}, seed {seed}"
        try:
            runs[key] = work(result, task, method, scheme, seed)
        except Exception as error:  # a way that cannot train this model is a result, too
            runs[key] = {"refused": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        print(key, runs[key], file=sys.stderr, flush=True)
        save(NAME, result)
