"""graph-ff-vn against its equations; what a prediction is shown; what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GATConv, GCNConv, SAGEConv

import localplug
from localplug import Engine, Predictor
from localplug_graph.virtual_node_forward_forward import VirtualNodeForwardForward
from localplug_graph.virtual_nodes import virtual_features

N, D, K = 20, 5, 3
LAYERS = {"gcn": GCNConv, "sage": SAGEConv, "gat": GATConv}


def graph(seed=0):
    """Features, edges (some of them one way), labels with -100 for a third of the nodes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (N,), generator=g)
    labels[::3] = -100
    return torch.randn(N, D, generator=g), torch.randint(0, N, (2, 50), generator=g), labels


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = nn.ModuleList([LAYERS[kind](D, 8), LAYERS[kind](8, 8)])
        self.out = nn.Linear(8, K)

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = torch.relu(layer(x, edge_index))
        return self.out(x)


def network(kind="gcn"):
    torch.manual_seed(0)
    return Net(kind)


def evaluated(model, method, inputs, labels, seed=0):
    engine = Engine(model, method, seed=seed)
    engine.evaluate(lambda: F.cross_entropy(model(*inputs), labels), targets=labels)
    return engine


def goodness(model, x, edges, labels, both, seed=0):
    """Per layer, sum and mean of squares of the nodes' rows, with edges from a loop over the nodes."""
    more = []
    for i, y in enumerate(labels.tolist()):
        if y >= 0:
            more += [(N + y, i)] + ([(i, N + y)] if both else [])
    joined = torch.cat([edges, torch.tensor(more).T], 1)
    h, found = torch.cat([x, virtual_features(x, K, seed=seed)]), []
    for layer in model.layers:
        h = torch.relu(layer(h, joined))
        found.append((h[:N].square().sum(1), h[:N].square().mean(1)))
        h = h.detach() / h.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
    return found


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("edges_lead", ["to nodes", "both"])
def test_gradients_follow_the_papers_equations(kind, edges_lead):
    x, edges, y = graph()
    model, known, both = network(kind), y >= 0, edges_lead == "both"
    engine = evaluated(model, VirtualNodeForwardForward(theta=1.5, edges=edges_lead), (x, edges), y, seed=4)
    for index, layer in enumerate(model.layers):
        logits = goodness(model, x, edges, y, both, seed=4)[index][0][known] - 1.5
        J = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        for wrong in (1, 2):
            false = torch.where(known, (y + wrong) % K, y)
            logits = goodness(model, x, edges, false, both, seed=4)[index][0][known] - 1.5
            J = J + F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)) / 2
        for p, wanted in zip(layer.parameters(), torch.autograd.grad(J, list(layer.parameters())), strict=True):
            assert wanted.any()
            torch.testing.assert_close(p.grad, wanted)
    (wanted,) = torch.autograd.grad(F.cross_entropy(model(x, edges), y), [model.out.weight])
    torch.testing.assert_close(model.out.weight.grad, wanted)
    assert engine.run.num_forwards == engine.method.num_evaluations == K + 1


@pytest.mark.parametrize("transductive", [True, False])
def test_a_prediction_is_the_goodness_of_each_class(transductive):
    x, edges, y = graph()
    model = network()
    engine = evaluated(model, VirtualNodeForwardForward(transductive=transductive), (x, edges), y)
    with torch.no_grad():
        columns = []
        for k in range(K):
            asked = torch.where(y >= 0, y, k) if transductive else torch.full((N,), k)
            columns.append(sum(mean for _, mean in goodness(model, x, edges, asked, False)))
        predictor = Predictor(model, engine.method)
        torch.testing.assert_close(predictor(x, edges), torch.stack(columns, 1))
        fresh = Predictor(network(), VirtualNodeForwardForward(transductive=transductive))
        fresh.load_state_dict(copy.deepcopy(predictor.state_dict()))
        assert torch.equal(fresh(x, edges), predictor(x, edges))
        if transductive:
            with pytest.raises(ValueError, match="transductive=False predicts for any graph"):
                predictor(x[:-1], edges[:, (edges < N - 1).all(0)])


def test_virtual_nodes_have_no_goodness_and_no_seed_shares_their_features():
    x, *_ = graph()
    features = virtual_features(x, K, seed=0)
    torch.testing.assert_close(features.norm(dim=1), x.norm(dim=1).mean().expand(K))
    assert torch.equal(features, virtual_features(x, K, seed=0))
    assert not torch.equal(features, virtual_features(x, K, seed=1))


def test_one_layer_after_the_other():
    x, edges, y = graph()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, VirtualNodeForwardForward(schedule="sequential", unit_steps=1), optimizer)
    layers, moved = [model.layers[0].lin, model.layers[1].lin, model.out], []
    for _ in range(4):
        before = [layer.weight.detach().clone() for layer in layers]
        engine.step(lambda: F.cross_entropy(model(x, edges), y), optimizer, targets=y)
        moved.append([not torch.equal(layer.weight, b) for layer, b in zip(layers, before, strict=True)])
    assert moved == [[True, False, False], [False, True, False], [False, False, True], [False, False, True]]


def test_drawn_negatives_cost_as_many_passes():
    x, edges, y = graph()
    engine = evaluated(network(), VirtualNodeForwardForward(num_negatives=1), (x, edges), y)
    assert engine.run.num_forwards == engine.method.num_evaluations == 3


def test_what_it_refuses():
    with pytest.raises(ValueError) as wrong:
        VirtualNodeForwardForward(theta=0, num_negatives=0, edges="to virtual", unit_steps=2, num_classes=1)
    for word in ("theta", "num_negatives", "edges", "unit_steps", "num_classes"):
        assert word in str(wrong.value)
    assert localplug.method("graph-ff-vn", edges="both").edges == "both"
