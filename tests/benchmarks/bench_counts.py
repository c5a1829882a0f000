"""What a step of a layer-local method computes, in forward passes, beside what the bench's rule counts for it.

    python tests/benchmarks/bench_counts.py [--data ../shared/data]

Products and convolutions are counted, of one step and of one forward pass; nothing is timed. docs/bench.md tells two of them.
"""

import argparse
import pathlib

import torch

import localplug
from localplug_bench.costs import passes_a_step
from localplug_bench.specs import parsed
from localplug_bench.ways import way
from record import save

TASK, WAYS = (
    "vowels:depth=3,width=32",
    ("backprop", "mezo", "tpsgd", "mono-forward", "cafo", "predsim", "dgl", "infopro"),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[3] / "shared" / "data")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = parsed(TASK)
    task = localplug.task(spec.name, data=options.data, **spec.options)
    found = {}
    for name in WAYS:
        trainer = way(task, parsed(name), 0)
        computes = passes_a_step(task, parsed(name), batch_size=task.batch_size, device="cpu", seed=0)
        found[name] = {"counts as": trainer.price, "computes": round(computes, 3)}
        trainer.close()
    save("bench_counts", {TASK: found})
