"""SmolLM2-135M trained to ternary weights by every method: same text, same order, same number of steps.

    python tests/benchmarks/ternary_qat.py [--data ../shared/data] [--seeds 0] [--steps 400] [--rows tequila absmean] [--quick]

Text is wikitext-2: the file valid.txt, split 90 : 10, trains and chooses; test.txt is looked at once, at the end of each run
that counts. All Linear layers but the tied head are ternary, one scale for 64 inputs (576 is a multiple of neither 128 nor
256). AdamW without weight decay, a tenth of the steps up to the learning rate and then down to 0 in a straight line. A row is
trained on the first seed for each of its learning rates; the rate that the choosing part prefers counts for all seeds, and the
run that had it is the first seed's.

Rows: plain (full precision, trained alike), packed (not trained at all), and the methods. Numbers are nats for each token:
of the latent model at its end, and of the same model packed, which must be equal. What is done already is in
results/ternary_qat.json, run by run, and is not done again.
"""

import argparse
import pathlib
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import localplug_ternary.quantizer  # noqa: F401  (registers it)
from localplug_ternary import PackedTernaryLinear, TernaryConfig, freeze_, report, set_progress_, ternarize_
from localplug_transformers import offline_models

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

logging.set_verbosity_error()

CONTEXT, GROUP_SIZE = 256, 64
METHODS = ("tequila", "absmean", "twn", "sherry", "annealed")
RATES = {"plain": [3e-5, 1e-4], "packed": [0.0], **{method: [3e-4, 1e-3] for method in METHODS}}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def blocks(tokenizer, text):
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)


def texts(folder):
    tokenizer = AutoTokenizer.from_pretrained(offline_models.smollm2())
    seen = blocks(tokenizer, (folder / "wikitext2/valid.txt").read_text())
    cut = len(seen) * 9 // 10
    return seen[:cut], seen[cut:], blocks(tokenizer, (folder / "wikitext2/test.txt").read_text())


def made(row):
    model = AutoModelForCausalLM.from_pretrained(offline_models.smollm2(), dtype=torch.float32).to(DEVICE)
    return (
        model if row == "plain" else ternarize_(model, TernaryConfig("absmean" if row == "packed" else row, GROUP_SIZE))
    )


@torch.no_grad()
def loss_on(model, rows, most):
    model.eval()
    losses = [model(input_ids=x[None].to(DEVICE), labels=x[None].to(DEVICE)).loss.item() for x in rows[:most]]
    return sum(losses) / len(losses)


def train(model, rows, rate, steps, batch, seed):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    warm_up = max(steps // 10, 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1))
    )
    order = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(steps):
        set_progress_(model, step / steps)
        x = rows[torch.randint(len(rows), (batch,), generator=order)].to(DEVICE)
        model(input_ids=x, labels=x).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    set_progress_(model, 1.0)


def run(row, rate, seed, given, parts):
    model, began = made(row), time.perf_counter()
    if rate:
        train(model, parts[0], rate, given.steps, given.batch, seed)
    result = {"rate": rate, "seed": seed, "seconds": round(time.perf_counter() - began, 1)}
    result["chosen_on"] = loss_on(model, parts[1], given.evaluated)
    return model, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--evaluated", type=int, default=200, help="blocks of 256 tokens that are evaluated, at most")
    parser.add_argument("--rows", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--quick", action="store_true", help="two steps: shows that it works, and writes nothing")
    given = parser.parse_args()
    if given.quick:
        given.steps, given.batch, given.evaluated = 2, 1, 2
    parts = texts(given.data)
    setting = {"steps": given.steps, "batch": given.batch, "evaluated": given.evaluated, "device": DEVICE}
    done = earlier("ternary_qat", setting, quick=given.quick)
    rows = done.get("rows", {})

    def keep():
        if not given.quick:
            save("ternary_qat", {"setting": setting, "rows": rows})

    for row in given.rows:
        found = rows.setdefault(row, {"trials": [], "runs": []})
        trials, counted = found["trials"], found["runs"]
        trained = {}  # the model of the best trial so far, by its rate
        for rate in RATES[row][: 1 if given.quick else None]:
            if len(RATES[row]) > 1 and rate not in [trial["rate"] for trial in trials]:
                model, result = run(row, rate, given.seeds[0], given, parts)
                if all(result["chosen_on"] < trial["chosen_on"] for trial in trials):
                    trained = {rate: (model, dict(result))}
                trials.append(result)
                keep()
        best = min(trials, key=lambda trial: trial["chosen_on"])["rate"] if trials else RATES[row][0]
        for seed in given.seeds:
            if seed in [result["seed"] for result in counted]:
                continue
            is_first = seed == given.seeds[0]
            model, result = trained.pop(best) if is_first and best in trained else run(row, best, seed, given, parts)
            result["test"] = loss_on(model, parts[2], given.evaluated)
            if row != "plain":
                freeze_(model)
                assert any(isinstance(m, PackedTernaryLinear) for m in model.modules())
                result["test_packed"] = loss_on(model, parts[2], given.evaluated)
                measured = report(model)
                result["bits_per_weight"], result["dead"] = measured.bits_per_weight, measured.dead_fraction
            counted.append(result)
            print(row, result, file=sys.stderr, flush=True)
            keep()


if __name__ == "__main__":
    main()
