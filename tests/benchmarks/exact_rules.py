"""Does a method learn a rule or a table? Permutations, breadth-first search, Bellman-Ford: exact answers on inputs not seen.

    python tests/benchmarks/exact_rules.py [--only ensembles ways] [--seeds 0 1 2]

ensembles: how many networks of W hidden units, whose readouts alone are trained from a random start, must be averaged until
90 % of the inputs of two ones are permuted right in every bit: by the closed form (the expected share), and found by adding
one network after another (W = 4,096, the smallest number that is enough, as in the released code of arXiv:2502.16763;
`paper` is what its logs say, which stop in the same way). The readout's start is 1 / sqrt(2 k) of the hidden layer's, as
there.

ways: the tasks `permutation`, `bfs` and `bellman-ford` by backpropagation, a local method and zeroth order, with the same
budget of forward passes. The learning rate is chosen on validation inputs with seed 0 (the best quality; of equal ones that
of the smaller loss), then every seed is trained and its test inputs are looked at once. `compiled` is the network whose
weights are written down. Graph tasks learn from the steps on graphs of 8 nodes; `by size` is, on 100 more graphs for each
number of nodes, the share of graphs that are all right and the share of nodes.

Runs that are in results/exact_rules.json already are not made again.
"""

import argparse
import json
import pathlib
import sys

import torch

import localplug
from localplug_bench.specs import parsed
from localplug_bench.training import Plan, Training
from localplug_exact import compiled, graphs, permutation

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import earlier, save

NAME = "exact_rules"
TASKS = {"permutation": 8, "bfs": None, "bellman-ford": None}
WAYS = {
    "backprop": [f"backprop:lr={lr}" for lr in (1e-3, 3e-3, 1e-2)],
    "tpsgd": [f"tpsgd:lr={lr},optimizer=adam" for lr in (1e-3, 3e-3, 1e-2)],
    "dfa": [f"dfa:lr={lr},optimizer=adam" for lr in (1e-3, 3e-3, 1e-2)],
    "mezo": [f"mezo:lr={lr},eps=1e-3" for lr in (3e-4, 1e-3, 3e-3, 1e-2)],
}
SIZES = (8, 12, 16, 20, 32, 64)
PAPER = {5: 43, 10: 69, 15: 103, 20: 117}  # models until 90 %: results/ of github.com/opallab/permlearn, commit 8e9957e


def ensembles(seed, width=4096, most=400):
    """{k: numbers of networks}."""
    found = {}
    for k, paper in PAPER.items():
        start = (2 * k) ** -0.5
        order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
        pairs = torch.combinations(torch.arange(k))
        bits = torch.zeros(len(pairs), k).scatter_(1, pairs, 1.0)
        total, num, right = torch.zeros(len(pairs), k), 0, 0.0
        while right < 0.9 and num < most:
            solver = localplug.solver("relu-readout", width=width, initial=start, seed=10_000 * seed + num)
            total += solver(torch.eye(k), torch.eye(k)[:, order]).requires_grad_(False)(bits * 0.5**0.5)
            num += 1
            right = float(((total > 0) == (bits[:, order] > 0)).all(1).float().mean())
        found[k] = {
            "expected to be enough": permutation.models_needed(k, 2, 0.9, start),
            "found, first time enough": num,
            "expected share at that number": round(permutation.share_right(k, 2, num, start), 4),
            "paper": paper,
        }
        print(k, found[k], flush=True)
    return found


def signs():
    """How many pairs (k, s) there are with k up to 30, and of how many the mean network is right."""
    pairs = [(k, s) for k in range(2, 31) for s in range(1, k + 1)]
    return {
        kernel: [sum(permutation.answer(k, s, kernel).is_right() for k, s in pairs), len(pairs)]
        for kernel in ("ntk", "readout")
    }


def trained(task, spec, seed, *, with_test):
    """(validation quality, loss, the rest) of one run."""
    run = Training(task, parsed(spec), seed, Plan(evaluations=5, patience=None))
    for part in range(1, 6):
        run.lap(run.budget * part / 5)
        run.measure()
    got = run.finished(with_test=with_test)
    sizes = by_size(task, run.way.model) if with_test and hasattr(task, "run") else None
    return {
        "validation": got["quality_validation"],
        "test": got["quality_test"],
        "loss": got["curve"][-1]["loss"],
        "passes": got["budget_used"],
        "seconds": round(got["seconds"], 2),
        "status": got["status"],
    } | ({"by size": sizes} if sizes else {})


def by_size(task, model):
    found = {}
    for n in SIZES:
        edges = graphs.bands(100, n, task.max_length, torch.Generator().manual_seed(77))
        right = task.run(model, edges, n)[-1] == graphs.rounds(edges, n, weighted=task.weighted)[-1]
        found[n] = {"graphs": float(right.all(1).float().mean()), "nodes": round(float(right.float().mean()), 4)}
    return found


def written(task):
    """The quality of a compiled model, and on larger graphs."""
    model, parts = task.fresh_model(0), task.parts(0)
    if hasattr(task, "compile_"):
        task.compile_(model)
        return {"test": task.quality(model, parts.test.look()), "by size": by_size(task, model)}
    compiled.permutation_(model, parts.train.columns[1].argmax(0))
    return {"test": task.quality(model, parts.test.look())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["ensembles", "ways"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = earlier(NAME, {"ways": WAYS, "seeds": arguments.seeds})
    if "ensembles" in arguments.only and "ensembles" not in result:
        result["signs right of all k, s"] = signs()
        result["ensembles"] = ensembles(0)
        save(NAME, result)
    for name in TASKS if "ways" in arguments.only else ():
        task, table = localplug.task(name), result.setdefault(name, {})
        table.setdefault("compiled", written(task))
        for way, specs in WAYS.items():
            row = table.setdefault(way, {"trials": {}, "seeds": {}})
            for spec in specs:
                if spec not in row["trials"]:
                    row["trials"][spec] = trained(task, spec, 0, with_test=False)
            ranked = {
                s: (t["validation"], -t["loss"] if t["loss"] == t["loss"] else -9e9) for s, t in row["trials"].items()
            }
            row["chosen"] = max(ranked, key=ranked.get)
            for seed in arguments.seeds:
                if str(seed) not in row["seeds"]:
                    row["seeds"][str(seed)] = trained(task, row["chosen"], seed, with_test=True)
            row["test"] = sum(r["test"] for r in row["seeds"].values()) / len(row["seeds"])
            print(name, way, row["chosen"], json.dumps(row["test"]), flush=True)
            save(NAME, result)
