"""Do embeddings of integer programs without a gradient tell families apart? Five easy families, and three that differ in costs.

    python tests/benchmarks/experts_mip.py

easy: set covering, knapsack, assignment, independent set, facility location, 30 instances each of random sizes. hard: one kind
of matrix (set covering, the same sizes and density) with three kinds of costs: equal, random, in proportion to a column's
number of rows. Each instance is written as an .lp file and read by HiGHS. NMI of k-means (the best of 10 starts by its own
objective) with the families for: the histogram of codes (`codes`, 64 codes of 64 numbers, untrained layers), the mean of the
nodes' features after the same layers (`mean of nodes`), the mean of the ten raw features (`raw features`), and the numbers of
rows and columns (`size`). Mean over SEEDS of layers and instances. No row has been chosen by its result.
"""

import itertools
import math
import pathlib
import sys
import tempfile

import torch

from localplug_experts import InstanceEmbedding, read_mip

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import save

SEEDS, EACH = range(3), 30


def lp(costs, rows, sense="minimize"):
    """An .lp text of binaries: costs, and rows of (coefficients {column: value}, relation, side)."""

    def terms(pairs):
        return " ".join(f"{v:+.6g} x{j}" for j, v in pairs)

    lines = [sense, " " + terms(enumerate(costs)), "subject to"]
    lines += [f" c{i}: {terms(sorted(a.items()))} {relation} {side:.6g}" for i, (a, relation, side) in enumerate(rows)]
    return "\n".join([*lines, "binary", *(f" x{j}" for j in range(len(costs))), "end", ""])


def uniform(g, low, high):
    return low + (high - low) * float(torch.rand((), generator=g))


def whole(g, low, high):
    return int(torch.randint(low, high, (), generator=g))


def covering(g, costs=None, size=None):
    n, m = size or (whole(g, 15, 30), whole(g, 10, 25))
    rows = [({j: 1.0 for j in range(n) if uniform(g, 0, 1) < 0.2} or {0: 1.0}, ">=", 1.0) for _ in range(m)]
    count = [sum(j in a for a, _, _ in rows) for j in range(n)]
    kinds = {"equal": lambda j: 1.0, "in proportion": lambda j: 1.0 + count[j]}
    return lp([kinds.get(costs, lambda j: uniform(g, 1, 10))(j) for j in range(n)], rows)


def knapsack(g):
    n = whole(g, 15, 40)
    weights = [[uniform(g, 1, 20) for _ in range(n)] for _ in range(whole(g, 1, 4))]
    rows = [(dict(enumerate(w)), "<=", sum(w) / 2) for w in weights]
    return lp([uniform(g, 1, 20) for _ in range(n)], rows, "maximize")


def assignment(g):
    n = whole(g, 4, 7)
    rows = [({i * n + j: 1.0 for j in range(n)}, "=", 1.0) for i in range(n)]
    rows += [({i * n + j: 1.0 for i in range(n)}, "=", 1.0) for j in range(n)]
    return lp([uniform(g, 1, 10) for _ in range(n * n)], rows)


def independent(g):
    n = whole(g, 15, 30)
    rows = [({i: 1.0, j: 1.0}, "<=", 1.0) for i, j in itertools.combinations(range(n), 2) if uniform(g, 0, 1) < 0.15]
    return lp([1.0] * n, rows or [({0: 1.0, 1: 1.0}, "<=", 1.0)], "maximize")


def facility(g):
    m, n = whole(g, 3, 6), whole(g, 4, 8)
    rows = [({m + i * n + j: 1.0 for i in range(m)}, "=", 1.0) for j in range(n)]
    rows += [({m + i * n + j: 1.0, i: -1.0}, "<=", 0.0) for i in range(m) for j in range(n)]
    return lp([uniform(g, 10, 30) for _ in range(m)] + [uniform(g, 1, 10) for _ in range(m * n)], rows)


FAMILIES = {
    "easy": (covering, knapsack, assignment, independent, facility),
    "hard": tuple(lambda g, kind=kind: covering(g, kind, (24, 16)) for kind in ("equal", "random", "in proportion")),
}


def instances(families, seed, folder):
    g = torch.Generator().manual_seed(seed)
    found, labels = [], []
    for label, family in enumerate(families):
        for number in range(EACH):
            path = pathlib.Path(folder, f"{label}_{number}.lp")
            path.write_text(family(g))
            found.append(read_mip(path))
            labels.append(label)
    return found, torch.tensor(labels)


def k_means(z, k, seed):
    z, best = z.double(), (math.inf, None)
    for start in range(10):
        g = torch.Generator().manual_seed(100 * seed + start)
        centres = z[torch.randperm(len(z), generator=g)[:k]]
        for _ in range(50):
            near = torch.cdist(z, centres).argmin(1)
            centres = torch.stack([z[near == c].mean(0) if (near == c).any() else centres[c] for c in range(k)])
        inertia = float((z - centres[near]).square().sum())
        best = min(best, (inertia, near), key=lambda pair: pair[0])
    return best[1]


def nmi(a, b):
    """2 I(a; b) / (H(a) + H(b))."""
    joint = torch.zeros(int(a.max()) + 1, int(b.max()) + 1).double()
    for i, j in zip(a, b, strict=True):
        joint[i, j] += 1 / len(a)
    H = [-sum(p * math.log(p) for p in q.tolist() if p > 0) for q in (joint.sum(1), joint.sum(0), joint.flatten())]
    return 2 * (H[0] + H[1] - H[2]) / (H[0] + H[1]) if H[0] + H[1] else 0.0


def features(mips, embedding):
    raw = [torch.cat([m.constraints.mean(0), m.variables.mean(0)]) for m in mips]
    sizes = torch.tensor([[len(m.constraints), len(m.variables)] for m in mips]).double()
    return {
        "codes": embedding(mips),
        "mean of nodes": torch.stack([embedding.nodes(m).mean(0) for m in mips]),
        "raw features": torch.stack(raw),
        "size": (sizes - sizes.mean(0)) / sizes.std(0).clamp(min=1e-9),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = {}
    for kind, families in FAMILIES.items():
        found = {}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                mips, labels = instances(families, seed, folder)
            embedding = InstanceEmbedding(num_codes=64, width=64, seed=seed).fit(mips)
            for name, z in features(mips, embedding).items():
                found.setdefault(name, []).append(round(nmi(labels, k_means(z, len(families), seed)), 3))
        result[kind] = {name: {"nmi": round(sum(v) / len(v), 3), "each": v} for name, v in found.items()}
        print(kind, result[kind], flush=True)
    save("experts_mip", result)
