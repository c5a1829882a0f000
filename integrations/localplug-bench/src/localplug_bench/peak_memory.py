"""What a step needs in memory, from a process of its own; and its other costs, so that no second process is started.

    python -m localplug_bench.peak_memory '{"task": "digits", "spec": "mezo", "batch_size": 32, ...}'

prints one JSON line. `loaded_bytes` is resident memory with the model and the data in it, `peak_bytes` the most that the
first two steps needed on top of it: what they hold, gradients and an optimizer's state among it. On a GPU both are CUDA's
own counters.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

# One arena, and every large block mapped by itself: what is freed leaves the resident memory at once, for every way alike.
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
INFERENCE = "inference"
"""In the place of a way of training: a forward pass without gradients."""


def measured(
    task: str, data: str | None, spec: str, *, batch_size: int, device: str = "cpu", threads: int | None = None
) -> dict[str, Any]:
    """The costs of a step, from a fresh process: see the head of this file and `costs.costs`.

    Args:
        task: what a user types for it.
        data: the folder of data sets.
        spec: what a user types for the way of training, or "inference".

    Raises:
        RuntimeError: the process failed; with the end of what it printed.
    """
    asked = {"task": task, "data": data, "spec": spec, "batch_size": batch_size, "device": device, "threads": threads}
    command = [sys.executable, "-m", "localplug_bench.peak_memory", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **STEADY})
    if done.returncode:
        raise RuntimeError(f"measuring {spec} on {task} failed: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _resident(field: str) -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _run(task: str, data: str | None, spec: str, batch_size: int, device: str, threads: int | None) -> dict[str, Any]:
    import torch

    import localplug
    from localplug.tasks import moved
    from localplug_bench.clock import Clock
    from localplug_bench.costs import costs
    from localplug_bench.specs import parsed
    from localplug_bench.ways import way

    if threads is not None:
        torch.set_num_threads(threads)
    asked = parsed(task)
    made = localplug.task(asked.name, data=data, **asked.options)
    train = made.parts(0).train
    batch = moved(train.batch(torch.arange(min(batch_size, len(train)))), device)
    small = moved(train.batch(torch.arange(1)), device)
    trained = way(made, parsed("backprop" if spec == INFERENCE else spec), 0, device)
    with torch.no_grad():  # what the first call of any kind sets up is not what is measured
        made.loss(trained.model.eval(), small)
    trained.model.train()
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        loaded = torch.cuda.memory_allocated()
    else:
        loaded = _resident("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    if spec == INFERENCE:
        with torch.no_grad():
            made.loss(trained.model, batch)
    else:
        for _ in range(2):
            trained.step(batch, Clock())
    peak = torch.cuda.max_memory_allocated() if is_cuda else _resident("VmHWM")
    found = {"loaded_bytes": loaded, "peak_bytes": max(peak - loaded, 0), "memory_kind": "cuda" if is_cuda else "rss"}
    trained.close()
    if spec != INFERENCE:
        found |= costs(made, parsed(spec), batch_size=batch_size, device=device)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_run(**json.loads(sys.argv[1]))) + "\n")
