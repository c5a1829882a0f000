"""Peak memory of one mezo step against plain inference and against backprop, on SmolLM2-135M with a batch of 16 x 64.

    python tests/benchmarks/mezo_memory.py [--batch 16] [--tokens 64]

Each way runs in a process of its own; what counts is the largest resident memory above the loaded model.
"""

import argparse
import pathlib
import sys

from localplug_transformers import offline_models, peak_memory

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    model = str(offline_models.smollm2())
    found = {
        how: peak_memory.measured(how, model, options.batch, options.tokens)
        for how in ("inference", "mezo", "backprop")
    }
    above = {how: m["peak"] - m["loaded"] for how, m in found.items()}
    save(
        "mezo_memory",
        {
            "batch": [options.batch, options.tokens],
            "bytes": found,
            "above_model_mb": {how: round(b / 2**20, 1) for how, b in above.items()},
            "mezo_vs_inference": above["mezo"] / above["inference"],
            "backprop_vs_inference": above["backprop"] / above["inference"],
        },
    )
