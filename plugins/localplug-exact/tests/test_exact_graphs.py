"""Shortest paths against networkx and scipy; compiled algorithms that are right, round by round; and a table that is not."""

import networkx
import numpy
import pytest
import scipy.sparse
import torch
from torch import nn

import localplug
from localplug_exact import graphs
from localplug_exact.compiled import relaxation_

NAMES = ["bfs", "bellman-ford"]


def drawn(num=20, n=12, seed=0):
    return graphs.bands(num, n, 4, torch.Generator().manual_seed(seed))


def test_distances_are_those_of_networkx_and_scipy():
    n, edges = 12, drawn()
    weighted, levels = (graphs.rounds(edges, n, weighted=w)[-1] for w in (True, False))
    for rows, d, level in zip(edges.tolist(), weighted, levels, strict=True):
        graph = networkx.DiGraph()
        for start, end, length in rows:
            shorter = min(length, graph.get_edge_data(start, end, {"w": length})["w"])
            graph.add_edge(start, end, w=shorter)
        assert networkx.single_source_bellman_ford_path_length(graph, 0, weight="w") == dict(enumerate(d.tolist()))
        assert networkx.single_source_shortest_path_length(graph, 0) == dict(enumerate(level.tolist()))
        dense = networkx.to_numpy_array(graph, nodelist=range(n), weight="w")
        (by_scipy,) = scipy.sparse.csgraph.bellman_ford(scipy.sparse.csr_array(dense), indices=[0])
        assert numpy.array_equal(by_scipy, d.numpy())


def test_nodes_without_a_path_are_marked_in_every_round():
    edges = torch.tensor([[[0, 1, 3], [2, 1, 1], [2, 3, 1]]])
    assert [d.tolist() for d in graphs.rounds(edges, 4)] == [[[0, -1, -1, -1]], [[0, 3, -1, -1]]]


def test_graphs_are_connected_from_the_source_and_long():
    small, large = (graphs.rounds(drawn(n=n), n)[-1] for n in (8, 32))
    assert int(small.min()) == int(large.min()) == 0
    assert float(large.max(1).values.float().mean()) > 2 * float(small.max(1).values.float().mean())
    edges = drawn(200, 6)
    assert (
        edges[..., 0].min() == 0 and edges[..., 0].max() == 5 and set(edges[..., 2].unique().tolist()) == {1, 2, 3, 4}
    )
    assert torch.equal(drawn(seed=1), drawn(seed=1)) and not torch.equal(drawn(seed=1), drawn(seed=2))


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_are_the_steps_of_the_algorithm(name):
    task = localplug.task(name, num_graphs=10)
    steps, after = task.parts(0).train.columns
    assert len(steps.unique(dim=0)) == len(steps)
    d, r, e = (steps[:, :3] * torch.tensor([8.0, 1.0, 8.0])).unbind(1)
    w = steps[:, 3] * 8 if name == "bellman-ford" else torch.ones(len(steps))
    assert steps.shape[1] == (4 if name == "bellman-ford" else 3) and set(r.tolist()) == {0.0, 1.0}
    wanted = [min(a, c + b) if known else c + b for a, known, c, b in zip(d, r, e, w, strict=True)]
    assert torch.equal(after[:, 0] * 8, torch.stack(wanted)) and float(e.min()) == 0


# ---- compiled ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_algorithm_is_right_on_all_graphs(name, depth):
    task = localplug.task(name, depth=depth, test_nodes=64, width=2 * depth, num_graphs=40)
    model = task.compile_(task.fresh_model(0))
    parts = task.parts(5)
    assert task.quality(model, parts.validation) == task.quality(model, parts.test.look()) == 1.0
    assert task.loss(model, parts.train.columns).item() == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_compiled_algorithm_makes_the_same_rounds(name):
    task = localplug.task(name)
    edges = drawn(n=20)
    found = task.run(task.compile_(task.fresh_model(0)), edges, 20)
    wanted = graphs.rounds(edges, 20, weighted=name == "bellman-ford")
    assert len(found) == len(wanted) > 5 and all(map(torch.equal, found, wanted))


def test_nodes_without_a_path_stay_so_in_a_run():
    task = localplug.task("bellman-ford")
    edges = torch.tensor([[[0, 1, 3], [2, 1, 1], [2, 3, 1]]])
    assert task.run(task.compile_(task.fresh_model(0)), edges, 4)[-1].tolist() == [[0, 3, -1, -1]]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_wrong_weight_is_found(layer):
    task = localplug.task("bellman-ford", depth=1, num_graphs=20)
    model = task.compile_(task.fresh_model(0))
    with torch.no_grad():
        model[layer].weight[0] *= 1.3
    assert task.quality(model, task.parts(0).validation) < 1


class Table(nn.Module):
    """Answers with the example that is nearest."""

    def __init__(self, steps, after):
        super().__init__()
        self.steps, self.after = steps, after

    def forward(self, x):
        return self.after[torch.cdist(x, self.steps).argmin(1)]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_all_examples_is_right_about_them_and_wrong_about_larger_graphs(name):
    task = localplug.task(name, num_graphs=30)
    parts = task.parts(0)
    table = Table(*parts.train.columns)
    edges = graphs.bands(30, 8, 4, torch.Generator().manual_seed(3000))  # those that the examples are from
    small = graphs.rounds(edges, 8, weighted=name == "bellman-ford")[-1]
    assert task.score(table, (edges, small)) == (30, 30)
    assert task.quality(table, parts.test.look()) < 0.2


def test_a_model_that_gives_no_number_ends_and_is_wrong():
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 1), float("nan"))

    task = localplug.task("bfs", num_graphs=3)
    assert task.quality(Nothing(), task.parts(0).validation) == 0


def test_an_algorithm_is_written_into_models_with_room_only():
    with pytest.raises(ValueError, match=r"4 inputs, 1 outputs and hidden layers of at least 2 units"):
        relaxation_(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), weighted=True, unit=1.0, limit=8.0)
    with pytest.raises(ValueError, match=r"a model of the task, nn.Sequential, got Linear"):
        localplug.task("bfs").compile_(nn.Linear(3, 1))
