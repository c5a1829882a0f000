"""Peak memory of one step, each way in a process of its own: plain inference, a localplug step, a backprop step.

    python -m localplug_transformers.peak_memory {inference|mezo|backprop} MODEL BATCH TOKENS {causal|classification}

prints one JSON line: `loaded` and `peak` in bytes of resident memory. Peak minus loaded is what the step itself needs: what a
process sets up once, whatever the model, comes before it in all three ways (torch's first call).
"""

import json
import os
import pathlib
import subprocess
import sys

# One arena, and every large block mapped by itself: what is freed leaves the resident memory at once, in each way alike.
STEADY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (largest since the last reset) of this process, in bytes; Linux only."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    """Let VmHWM start from now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def measured(how: str, model: str, batch: int, tokens: int, kind: str = "causal") -> dict[str, int]:
    """{"loaded", "peak"} in bytes, from a fresh process.

    Raises:
        RuntimeError: the process failed; with the end of what it printed.
    """
    command = [sys.executable, "-m", "localplug_transformers.peak_memory", how, model, str(batch), str(tokens), kind]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **STEADY})
    if done.returncode:
        raise RuntimeError(f"measuring {how} failed: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_once(how: str, model_path: str, batch: int, tokens: int, kind: str) -> dict[str, int]:
    """Load the model, make one step, and read the peak of the step alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    import localplug

    auto = AutoModelForCausalLM if kind == "causal" else AutoModelForSequenceClassification
    model = auto.from_pretrained(model_path, dtype=torch.float32)
    for p in model.parameters():
        p.data = p.data.clone()  # in memory for good, not in a mapped file whose pages come and go
    x = torch.arange(batch * tokens).view(batch, tokens) % (model.config.vocab_size - 10) + 5
    labels = x if kind == "causal" else x[:, 0] % 2
    with torch.no_grad():
        model(x[:1, :4])  # what the first call of any kind sets up is not what is measured
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    loaded = resident("VmRSS")
    reset_peak()
    if how == "inference":
        with torch.no_grad():
            model(input_ids=x, labels=labels)
    elif how == "backprop":
        model.train()
        model(input_ids=x, labels=labels).loss.backward()
        optimizer.step()
    else:
        model.train()
        with localplug.attach(model, how, optimizer):
            model(input_ids=x, labels=labels).loss.backward()
            optimizer.step()
    return {"loaded": loaded, "peak": resident("VmHWM")}


if __name__ == "__main__":
    how, path, size, length, kind = sys.argv[1:]
    sys.stdout.write(json.dumps(run_once(how, path, int(size), int(length), kind)) + "\n")
