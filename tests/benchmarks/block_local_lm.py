"""Language models by block-local losses against backpropagation and zeroth order: same data order, same number of steps.

    python tests/benchmarks/block_local_lm.py [--data ../shared/data] [--seed 0] [--steps 400] [--tasks scratch stories]

scratch: a GPT-2 of 4 blocks, 128 wide, context 64, on the characters of tiny Shakespeare; 12 rows a step.
stories: stories260K, a pretrained Llama of 5 blocks, fine-tuned on tiny Shakespeare by its own tokens; 8 rows a step.

Rows: backprop; dgl own (each block has a head of its own); dgl tied (each block reads the model's own output embedding);
last block (all below it stays as it began); mezo (two forward passes, a zeroth-order step along one direction). AdamW, a
tenth of the steps up to the learning rate and then down to 0 in a straight line; mezo takes its own step at the same
schedule. A row is trained once for each of its learning rates, and the one that the validation text prefers at the end counts.
The text is split 90 : 5 : 5; the test part is looked at once, by the model that counts.

Losses are in bits, for each character or token. saved_bytes is the most that autograd holds at one time in one step, weights
left out; seconds are of the process, not of the clock. Each row is written as it ends to the task's own file of results, and
one that is there is not run again.
"""

import argparse
import json
import math
import pathlib
import sys
import time

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, logging

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import RESULTS, save
from saved_tensors import saved_bytes

logging.set_verbosity_error()

CONTEXT, EVALUATED = 64, 128
ROWS = {
    "backprop": [1e-3, 3e-3],
    "dgl own": [1e-3, 3e-3],
    "dgl tied": [1e-3, 3e-3],
    "mezo": [1e-4, 3e-4, 1e-3],
    "last block": [1e-3, 3e-3],
}
TASKS = {"scratch": 12, "stories": 8}


def scratch(seed, vocab_size):
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=128, n_layer=4, n_head=4, n_positions=CONTEXT, vocab_size=vocab_size, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


def rows_of(task, data):
    """Training, validation and test rows of CONTEXT tokens, and how many different tokens there are."""
    text = (data / "tinyshakespeare/input.txt").read_text()
    if task == "scratch":
        letters = sorted(set(text))
        place = {c: i for i, c in enumerate(letters)}
        ids, num = [place[c] for c in text], len(letters)
    else:
        tokenizer = AutoTokenizer.from_pretrained(data / "models/stories260K/hf")
        ids, num = tokenizer(text, add_special_tokens=False)["input_ids"], len(tokenizer)
    rows = torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    first, second = int(0.9 * len(rows)), int(0.95 * len(rows))
    return rows[:first], rows[first:second], rows[second:], num


def model_of(task, data, seed, num):
    if task == "scratch":
        return scratch(seed, num)
    return LlamaForCausalLM.from_pretrained(data / "models/stories260K/hf", dtype=torch.float32)


@torch.no_grad()
def bits(model, rows):
    """Of EVALUATED rows at equal distances."""
    model.eval()
    chosen = rows[:: max(1, len(rows) // EVALUATED)][:EVALUATED]
    total = sum(float(model(input_ids=x, labels=x).loss) * len(x) for x in chosen.split(32))
    model.train()
    return total / len(chosen) / math.log(2)


def blocks_of(model):
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def loop(how, model, lr, seed):
    """The optimizer, and what one step on a batch is."""
    if how == "last block":
        for p in model.parameters():
            p.requires_grad_(False)
        norm = model.transformer.ln_f if hasattr(model, "transformer") else model.model.norm
        for module in (blocks_of(model)[-1], norm):  # the output embedding is the input embedding, which must stay
            for p in module.parameters():
                p.requires_grad_(True)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0)
    if how in ("backprop", "last block"):

        def step(x):
            model(input_ids=x, labels=x).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return optimizer, step
    options = {"dgl own": {"head": "linear"}, "dgl tied": {"head": "tied"}, "mezo": {}}[how]
    engine = localplug.Engine(model, localplug.method(how.split()[0], **options), optimizer, seed=seed)
    return optimizer, lambda x: engine.step(lambda: model(input_ids=x, labels=x).loss, optimizer, targets=x)


def trained(task, how, lr, steps, args, parts):
    model = model_of(task, args.data, args.seed, parts[-1]).train()
    optimizer, step = loop(how, model, lr, args.seed)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, (steps - s) / max(1, steps - warm))
    )
    order = torch.Generator().manual_seed(1000 + args.seed)
    start = time.process_time()
    for _ in range(steps):
        step(parts[0][torch.randint(len(parts[0]), (TASKS[task],), generator=order)])
        schedule.step()
    return model, (time.process_time() - start) / steps


def memory(task, how, args, parts):
    model = model_of(task, args.data, args.seed, parts[-1]).train()
    _, step = loop(how, model, 0.0, args.seed)
    x = parts[0][: TASKS[task]]
    step(x)  # so that heads are there, and not counted
    with saved_bytes(model, x) as peak:
        step(x)
    return peak[0]


def row(task, how, args, parts):
    tried, best = {}, None
    for lr in ROWS[how]:
        model, seconds = trained(task, how, lr, args.steps, args, parts)
        tried[lr] = round(bits(model, parts[1]), 4)
        if tried[lr] == min(tried.values()):
            best = (lr, model, seconds)
    lr, model, seconds = best
    return {
        "validation_bits_by_lr": tried,
        "lr": lr,
        "test_bits": round(bits(model, parts[2]), 4),
        "saved_bytes": memory(task, how, args, parts),
        "process_seconds_a_step": round(seconds, 4),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared/data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=list(ROWS))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for task in args.tasks:
        name = f"block_local_lm_{task}"
        file = RESULTS / f"{name}.json"
        result = json.loads(file.read_text())["result"] if file.exists() else {}
        parts = rows_of(task, args.data)
        if "before" not in result:
            model = model_of(task, args.data, args.seed, parts[-1])
            result["before"] = {"test_bits": round(bits(model, parts[2]), 4)}
        for how in args.only:
            key = f"{how}, {args.steps} steps, seed {args.seed}"
            if key not in result:
                result[key] = row(task, how, args, parts)
                save(name, result)


if __name__ == "__main__":
    main()
