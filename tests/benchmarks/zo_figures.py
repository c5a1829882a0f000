"""What a zeroth-order step costs: time against two forward passes and against the released MeZO's step, memory, the log.

    python tests/benchmarks/zo_figures.py [--model smollm2|llama] [--rounds 9] [--tokens 512] [--only few-tokens] [--memory]
        [--replay]

Everything is a ratio of medians from one process, its ways taken in turn step by step. SmolLM2-135M, and a Llama of random
weights with 440 million of them, both float32. "released" is strict="mezo", which repeats the released code bit for bit:
four sweeps of noise over the weights and two forward passes. A round of "rank-1 deferred" is the mean of the 8 steps between
two sweeps of the weights, and "double batch" is one forward pass of the batch twice over, without any direction: what bounds
a stacked step. `--only few-tokens` measures those of 16 and 64 tokens that are made in one pass.
"""

import argparse
import gc
import json
import pathlib
import statistics
import sys
import tempfile
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import localplug
from localplug_transformers import offline_models, peak_memory

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import RESULTS, save

WAYS = {
    "rank-1": {"directions": "rank-1"},
    "rank-1 stacked": {"directions": "rank-1", "backend": "stacked"},
    "rank-1 deferred": {"directions": "rank-1", "backend": "deferred:8"},
    "gaussian": {"directions": "gaussian"},
    "rademacher": {"directions": "rademacher"},
    "released": {"strict": "mezo"},
}
FEW = ("rank-1", "rank-1 stacked", "rank-1 deferred")
STEPS = {"rank-1 deferred": 8}  # of one round, for which the mean counts
BATCHES = {16: (1, 16), 64: (1, 64), 128: (2, 64), 512: (8, 64), 2048: (16, 128)}
STREAMED = ("mezo", "zo-sgd-sign", "zo-sgd-momentum", "zo-adam", "lozo", "fzoo", "zo-sgd-conservative")


def llama():
    config = LlamaConfig(
        vocab_size=32000, hidden_size=1280, intermediate_size=3456, num_hidden_layers=18, num_attention_heads=20
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def smollm2():
    return AutoModelForCausalLM.from_pretrained(offline_models.smollm2(), dtype=torch.float32)


MODELS = {"smollm2": smollm2, "llama": llama}


def step_of(model, x, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    engine = localplug.Engine(model, localplug.method("mezo", **options), optimizer)
    return lambda: engine.step(lambda: model(input_ids=x, labels=x).loss, optimizer)


def times(model, tokens, rounds, only=WAYS):
    """{way: median time over that of two forward passes, by the medians of each}, and the spread of the quotients."""
    shape = BATCHES[tokens]
    x = torch.randint(5, 30000, shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def two_forwards():
        for _ in range(2):
            model(input_ids=x, labels=x)

    @torch.no_grad()
    def double_batch():
        model(input_ids=torch.cat([x, x]), labels=torch.cat([x, x]))

    stacked = ("rank-1 stacked", "rank-1 deferred")
    left_out = {512: stacked, 2048: (*stacked, "released")}.get(tokens, ())
    made = {name: step_of(model, x, **WAYS[name]) for name in only if name not in left_out}
    ways = {"two forwards": two_forwards, "double batch": double_batch, **made}
    seconds = {name: [] for name in ways}
    for lap in range(rounds + 1):
        for name, way in ways.items():
            num = STEPS.get(name, 1)
            start = time.perf_counter()
            for _ in range(num):
                way()
            if lap:  # the first one warms up
                seconds[name].append((time.perf_counter() - start) / num)
    median = {name: statistics.median(s) for name, s in seconds.items()}
    found = {name: round(m / median["two forwards"], 3) for name, m in median.items() if name != "two forwards"}
    if "released" in median:
        found |= {f"{name} vs released": round(median[name] / median["released"], 3) for name in ("gaussian", "rank-1")}
    found["two forwards, quartiles over median"] = [
        round(q / median["two forwards"], 3) for q in statistics.quantiles(seconds["two forwards"], n=4)[::2]
    ]
    return {"batch": shape, "rounds": rounds, **found}


def memory(batch, tokens):
    """{method: peak resident memory of a process that makes a step over that of one that only infers}."""
    path = str(offline_models.smollm2())
    inference = peak_memory.measured("inference", path, batch, tokens)
    found = {how: peak_memory.measured(how, path, batch, tokens) for how in STREAMED}
    return {
        "batch": [batch, tokens],
        "peak_vs_inference": {how: round(m["peak"] / inference["peak"], 4) for how, m in found.items()},
        "bytes": {"inference": inference, **found},
    }


def replay(model, num_steps=20):
    """{directions: time of ten replayed steps over that of one forward pass}, beyond what opening a log takes."""
    found = {}
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    x = torch.randint(5, 30000, BATCHES[16], generator=torch.Generator().manual_seed(0))
    for name in ("gaussian", "rademacher", "rank-1"):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "a.lplog")
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
            with localplug.attach(model, "mezo", optimizer, log=path, **WAYS[name]):
                for _ in range(num_steps):
                    model(input_ids=x, labels=x).loss.backward()
                    optimizer.step()
            trained = {n: p.detach().clone() for n, p in model.named_parameters()}
            seconds = {}
            for until in (num_steps // 2, num_steps, num_steps // 2, num_steps):
                model.load_state_dict(start, strict=False)
                begin = time.perf_counter()
                localplug.replay_log(model, path, until=until)
                seconds[until] = time.perf_counter() - begin
            assert all(torch.equal(p, trained[n]) for n, p in model.named_parameters())
            model.load_state_dict(start, strict=False)
        found[name] = {}
        for tokens in (512, 2048):
            batch = torch.randint(5, 30000, BATCHES[tokens], generator=torch.Generator().manual_seed(0))
            begin = time.perf_counter()
            with torch.no_grad():
                for _ in range(2):
                    model(input_ids=batch, labels=batch)
            forward = (time.perf_counter() - begin) / 2
            ten = (seconds[num_steps] - seconds[num_steps // 2]) * 10 / (num_steps - num_steps // 2)
            found[name][f"{tokens} tokens"] = round(ten / forward, 3)
    return found


def log_size(num_steps=50):
    """Bytes of the log for each step and direction, without its header, of a learning rate that falls in every step."""
    model = torch.nn.Linear(8, 2)
    x = torch.ones(3, 8)
    found = {}
    for q in (1, 4):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / (num_steps + 2))
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "a.lplog")
            engine = localplug.Engine(model, localplug.method("mezo", num_directions=q), optimizer, log=path)
            sizes = []
            for _ in range(num_steps + 1):
                engine.step(lambda: model(x).square().mean(), optimizer)
                schedule.step()
                sizes.append(path.stat().st_size)
            engine.close()
        found[f"{q} direction(s)"] = (sizes[-1] - sizes[0]) / num_steps / q
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--tokens", type=int, choices=BATCHES, action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=["few-tokens"], help="measure the steps that few tokens are for alone")
    parser.add_argument("--memory", action="store_true", help="measure memory and the log alone")
    parser.add_argument("--replay", action="store_true", help="measure the replay alone")
    options = parser.parse_args()
    path = RESULTS / "zo_figures.json"
    result = json.loads(path.read_text())["result"] if path.exists() else {}
    for name in () if options.memory or options.replay else options.model or MODELS:
        model = MODELS[name]().train()
        result.setdefault(name, {})["weights"] = sum(p.numel() for p in model.parameters())
        for tokens in options.tokens or ((16, 64) if options.only else (16, 128, 512, 2048)):
            found = times(model, tokens, options.rounds, FEW if options.only else WAYS)
            place = "few tokens, " if options.only else ""
            result[name][f"{place}{tokens} tokens"] = found
            save("zo_figures", result)
        del model
        gc.collect()
    if options.replay or not (options.model or options.tokens or options.memory or options.only):
        result["ten replayed steps vs one forward pass"] = replay(smollm2().train())
        save("zo_figures", result)
    if options.memory or not (options.model or options.tokens or options.replay or options.only):
        result["memory"], result["log, bytes a step and direction"] = memory(16, 64), log_size()
        save("zo_figures", result)
