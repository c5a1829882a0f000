"""Two processes against one on the same total work: mezo steps on a small Llama, one thread a process.

    python tests/benchmarks/workers.py [--steps 15] [--batch 16] [--tokens 64]

Three runs: one process with the whole batch; two that exchange coefficients, with half of it each; and two that do not
know of each other, with half of it each, which is the best that this machine gives two processes (two hyperthreads share a
core, and its memory). Three rounds in turn, ratios of medians of a step. The second run also waits in each step for whichever
process the machine has kept waiting, so that it differs from the third by more than the exchange itself costs.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import localplug

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save


def work(options, together):
    """Seconds of each step of this process, and the bytes that it sends in one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    world, rank, sent = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"]), [0]
    if together:
        torch.distributed.init_process_group("gloo")
        theirs = torch.distributed.all_gather

        def counted(outputs, mine, group=None):
            sent[0] += mine.numel() * mine.element_size()
            return theirs(outputs, mine, group=group)

        torch.distributed.all_gather = counted
    shape = dict(vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8)
    model = LlamaForCausalLM(LlamaConfig(**shape)).train()
    x = torch.randint(3, 4096, (options.batch // world, options.tokens), generator=torch.Generator().manual_seed(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    seconds = []
    with localplug.attach(model, "mezo", optimizer):
        sent[0] = 0  # the workers have compared their start weights
        for _ in range(options.steps):
            start = time.perf_counter()
            model(input_ids=x, labels=x).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
    return {
        "seconds": seconds[3:],
        "weights": sum(p.numel() for p in model.parameters()),
        "bytes": sent[0] / options.steps,
    }


def start(world, together):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, __file__, *sys.argv[1:], "--child", "together" if together else "apart"]
    common = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    children = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    found = [json.loads(child.communicate(timeout=500)[0].splitlines()[-1]) for child in children]
    return max(statistics.median(f["seconds"]) for f in found), found[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--child", choices=["together", "apart"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(work(options, options.child == "together")))
        sys.exit()
    rounds = [(start(1, False), start(2, True), start(2, False)) for _ in range(3)]  # in turn: machines drift
    one, two, apart = (statistics.median(seconds for seconds, _ in way) for way in zip(*rounds, strict=True))
    found = rounds[0][1][1]
    save(
        "workers",
        {
            "weights": found["weights"],
            "batch": [options.batch, options.tokens],
            "bytes_sent_a_step": found["bytes"],
            "speedup_of_two_processes": round(one / two, 3),
            "speedup_of_two_that_do_not_exchange": round(one / apart, 3),
            "efficiency_against_two_that_do_not_exchange": round(apart / two, 3),
            "seconds_a_step": {"one": round(one, 4), "two": round(two, 4), "two apart": round(apart, 4)},
        },
    )
