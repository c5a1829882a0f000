"""Forward learning of links against its equations; that it tells links from others; what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from localplug import Engine, Predictor
from localplug_graph.link_forward import LinkForward

N, D = 40, 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([GCNConv(D, 8), GCNConv(8, 8)])
        self.out = GCNConv(8, 4)

    def forward(self, x, edges, pairs):
        for layer in self.layers:
            x = torch.relu(layer(x, edges))
        z = self.out(x, edges)
        return (z[pairs[0]] * z[pairs[1]]).sum(-1)


def network():
    torch.manual_seed(0)
    return Net()


def communities(seed=0):
    """x, edges that are known, pairs with t: links inside of two communities of nodes, no links between them."""
    g = torch.Generator().manual_seed(seed)
    side = torch.arange(N) % 2
    x = torch.randn(N, D, generator=g) + (2.0 * side[:, None] - 1) * torch.tensor([1.0, -1.0, 0, 0, 0, 0])
    i, j = torch.randint(0, N, (2, 400), generator=g)
    same = side[i] == side[j]
    edges = torch.stack([i, j])[:, same][:, :60]
    return x, torch.cat([edges, edges.flip(0)], 1), torch.stack([i, j])[:, 200:], same[200:].float()


def test_gradients_follow_the_papers_equations():
    x, edges, pairs, t = communities()
    model = network()
    engine = Engine(model, LinkForward())
    engine.evaluate(lambda: F.binary_cross_entropy_with_logits(model(x, edges, pairs), t), targets=(pairs, t))
    h = x
    for index, layer in enumerate(model.layers):
        h = torch.relu(layer(h if index == 0 else h / h.norm(dim=1, keepdim=True).clamp_min(1e-12), edges))
        p = torch.sigmoid(torch.stack([h[i] @ h[j] for i, j in pairs.T.tolist()]))
        J = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        for q, wanted in zip(layer.parameters(), torch.autograd.grad(J, list(layer.parameters())), strict=True):
            assert wanted.any()
            torch.testing.assert_close(q.grad, wanted, atol=1e-5, rtol=1e-4)
        h = h.detach()
    J = F.binary_cross_entropy_with_logits(model(x, edges, pairs), t)
    (wanted,) = torch.autograd.grad(J, [model.out.lin.weight])
    torch.testing.assert_close(model.out.lin.weight.grad, wanted)
    assert engine.run.num_forwards == 2


def test_a_prediction_sums_the_scores_of_all_layers():
    x, edges, pairs, _ = communities()
    model = network()
    with torch.no_grad():
        h, total = x, model(x, edges, pairs)
        for index, layer in enumerate(model.layers):
            h = torch.relu(layer(h if index == 0 else F.normalize(h), edges))
            total = total + (h[pairs[0]] * h[pairs[1]]).sum(-1)
        torch.testing.assert_close(Predictor(model, LinkForward())(x, edges, pairs), total)


def test_links_are_told_from_others():
    """The share of (link, no link) pairs in the right order, on pairs and features that were not trained on."""
    x, edges, pairs, t = communities()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    method = LinkForward()
    engine = Engine(model, method, optimizer)

    def area():
        other_x, other_edges, other_pairs, other_t = communities(seed=1)
        with torch.no_grad():
            s = Predictor(model, method)(other_x, other_edges, other_pairs)
        return float((s[other_t == 1][:, None] > s[other_t == 0]).float().mean())

    before = area()
    for _ in range(60):
        engine.step(
            lambda: F.binary_cross_entropy_with_logits(model(x, edges, pairs), t), optimizer, targets=(pairs, t)
        )
    assert area() > max(0.9, before + 0.1)


def test_one_layer_after_the_other():
    x, edges, pairs, t = communities()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, LinkForward(schedule="sequential", unit_steps=1), optimizer)
    layers, moved = [*model.layers, model.out], []
    for _ in range(4):
        before = [layer.lin.weight.detach().clone() for layer in layers]
        engine.step(
            lambda: F.binary_cross_entropy_with_logits(model(x, edges, pairs), t), optimizer, targets=(pairs, t)
        )
        moved.append([not torch.equal(layer.lin.weight, b) for layer, b in zip(layers, before, strict=True)])
    assert moved == [[True, False, False], [False, True, False], [False, False, True], [False, False, True]]


def test_what_it_refuses():
    x, edges, pairs, t = communities()
    with pytest.raises(ValueError, match=r"(?s)schedule must be.*unit_steps"):
        LinkForward(schedule="greedy", unit_steps=3)
    model = network()
    engine = Engine(model, LinkForward())
    for targets, kind, message in (
        (t, TypeError, r"must be the tensors \(pairs"),
        ((pairs[:, :-1], t), ValueError, "got the shapes"),
        ((pairs + N, t), ValueError, r"nodes in \[0, 40\)"),
        ((pairs, t + 1), ValueError, "1 for a link and 0 for none"),
    ):
        with pytest.raises(kind, match=message):
            engine.evaluate(lambda: model(x, edges, pairs).mean(), targets=targets)
