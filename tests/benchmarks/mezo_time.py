"""Time of one mezo step against two forward passes and against a backprop step, interleaved in one process.

    python tests/benchmarks/mezo_time.py [--batch 16] [--tokens 32] [--rounds 5]

SmolLM2-135M in float32. Ratios of medians; nothing here is a claim about seconds.
"""

import argparse
import pathlib
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM

import localplug
from localplug_transformers import offline_models

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(offline_models.smollm2(), dtype=torch.float32).train()
    x = torch.randint(5, 40000, (options.batch, options.tokens), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    engine = localplug.Engine(model, localplug.method("mezo"), optimizer)

    def loss():
        return model(input_ids=x, labels=x).loss

    def two_forwards():
        with torch.no_grad():
            loss()
            loss()

    def backprop():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    ways = {"two forwards": two_forwards, "mezo": lambda: engine.step(loss, optimizer), "backprop": backprop}
    for way in ways.values():
        way()
    seconds = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    median = {name: statistics.median(s) for name, s in seconds.items()}
    save(
        "mezo_time",
        {
            "batch": [options.batch, options.tokens],
            "mezo_vs_two_forwards": median["mezo"] / median["two forwards"],
            "mezo_vs_backprop": median["mezo"] / median["backprop"],
            "seconds": {name: [round(v, 3) for v in s] for name, s in seconds.items()},
        },
    )
