"""The conformance kit on graphs: PyG layers whose mean over neighbours a second copy of the graph leaves as it is."""

import pytest
import torch
from torch import nn
from torch_geometric.nn import GINConv

from localplug.testing import CurvedProblem, LocalMethodTests, Problem
from localplug_graph.label_appending import LabelAppending, with_label_columns
from localplug_graph.single_forward import SingleForward
from localplug_graph.top_to_input import TopDown, TopToInput
from localplug_graph.top_to_loss import TopToLoss
from localplug_graph.virtual_node_forward_forward import VirtualNodeForwardForward

WIDTH, NUM_FEATURES, NUM_CLASSES = 12, 6, 2


class GraphNet(nn.Module):
    """Layers x, edges -> tanh(W (x_i + mean over neighbours of x_j) + b), and a linear read-out."""

    def __init__(self, depth, dropout, num_features=NUM_FEATURES):
        super().__init__()
        self.convs = nn.ModuleList(
            GINConv(nn.Linear(WIDTH if i else num_features, WIDTH), aggr="mean") for i in range(depth)
        )
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, x, edge_index):
        for conv in self.convs:
            x = self.dropout(torch.tanh(conv(x, edge_index)))
        return self.head(x)


def numbered(make):
    """The network with numbers of an owned generator."""
    with torch.random.fork_rng(devices=[]):
        model = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return model


def pairs(num):
    """Edges both ways between nodes 2 i and 2 i + 1."""
    even = torch.arange(0, num, 2)
    return torch.stack([torch.cat([even, even + 1]), torch.cat([even + 1, even])])


def chosen_rows(inputs, chosen_B):
    """Some of the nodes, with the edges among them; a node that comes again is a copy, which sees the copies with it."""
    x, edges = inputs
    copies = torch.stack([(chosen_B[:i] == node).sum() for i, node in enumerate(chosen_B)])
    found = []
    for copy in range(int(copies.max()) + 1):
        place = torch.full((len(x),), -1)
        here = torch.where(copies == copy)[0]
        place[chosen_B[here]] = here
        moved = place[edges]
        found.append(moved[:, (moved >= 0).all(0)])
    return x[chosen_B], torch.cat(found, 1)


class OnGraphs:
    """48 nodes in pairs; a third has no label."""

    frozen_name = "convs.0.nn.bias"

    def network(self, depth, dropout):
        return numbered(lambda: GraphNet(depth, dropout))

    def data(self):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(48, NUM_FEATURES, generator=generator)
        labels = (x[:, :3].view(24, 2, 3).sum((1, 2)) > 0).long().repeat_interleave(2)
        labels[::3] = -100
        return (x, pairs(48)), labels

    def rows(self, inputs, chosen_B):
        return chosen_rows(inputs, chosen_B)


class GraphProblem(OnGraphs, Problem):
    pass


class CurvedGraphProblem(OnGraphs, CurvedProblem):
    """The sign of a product of two numbers, which the two nodes of a pair each have with noise."""

    def data(self):
        return self.split(2, 400)

    def split(self, seed, num):
        generator = torch.Generator().manual_seed(seed)
        u = torch.randn(num // 2, NUM_FEATURES, generator=generator).repeat_interleave(2, 0)
        x = u + 0.2 * torch.randn(num, NUM_FEATURES, generator=generator)
        return (x, pairs(num)), (u[:, 0] * u[:, 1] > 0).long()


class LabelledGraphProblem(GraphProblem):
    """With label columns behind the features, for which the network is wide enough."""

    def network(self, depth, dropout):
        return numbered(lambda: GraphNet(depth, dropout, NUM_FEATURES + NUM_CLASSES))

    def data(self):
        (x, edges), labels = super().data()
        return (with_label_columns(x, NUM_CLASSES), edges), labels


class CurvedLabelledGraphProblem(LabelledGraphProblem, CurvedGraphProblem):
    def data(self):
        return self.split(2, 400)

    def split(self, seed, num):
        (x, edges), labels = super().split(seed, num)
        return (with_label_columns(x, NUM_CLASSES), edges), labels


def with_top_down(model):
    """Every layer sees the one above it, the top one the classes; fewer features come from below."""
    num_below = [NUM_FEATURES] + [WIDTH] * (len(model.convs) - 1)
    num_above = [WIDTH] * (len(model.convs) - 1) + [NUM_CLASSES]
    for i, (below, above) in enumerate(zip(num_below, num_above, strict=True)):
        model.convs[i] = TopDown(GINConv(nn.Linear(below + above, WIDTH), aggr="mean"), below, above)
    return model


class TopDownGraphProblem(GraphProblem):
    frozen_name = "convs.0.layer.nn.bias"

    def network(self, depth, dropout):
        return numbered(lambda: with_top_down(GraphNet(depth, dropout)))


class CurvedTopDownGraphProblem(TopDownGraphProblem, CurvedGraphProblem):
    def data(self):
        return self.split(2, 400)


class OnGraphsTests(LocalMethodTests):
    learning_steps = 120


class TestSingleForward(OnGraphsTests):
    names = ("graph-sf",)
    problem, curved_problem = GraphProblem, CurvedGraphProblem

    @pytest.fixture
    def make(self):
        return lambda: SingleForward()


class TestLabelAppending(OnGraphsTests):
    names = ("graph-ff-la",)
    problem, curved_problem = LabelledGraphProblem, CurvedLabelledGraphProblem
    uses_seed = False

    @pytest.fixture
    def make(self):
        return lambda: LabelAppending(transductive=False)


class TestVirtualNodeForwardForward(OnGraphsTests):
    names = ("graph-ff-vn",)
    problem, curved_problem = GraphProblem, CurvedGraphProblem

    @pytest.fixture
    def make(self):
        return lambda: VirtualNodeForwardForward(transductive=False)


class TestTopToLoss(OnGraphsTests):
    names = ("graph-top2loss",)
    problem, curved_problem = GraphProblem, CurvedGraphProblem

    @pytest.fixture
    def make(self):
        return lambda: TopToLoss()


class TestTopToInput(OnGraphsTests):
    names = ("graph-top2input",)
    problem, curved_problem = TopDownGraphProblem, CurvedTopDownGraphProblem
    depths = (4, 8, 16)  # with two layers none is between others, and as wide

    @pytest.fixture
    def make(self):
        return lambda: TopToInput()
