"""The kernel of packed ternary weights against torch's bfloat16 linear, same threads, in one run.

    python tests/benchmarks/ternary_speed.py [--only decode rows dense] [--layers 16] [--repeats 15] [--threads 1 2] [--quick]

decode: one token through all linear layers of a stack of Llama-3.2-1B's shapes, each layer with weights of its own, so that
they come from memory as in a model. rows: 1 to 512 tokens through single layers. dense: one token through weights that are not
ternary, by the kernel for those and by torch, in each dtype, both from huge pages. The ways take turns; a time is the
median of its repeats, and a ratio, torch's time over the kernel's, the median of those of the turns. Processor time (one thread
alone) leaves out what other programs take. Bars: decode at least 8 times bfloat16, rows and dense never below 0.95.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import torch
from torch.nn.functional import linear

from localplug_ternary import kernels
from localplug_ternary.kernels import huge_pages

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import RESULTS, save

WIDTH, INNER, KEYS = 2048, 8192, 512
SHAPES = [(WIDTH, WIDTH), (KEYS, WIDTH), (KEYS, WIDTH), (WIDTH, WIDTH), (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
SINGLE = [(WIDTH, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
DENSE = [(128256, WIDTH), (INNER, WIDTH), (WIDTH, WIDTH)]  # Llama-3.2-1B's head, down to the smallest that is taken
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PARTS = ("decode", "rows", "dense")
ROWS = [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]


def weight_of(N, K, group, generator):
    """Random codes and scales in the checkpoint's form, about a third of each code."""
    codes = torch.randint(0, 3, (N, K // 4, 4), generator=generator, dtype=torch.uint8)
    codes = (codes << torch.tensor([0, 2, 4, 6], dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    scales = torch.rand(N, K // (group or K), generator=generator).add(0.5).mul(0.03).half()
    return codes, scales


def turns(ways, repeats):
    """{name: (wall seconds, processor seconds)} of every repeat; the ways take turns."""
    taken = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            way()
            if repeat:  # the first turn warms up
                taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return taken


def compared(ways, repeats, base="bfloat16"):
    """Median milliseconds of each way and ratios to the base."""
    taken = turns(ways, repeats)
    result = {}
    for name, seconds in taken.items():
        result[name] = {"ms": round(1000 * statistics.median(wall for wall, _ in seconds), 4)}
        if name != base:
            for i, what in enumerate(("ratio", "ratio_processor_time")):
                pairs = zip(taken[base], seconds, strict=True)
                result[name][what] = round(statistics.median(other[i] / own[i] for other, own in pairs), 2)
        if torch.get_num_threads() > 1:
            result[name].pop("ratio_processor_time", None)  # idle threads spin
    return result


def decode(layers, group, bodies, repeats, threads):
    generator = torch.Generator().manual_seed(0)
    weights = [weight_of(N, K, group, generator) for _ in range(layers) for N, K in SHAPES]
    stacks = {
        body: [kernels.prepare(codes, scales, None, group, body=body) for codes, scales in weights] for body in bodies
    }
    dense = [kernels.dequantize(prepared, torch.bfloat16) for prepared in stacks[bodies[0]]]
    x_of = {K: torch.randn(1, K, generator=generator).bfloat16() for K in (WIDTH, INNER)}

    def through(stack):
        return [kernels.linear(x_of[prepared.in_features], prepared) for prepared in stack]

    ways = {"bfloat16": lambda: [linear(x_of[w_NK.shape[1]], w_NK) for w_NK in dense]}
    ways |= {body: lambda stack=stack: through(stack) for body, stack in stacks.items()}
    differences = [
        (own.float() - other.float()).norm() / other.float().norm()
        for own, other in zip(ways[bodies[0]](), ways["bfloat16"](), strict=True)
    ]
    stored = sum(p.codes.nbytes + p.scales.nbytes for p in stacks[bodies[0]])
    result = {
        "bits_per_weight": round(8 * stored / sum(w_NK.numel() for w_NK in dense), 4),
        "relative_difference": round(float(max(differences)), 5),
    }
    for count in threads:
        torch.set_num_threads(count)
        result[f"{count} threads"] = compared(ways, repeats)
    return result


def rows(group, bodies, numbers, repeats, threads):
    generator = torch.Generator().manual_seed(0)
    result = {}
    for N, K in SINGLE:
        codes, scales = weight_of(N, K, group, generator)
        prepared = {body: kernels.prepare(codes, scales, None, group, body=body) for body in bodies}
        w_NK = kernels.dequantize(prepared[bodies[0]], torch.bfloat16)
        for count in threads:
            torch.set_num_threads(count)
            for M in numbers:
                x_MK = torch.randn(M, K, generator=generator).bfloat16()
                ways = {"bfloat16": lambda x_MK=x_MK, w_NK=w_NK: linear(x_MK, w_NK)}
                ways |= {b: lambda x_MK=x_MK, p=p: kernels.linear(x_MK, p) for b, p in prepared.items()}
                many = repeats * max(1, 16 // M)
                result[f"{N} x {K}, {count} threads, {M} rows"] = compared(ways, many)
    return result


def dense(shapes, repeats, threads):
    generator = torch.Generator().manual_seed(0)
    result = {}
    for dtype_name, dtype in DTYPES.items():
        for N, K in shapes:
            w_NK = torch.empty(N, K, dtype=dtype).uniform_(-1, 1, generator=generator)
            huge_pages.collapse(w_NK)
            for count in threads:
                torch.set_num_threads(count)
                x_1K = torch.randn(1, K, generator=generator).to(dtype)
                ways = {
                    "torch": lambda x_1K=x_1K, w_NK=w_NK: linear(x_1K, w_NK),
                    "dense": lambda x_1K=x_1K, w_NK=w_NK: kernels.dense(x_1K, w_NK),
                }
                result[f"{N} x {K} {dtype_name}, {count} threads"] = compared(ways, repeats, "torch")
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="two layers, few repeats; prints, saves nothing")
    options = parser.parse_args()
    groups, numbers, shapes = [256, 128, None], ROWS, DENSE
    if options.quick:
        options.layers, options.repeats, groups, numbers, shapes = 2, 5, [256], [1, 4, 16, 64, 512], DENSE[1:]
    bodies = [body for body in kernels.bodies() if body != "dequantize"] or ["dequantize"]
    best = bodies[0]
    path = RESULTS / "ternary_speed.json"
    result = json.loads(path.read_text())["result"] if path.exists() and not options.quick else {}
    result |= {"load": [round(load, 1) for load in os.getloadavg()], "body": best}
    with torch.inference_mode():
        if "decode" in options.only:
            result["decode"] = {
                f"group {group or 'row'}": decode(options.layers, group, bodies, options.repeats, options.threads)
                for group in groups
            }
            ratios = [x[best]["ratio"] for of in result["decode"].values() for x in of.values() if type(x) is dict]
            result["smallest_decode_ratio"] = min(ratios)
        if "rows" in options.only:
            result["rows"] = rows(groups[0], [best], numbers, options.repeats, options.threads)
            result["smallest_rows_ratio"] = min(ways[best]["ratio"] for ways in result["rows"].values())
        if "dense" in options.only and kernels.dense_bodies():
            result["dense_body"] = kernels.dense_bodies()[0]
            result["dense"] = dense(shapes, options.repeats, options.threads)
            result["smallest_dense_ratio"] = min(ways["dense"]["ratio"] for ways in result["dense"].values())
    if options.quick:
        print(json.dumps(result, indent=1))
    else:
        save("ternary_speed", result)


if __name__ == "__main__":
    main()
