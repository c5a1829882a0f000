"""SmolLM2-135M on SST-2 by mezo: SaRA's tenth of the weights against a random tenth and against all, at equal forward passes.

    python tests/benchmarks/select_sst2.py [--data ../shared/data] [--minutes 10] [--memory]

One short run of each: 24 steps of 8 sentences, one direction, the prompts and the verbalizer of zo_tasks.py, on 200 dev rows
before and after. No rate is chosen, and all runs are shown: all weights have 1.2e-4, the best of three in trials of
zo_tasks.py, a tenth of them ten and three times that. One seed: this shows that the masks run on a real model and what they
cost, and ranks nothing. --memory measures the peak of one step in a process of its own, above the loaded model. What is in
results/select_sst2.json already is not made again.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import time

import torch

import localplug
from localplug_transformers import offline_models, peak_memory, sentiment

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import zo_tasks
from record import earlier, save

NAME = "select_sst2"
STEPS, BATCH = 24, 8
WAYS = {
    "all": ({}, (1.2e-4,)),
    "sara": ({"parameters": "sara:0.1"}, (1.2e-3, 3.6e-4)),
    "random": ({"parameters": "random:0.1"}, (1.2e-3, 3.6e-4)),
}


@torch.no_grad()
def measured(model, data):
    """(accuracy, mean loss) of the verbalizer."""
    collate, losses = sentiment.collator(model.config.pad_token_id), []
    for start in range(0, len(data.rows), 25):
        batch = collate(data.rows[start : start + 25])
        losses.append(float(model(**batch).loss) * len(batch["labels"]))
    return sentiment.accuracy(model, data), round(sum(losses) / len(data.rows), 4)


def run(task, options, rate):
    """Loss and accuracy on the dev rows after training, or before it where there is no rate."""
    model, tokenizer = zo_tasks.model_for(task, None)
    rows = sorted(zo_tasks.prompts(task.train, tokenizer, task).rows, key=lambda row: len(row["input_ids"]))
    collate, order = sentiment.collator(model.config.pad_token_id), random.Random(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    engine = localplug.Engine(model, localplug.method("mezo", **options), optimizer)
    model.train()
    for _ in range(STEPS if rate else 0):
        first = order.randrange(len(rows) - BATCH + 1)
        batch = collate(rows[first : first + BATCH])
        engine.step(lambda batch=batch: model(**batch).loss, optimizer)
    engine.close()
    model.eval()
    accuracy, loss = measured(model, zo_tasks.prompts(task.test, tokenizer, task))
    return {"rate": rate, "dev_accuracy": round(accuracy, 4), "dev_loss": loss}


def child(how):
    """Peak and loaded memory of one step, as localplug_transformers.peak_memory measures them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(offline_models.smollm2(), dtype=torch.float32)
    for p in model.parameters():
        p.data = p.data.clone()
    x = torch.arange(16 * 64).view(16, 64) % 40000 + 5
    with torch.no_grad():
        model(x[:1, :4])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loaded = peak_memory.resident("VmRSS")
    peak_memory.reset_peak()
    if how == "inference":
        with torch.no_grad():
            model(input_ids=x, labels=x)
    else:
        engine = localplug.Engine(model, localplug.method("mezo", **WAYS[how][0]), optimizer)
        engine.step(lambda: model(input_ids=x, labels=x).loss, optimizer)
    return {"loaded": loaded, "peak": peak_memory.resident("VmHWM")}


def memory():
    found = {}
    for how in ("inference", *WAYS):
        command = [sys.executable, __file__, "--child", how]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, **peak_memory.STEADY}
        )
        found[how] = json.loads(done.stdout.splitlines()[-1])
    above = {how: m["peak"] - m["loaded"] for how, m in found.items()}
    return {
        "batch": [16, 64],
        "above_model_mb": {how: round(b / 2**20, 1) for how, b in above.items()},
        "times_inference": {how: round(b / above["inference"], 3) for how, b in above.items()},
        "whole_process_times_inference": {
            how: round(m["peak"] / found["inference"]["peak"], 3) for how, m in found.items()
        },
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no new run after so long")
    parser.add_argument("--memory", action="store_true", help="measure memory and nothing else")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        sys.exit()
    result = earlier(NAME, {"steps": STEPS, "batch": BATCH, "share": 0.1, "eps": 1e-3})
    if options.memory:
        result["memory"] = memory()
        save(NAME, result)
        sys.exit()
    task, end = zo_tasks.sst2(options.data), time.time() + 60 * options.minutes
    task.test = task.test[:200]
    runs = result.setdefault("runs", {})
    for way, (given, rates) in {"before": ({}, (0.0,)), **WAYS}.items():
        for rate in rates:
            name = f"{way}, {rate:g}"
            if name not in runs and time.time() < end:
                start = time.process_time()
                runs[name] = run(task, given, rate)
                print(name, runs[name], f"{time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
                save(NAME, result)
