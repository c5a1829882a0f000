"""bfloat16 training by mezo against float32 on the same data and seeds, and against the naive in-place form in bfloat16.

    python tests/benchmarks/zo_precision.py [--data ../shared/data] [--steps 1000] [--seeds 2] [--eps 0.001 0.01]

stories260K, a Llama of 260,000 weights, on tiny Shakespeare: rows of 32 tokens, 8 in a batch. The loss that counts is that
of 128 rows from the end of the text, which no run trains on, in float32 arithmetic on the weights that were reached. "naive"
adds eps z to the stored weights, takes 2 eps z away, adds eps z, and subtracts lr g z, each rounded to nearest.
"""

import argparse
import pathlib
import sys

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

ROWS, TOKENS, BATCH = 256, 32, 8
LR = 1e-4


def tokens_of(data):
    tokenizer = AutoTokenizer.from_pretrained(data / "models/stories260K/hf")
    text = (data / "tinyshakespeare/input.txt").read_text()[:400_000]
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)
    return rows[:-ROWS], rows[-ROWS:]


@torch.no_grad()
def held_out_loss(model, rows):
    twin = LlamaForCausalLM(model.config).float()
    twin.load_state_dict({k: v.float() for k, v in model.state_dict().items()})
    return float(twin(input_ids=rows, labels=rows).loss)


def loss_of(model, x):
    logits = model(input_ids=x).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


@torch.no_grad()
def naive_step(model, x, step, run, eps):
    """The in-place form: every sum is rounded to the weights' own precision."""
    run.step = step
    directions = localplug.Directions(run)
    z = [directions.values(i, 0).to(p.dtype) for i, (_, p) in enumerate(run.parameters)]
    losses = []
    for move in (eps, -2 * eps):
        for (_, p), d in zip(run.parameters, z, strict=True):
            p.add_(d, alpha=move)
        losses.append(loss_of(model, x))
    g = float(losses[0] - losses[1]) / (2 * eps)
    for (_, p), d in zip(run.parameters, z, strict=True):
        p.add_(d, alpha=eps)
        p.sub_(d, alpha=LR * g)


def trained(form, dtype, data, train, held_out, seed, steps, eps):
    model = LlamaForCausalLM.from_pretrained(data / "models/stories260K/hf", dtype=dtype).train()
    order = torch.Generator().manual_seed(seed)
    before = held_out_loss(model, held_out)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    if form == "localplug":
        engine = localplug.Engine(model, localplug.method("mezo", eps=eps), optimizer, seed=seed)
    run = localplug.Run(model, [(n, p) for n, p in model.named_parameters()], seed)
    for step in range(steps):
        x = train[torch.randint(len(train), (BATCH,), generator=order)]
        if form == "localplug":
            engine.step(lambda x=x: loss_of(model, x), optimizer)
        else:
            naive_step(model, x, step, run, eps)
    return {"before": before, "after": held_out_loss(model, held_out)}


FORMS = {
    "float32": ("localplug", torch.float32),
    "bfloat16": ("localplug", torch.bfloat16),
    "bfloat16, naive in place": ("naive", torch.bfloat16),
    "float32, naive in place": ("naive", torch.float32),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared" / "data")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--eps", type=float, nargs="*", default=[1e-3, 1e-2])
    options = parser.parse_args()
    train, held_out = tokens_of(options.data)
    result = {"steps": options.steps, "lr": LR}
    for eps in options.eps:
        for name, (form, dtype) in FORMS.items():
            runs = [
                trained(form, dtype, options.data, train, held_out, seed, options.steps, eps)
                for seed in range(options.seeds)
            ]
            found = {"held-out loss before": runs[0]["before"], "after, by seed": [r["after"] for r in runs]}
            result[f"{name}, eps {eps:g}"] = found
            print(name, eps, found, file=sys.stderr, flush=True)
    save("zo_precision", result)
