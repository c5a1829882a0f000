"""graph-ff-la against its equations; the negatives; what a prediction is shown; what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

import localplug
from localplug import Engine, Predictor
from localplug.contract import Run
from localplug_graph.label_appending import LabelAppending, with_label_columns
from localplug_graph.labels import wrong_labels

N, D, K = 20, 5, 3


def graph(seed=0):
    """Features with label columns, edges (some of them one way), labels with -100 for a third of the nodes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (N,), generator=g)
    labels[::3] = -100
    return with_label_columns(torch.randn(N, D, generator=g), K), torch.randint(0, N, (2, 50), generator=g), labels


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([GCNConv(D + K, 8), GCNConv(8, 8)])
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


def appended(x, labels):
    """By a loop over nodes: one-hot of the label, or 1/K."""
    rows = [[float(k == y) for k in range(K)] if y >= 0 else [1 / K] * K for y in labels.tolist()]
    return torch.cat([x[:, :D], torch.tensor(rows)], 1)


def goodness(model, x, edges, labels):
    """Per layer, sum and mean of squares; rows between layers at length 1."""
    h, found = appended(x, labels), []
    for layer in model.layers:
        h = torch.relu(layer(h, edges))
        found.append((h.square().sum(1), h.square().mean(1)))
        h = h.detach() / h.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
    return found


def test_gradients_follow_the_papers_equations():
    """BCE of goodness against theta: the true graph against all K - 1 wrong ones; the last layer on the plain pass."""
    x, edges, y = graph()
    model, known = network(), y >= 0
    engine = evaluated(model, LabelAppending(theta=1.5), (x, edges), y)
    for index, layer in enumerate(model.layers):
        logits = goodness(model, x, edges, y)[index][0][known] - 1.5
        J = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        for wrong in (1, 2):
            false = torch.where(known, (y + wrong) % K, y)
            logits = goodness(model, x, edges, false)[index][0][known] - 1.5
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
    engine = evaluated(model, LabelAppending(transductive=transductive), (x, edges), y)
    with torch.no_grad():
        columns = []
        for k in range(K):
            asked = torch.where(y >= 0, y, k) if transductive else torch.full((N,), k)
            columns.append(sum(mean for _, mean in goodness(model, x, edges, asked)))
        predictor = Predictor(model, engine.method)
        torch.testing.assert_close(predictor(x, edges), torch.stack(columns, 1))
        fresh = Predictor(network(), LabelAppending(transductive=transductive))
        fresh.load_state_dict(copy.deepcopy(predictor.state_dict()))
        assert torch.equal(fresh(x, edges), predictor(x, edges))
        smaller = x[:-1], edges[:, (edges < N - 1).all(0)]
        if transductive:
            with pytest.raises(ValueError, match="transductive=False predicts for any graph"):
                predictor(*smaller)
        else:
            assert predictor(*smaller).shape == (N - 1, K)


def test_what_stands_in_the_label_columns_does_not_matter_to_the_hidden_layers():
    x, edges, y = graph()
    one, two = network(), network()
    evaluated(one, LabelAppending(), (x, edges), y)
    evaluated(two, LabelAppending(), (torch.cat([x[:, :D], torch.full((N, K), 5.0)], 1), edges), y)
    for p, q in zip(one.layers.parameters(), two.layers.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


@pytest.mark.parametrize("num_negatives", [None, 2])
def test_wrong_labels_are_wrong_and_absent_ones_stay_absent(num_negatives):
    y = torch.arange(300) % 4 - 1
    y = torch.where(y < 0, -100, y)
    run = Run(nn.Identity(), [], seed=3)
    drawn = torch.stack([wrong_labels(y, j, K, num_negatives, run) for j in (1, 2)])
    assert (drawn[:, y < 0] == -100).all()
    known = drawn[:, y >= 0]
    assert ((known >= 0) & (known < K) & (known != y[y >= 0])).all()
    if num_negatives is None:
        assert (known[0] != known[1]).all()  # all K - 1 wrong labels of every node
        return
    share = float((known[0] == (y[y >= 0] + 1) % K).float().mean())
    assert 0.4 < share < 0.6
    run.step = 1
    assert not torch.equal(wrong_labels(y, 1, K, num_negatives, run), drawn[0])


def test_drawn_negatives_cost_as_many_passes_and_follow_the_seed():
    x, edges, y = graph()
    gradients = []
    for seed in (0, 0, 1):
        model = network()
        engine = Engine(model, LabelAppending(num_negatives=1), seed=seed)
        engine.evaluate(lambda model=model: F.cross_entropy(model(x, edges), y), targets=y)
        assert engine.run.num_forwards == 3
        gradients.append(model.layers[0].lin.weight.grad)
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])


def test_one_layer_after_the_other():
    x, edges, y = graph()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, LabelAppending(schedule="sequential", unit_steps=1), optimizer)
    layers, moved = [model.layers[0].lin, model.layers[1].lin, model.out], []
    for _ in range(4):
        before = [layer.weight.detach().clone() for layer in layers]
        engine.step(lambda: F.cross_entropy(model(x, edges), y), optimizer, targets=y)
        moved.append([not torch.equal(layer.weight, b) for layer, b in zip(layers, before, strict=True)])
    assert moved == [[True, False, False], [False, True, False], [False, False, True], [False, False, True]]


def test_what_it_refuses():
    with pytest.raises(ValueError) as wrong:
        LabelAppending(theta=0, num_negatives=0, schedule="sequential", num_classes=1)
    assert all(word in str(wrong.value) for word in ("theta", "num_negatives", "unit_steps", "num_classes"))
    narrow = nn.Sequential(nn.Linear(K, 4), nn.ReLU(), nn.Linear(4, K))
    engine = Engine(narrow, LabelAppending())
    with pytest.raises(ValueError, match=r"label columns behind them, got 3 columns"):
        engine.evaluate(lambda: narrow(torch.ones(4, K)).sum(), targets=torch.tensor([0, 1, 2, 0]))
    assert localplug.method("graph-ff-la", theta=3.0).theta == 3.0
