"""Forward learning of graph networks on Cora, against backprop twins: same network, split, optimizer, steps and early stopping.

    python tests/benchmarks/cora_graph.py [--steps 100] [--seeds 0 1 2] [--depths 1 2 3 4]

A network of 1 to 4 GCNConv layers with 128 features and ReLU, and a linear read-out, on all 2,708 nodes at once; features at
length 1. Each seed splits the nodes anew: 64 % train, 16 % validate, 20 % test. Adam, learning rate 1e-2, weight decay 5e-4.
Every 4 steps the validation nodes are looked at, and the best network so far is kept; the test nodes are looked at once, with
that network, after the last step. `last layer` trains the read-out alone, on the random layers below it. `as it is` is the
plain forward pass of a locally trained network, chosen by its own accuracy on the validation nodes. The choices (features at
length 1, learning rate, edges of virtual nodes, hidden labels) were made on validation nodes of seeds 0 and 1.

Saved memory is the largest number of bytes that autograd holds at one time in one step, weights and the graph itself left out.
"""

import argparse
import copy
import json
import pathlib
import sys
import time

import numpy
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

import localplug
from localplug import Engine, Predictor
from localplug_graph.label_appending import with_label_columns
from localplug_graph.top_to_input import TopDown

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from record import RESULTS, save

DATA = pathlib.Path(__file__).parents[3] / "shared/data/cora/cora.npz"
WIDTH, K, EVERY = 128, 7, 4
METHODS = {
    "graph-sf": {},
    "graph-ff-la": {"num_negatives": 1},
    "graph-ff-vn": {"num_negatives": 1},
    "graph-top2loss": {},
    "graph-top2input": {},
}


def read():
    """x (2708, 1433) at length 1, edges (2, 10556), labels."""
    d = numpy.load(DATA)
    rows = numpy.repeat(numpy.arange(d["x_shape"][0]), numpy.diff(d["x_indptr"]))
    x = torch.zeros(*d["x_shape"].tolist())
    x[torch.from_numpy(rows).long(), torch.from_numpy(d["x_indices"]).long()] = torch.from_numpy(d["x_data"]).float()
    return F.normalize(x, dim=1), torch.from_numpy(d["edge_index"]).long(), torch.from_numpy(d["y"]).long()


def split(num, seed):
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    return order[: int(0.64 * num)], order[int(0.64 * num) : int(0.8 * num)], order[int(0.8 * num) :]


class GCN(nn.Module):
    def __init__(self, depth, num_features, *, top_down=False):
        super().__init__()
        below, above = [num_features] + [WIDTH] * (depth - 1), [WIDTH] * (depth - 1) + [K]
        self.convs = nn.ModuleList(
            TopDown(GCNConv(b + a, WIDTH), b, a) if top_down else GCNConv(b, WIDTH)
            for b, a in zip(below, above, strict=True)
        )
        self.head = nn.Linear(WIDTH, K)

    def forward(self, x, edges):
        for conv in self.convs:
            x = torch.relu(conv(x, edges))
        return self.head(x)


def network(how, depth, graph, seed):
    """A network, and the features that it is called with."""
    x = with_label_columns(graph[0], K) if how == "graph-ff-la" else graph[0]
    torch.manual_seed(seed)
    return GCN(depth, x.shape[1], top_down=how == "graph-top2input"), x


@torch.no_grad()
def accuracy(model, x, edges, y, nodes):
    model.eval()
    right = float((model(x, edges).argmax(1) == y)[nodes].float().mean())
    model.train()
    return right


def train(how, depth, graph, seed, steps):
    _, edges, y = graph
    model, x = network(how, depth, graph, seed)
    train_nodes, val, test = split(len(y), seed)
    labels = torch.full_like(y, -100)
    labels[train_nodes] = y[train_nodes]
    model.convs.requires_grad_(how != "last layer")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=5e-4)
    judged = {"model": model}
    if how in METHODS:
        method = localplug.method(how, **METHODS[how])
        engine = Engine(model, method, optimizer, seed=seed)
        judged = {"model": Predictor(model, method, seed=seed), "as it is": model}
    best = dict.fromkeys(judged, (-1.0, 0, None))
    start = time.process_time()
    for step in range(1, steps + 1):
        if how in METHODS:
            engine.step(lambda: F.cross_entropy(model(x, edges), labels), optimizer, targets=labels)
        else:
            optimizer.zero_grad()
            F.cross_entropy(model(x, edges), labels).backward()
            optimizer.step()
        if step % EVERY == 0:
            for name, predictor in judged.items():
                found = accuracy(predictor, x, edges, y, val)
                if found > best[name][0]:
                    best[name] = (found, step, copy.deepcopy(predictor.state_dict()))
    seconds = time.process_time() - start
    result = {"seconds": round(seconds, 1)}
    for name, predictor in judged.items():
        found, step, state = best[name]
        predictor.load_state_dict(state)
        at = {"validation": round(found, 4), "test": round(accuracy(predictor, x, edges, y, test), 4), "step": step}
        result |= at if name == "model" else {name: at}
    return result


def saved_bytes(how, depth, graph):
    _, edges, y = graph
    model, x = network(how, depth, graph, 0)
    own, live, peak = {t.data_ptr() for t in (*model.parameters(), x, edges)}, [0], [0]

    class Kept:
        def __init__(self, t):
            self.t, self.size = t.detach(), t.numel() * t.element_size()
            live[0] += self.size
            peak[0] = max(peak[0], live[0])

        def __del__(self):
            live[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t if t.data_ptr() in own else Kept(t), lambda k: k.t if isinstance(k, Kept) else k
    ):
        if how == "backprop":
            F.cross_entropy(model(x, edges), y).backward()
        else:
            engine = Engine(model, localplug.method(how, **METHODS[how]))
            engine.evaluate(lambda: F.cross_entropy(model(x, edges), y), targets=y)
    return peak[0]


def mean(rows):
    """Over seeds."""
    tests = [row["test"] for row in rows]
    found = {"test": sum(tests) / len(tests), "spread": max(tests) - min(tests)}
    if "as it is" in rows[0]:
        found["as it is"] = sum(row["as it is"]["test"] for row in rows) / len(rows)
    return {name: round(value, 4) for name, value in found.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--depths", type=int, nargs="*", default=[1, 2, 3, 4])
    options = parser.parse_args()
    graph = read()
    twins = [(how, depth) for depth in options.depths for how in ("backprop", "graph-sf")]
    others = [(how, 2) for how in ("last layer", "graph-top2loss", "graph-top2input", "graph-ff-la", "graph-ff-vn")]
    rows, kept = {}, RESULTS / "cora_graph.json"
    if kept.exists():  # of a run that was cut off
        before = json.loads(kept.read_text())["result"]
        rows = before["rows"] if before["steps"] == options.steps else {}
    result = {"steps": options.steps, "seeds": options.seeds, "rows": rows}
    result["saved bytes"] = {
        how: {depth: saved_bytes(how, depth, graph) for depth in (1, 2, 3, 4, 8)} for how in ("backprop", "graph-sf")
    }
    for plan in (twins, others):
        for seed in options.seeds:
            for how, depth in plan:
                name = f"{how}, {depth} layers, seed {seed}"
                if name not in rows:
                    rows[name] = train(how, depth, graph, seed, options.steps)
                    save("cora_graph", result)
    result["mean"] = {
        f"{how}, {depth} layers": mean([rows[f"{how}, {depth} layers, seed {seed}"] for seed in options.seeds])
        for how, depth in twins + others
    }
    save("cora_graph", result)
