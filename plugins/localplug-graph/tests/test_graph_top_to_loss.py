"""graph-top2loss against its equations; what it predicts and refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCN, GCNConv

import localplug
from localplug import Engine, Predictor
from localplug_graph.top_to_loss import TopToLoss
from localplug_graph.virtual_nodes import virtual_edges, virtual_features

N, D, K = 20, 5, 3


def graph(seed=0):
    """Features, edges (some of them one way), labels with -100 for a third of the nodes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (N,), generator=g)
    labels[::3] = -100
    return torch.randn(N, D, generator=g), torch.randint(0, N, (2, 50), generator=g), labels


class Net(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(GCNConv(8 if i else D, 8) for i in range(depth))
        self.out = nn.Linear(8, K)

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = torch.relu(layer(x, edge_index))
        return self.out(x)


def network():
    torch.manual_seed(0)
    return Net()


def evaluated(model, method, inputs, labels):
    engine = Engine(model, method)
    engine.evaluate(lambda: F.cross_entropy(model(*inputs), labels), targets=labels)
    return engine


def outputs(model, x, edges, y):
    """H_1 ... H_L on the graph with virtual nodes, each with the graph of its own layer."""
    joined = torch.cat([edges, virtual_edges(y, "to virtual")], 1)
    h, found = torch.cat([x, virtual_features(x, K, seed=0)]), []
    for layer in model.layers:
        h = torch.relu(layer(h, joined))
        found.append(h)
        h = h.detach() / h.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
    return found


def test_gradients_follow_the_papers_equations():
    """The mean of a layer's own output and of all above it, held constant; the last layer on the plain pass."""
    x, edges, y = graph()
    model, known = network(), y >= 0
    engine = evaluated(model, TopToLoss(temperature=2.0), (x, edges), y)
    H = outputs(model, x, edges, y)
    for index, layer in enumerate(model.layers):
        Z = torch.stack([H[index], *(h.detach() for h in H[index + 1 :])]).mean(0)
        p = torch.softmax(Z[:N] @ Z[N:].T / 2.0, 1)
        J = -p[known, y[known]].log().mean()
        for q, wanted in zip(layer.parameters(), torch.autograd.grad(J, list(layer.parameters())), strict=True):
            assert wanted.any()
            torch.testing.assert_close(q.grad, wanted)
    (wanted,) = torch.autograd.grad(F.cross_entropy(model(x, edges), y), [model.out.weight])
    torch.testing.assert_close(model.out.weight.grad, wanted)
    assert engine.run.num_forwards == engine.method.num_evaluations == 3


@pytest.mark.parametrize("head", [False, True])
def test_a_prediction_averages_the_layers(head):
    x, edges, y = graph()
    model = network()
    engine = evaluated(model, TopToLoss(head=head), (x, edges), y)
    with torch.no_grad():
        H, p = outputs(model, x, edges, y), []
        for index in range(3):
            Z = torch.stack(H[index:]).mean(0)
            p.append(torch.softmax(Z[:N] @ Z[N:].T, 1))
        if head:
            p.append(model(x, edges).softmax(1))
        predictor = Predictor(model, engine.method)
        torch.testing.assert_close(predictor(x, edges).exp(), sum(p) / len(p))
        fresh = Predictor(network(), TopToLoss(head=head))
        assert torch.equal(fresh(x, edges), fresh.model(x, edges))  # before a first step
        fresh.load_state_dict(copy.deepcopy(predictor.state_dict()))
        assert torch.equal(fresh(x, edges), predictor(x, edges))


def test_the_top_layer_learns_as_by_single_forward():
    x, edges, y = graph()
    one, two = network(), network()
    evaluated(one, TopToLoss(), (x, edges), y)
    evaluated(two, localplug.method("graph-sf"), (x, edges), y)
    top = [(p.grad, q.grad) for p, q in zip(one.layers[2].parameters(), two.layers[2].parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in top)
    assert not torch.equal(one.layers[0].lin.weight.grad, two.layers[0].lin.weight.grad)


def test_what_it_refuses():
    x, _, y = graph()
    with pytest.raises(ValueError) as wrong:
        TopToLoss(temperature=-1.0, num_classes=0)
    assert all(word in str(wrong.value) for word in ("temperature", "num_classes"))
    with pytest.raises(localplug.Unsupported, match="cached=False"):
        Engine(GCN(D, 8, 2, K, cached=True), TopToLoss(num_classes=K))
    uneven = nn.Sequential(nn.Linear(D, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, K))
    engine = Engine(uneven, TopToLoss())
    with pytest.raises(ValueError, match="hidden layers of one width, got 4 and 6"):
        engine.evaluate(lambda: F.cross_entropy(uneven(x), y), targets=y)
