"""SmolLM2-135M on multiple-choice questions, before and after it became ternary: ARC, OpenBookQA, WinoGrande, BoolQ, RTE.

    python tests/benchmarks/ternary_arc.py [--data ../shared/data] [--questions 150] [--steps 60] [--seed 0] [--quick]

Three rows: full precision; packed without training; packed after a short training by backpropagation (tequila, one scale for 64
inputs, AdamW, 256 tokens a step of wikitext-2's valid.txt). The training is a thousandth of what such models are published
with (some 10 billion tokens): the third row says what a short one repairs, not what the method can reach. Accuracy is that of
the lm-evaluation harness, 0-shot (multiple_choice.py); "chance" is that of guessing. Of each test split --questions are taken,
the same ones for each row, of BoolQ and RTE a quarter of that. The seed is that of the training's order. What is done already
is in results/ternary_arc.json and is not done again. The log-likelihoods are those of lm-eval 0.4.13 to within 2e-5.
"""

import argparse
import json
import pathlib
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

from localplug_ternary import TernaryConfig, freeze_, ternarize_
from localplug_transformers import offline_models

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from multiple_choice import NORMALISED, TASKS, score, some
from ternary_qat import GROUP_SIZE, loss_on, texts, train

from record import earlier, save

logging.set_verbosity_error()

ROWS = ("full precision", "packed, not trained", "packed, trained")
LONG = ("boolq", "rte")  # passages: a quarter of the questions
RATE = 3e-4
EVALUATED = 40  # blocks of 256 tokens of wikitext-2's test.txt


def made(row, given, parts):
    torch.manual_seed(given.seed)
    model = AutoModelForCausalLM.from_pretrained(offline_models.smollm2(), dtype=torch.float32)
    if row == "full precision":
        return model, {}
    ternarize_(model, TernaryConfig("tequila", GROUP_SIZE))
    how = {}
    if row == "packed, trained":
        began = time.perf_counter()
        train(model, parts[0], RATE, given.steps, 1, given.seed)
        how = {"steps": given.steps, "tokens": 256 * given.steps, "rate": RATE}
        how["seconds"] = round(time.perf_counter() - began)
    return freeze_(model), how


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="two questions and steps: shows that it works, writes nothing"
    )
    given = parser.parse_args()
    if given.quick:
        given.questions, given.steps = 8, 2
    setting = {"questions": given.questions, "steps": given.steps, "seed": given.seed}
    done = earlier("ternary_arc", setting, quick=given.quick)
    tokenizer = AutoTokenizer.from_pretrained(offline_models.smollm2())
    parts = texts(given.data)
    tasks = {
        name: some(read(given.data), max(given.questions // (4 if name in LONG else 1), 1))
        for name, read in TASKS.items()
    }
    rows = done.get("rows", {})
    result = {
        "setting": setting,
        "chance": {name: round(sum(1 / len(q.pairs) for q in qs) / len(qs), 4) for name, qs in tasks.items()},
        "rows": rows,
    }
    for row in ROWS:
        left = [name for name in tasks if name not in rows.get(row, {})]
        if not left:
            continue
        model, how = made(row, given, parts)
        found = rows.setdefault(row, {"training": how})
        found.setdefault(
            "nats a token of wikitext-2", round(loss_on(model, parts[2], 1 if given.quick else EVALUATED), 4)
        )
        for name in left:
            began = time.perf_counter()
            found[name] = score(model, tokenizer, tasks[name], name in NORMALISED)
            print(f"{row}, {name}: {found[name]} in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            if not given.quick:
                save("ternary_arc", result)
    if given.quick:
        print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
