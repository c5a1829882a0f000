"""graph-sf against its equations, on PyG's own layers; what it predicts, how it takes turns, and what it refuses."""

import pytest
import torch
import torch_geometric
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GAT, GCN, GCNConv, GraphSAGE

import localplug
from localplug import Engine, Predictor
from localplug_graph.single_forward import SingleForward
from localplug_graph.virtual_nodes import virtual_edges, virtual_features

N, D, K = 20, 5, 3


def graph(seed=0):
    """x, edges (some of them one way), labels with -100 for a third of the nodes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (N,), generator=g)
    labels[::3] = -100
    return torch.randn(N, D, generator=g), torch.randint(0, N, (2, 50), generator=g), labels


class Net(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.layers = nn.ModuleList(GCNConv(8 if i else D, 8) for i in range(depth))
        self.out = GCNConv(8, K)

    def forward(self, x, edge_index, edge_weight=None):
        for layer in self.layers:
            x = torch.relu(layer(x, edge_index, edge_weight))
        return self.out(x, edge_index, edge_weight)


def network(depth=2, seed=0):
    torch.manual_seed(seed)
    return Net(depth)


def evaluated(model, method, inputs, labels, seed=0):
    engine = Engine(model, method, seed=seed)
    loss = engine.evaluate(lambda: F.cross_entropy(model(*inputs), labels), targets=labels)
    return engine, loss


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_follow_the_papers_equations(weighted):
    """Written by hand on the graph with virtual nodes; rows between layers at length 1; the last layer on the plain graph."""
    x, edges, y = graph()
    weights = (torch.rand(50),) if weighted else ()
    model = network()
    engine, _ = evaluated(model, SingleForward(temperature=0.5, num_classes=K), (x, edges, *weights), y, seed=7)
    train = torch.where(y >= 0)[0]
    to_virtual = torch.stack([train, N + y[train]])
    joined = torch.cat([edges, to_virtual], 1)
    joined_weights = tuple(torch.cat([w, torch.ones(len(train))]) for w in weights)
    H = torch.cat([x, virtual_features(x, K, seed=7)])
    for index, layer in enumerate(model.layers):
        H = torch.relu(layer(H if index == 0 else H / H.norm(dim=1, keepdim=True), joined, *joined_weights))
        p = torch.softmax(H[:N] @ H[N:].T / 0.5, 1)
        J = -p[train, y[train]].log().mean()
        for parameter, wanted in zip(layer.parameters(), torch.autograd.grad(J, list(layer.parameters())), strict=True):
            assert wanted.any()
            torch.testing.assert_close(parameter.grad, wanted)
        H = H.detach()
    h = x
    for layer in model.layers:
        h = torch.relu(layer(h, edges, *weights)).detach()
    J = F.cross_entropy(model.out(h, edges, *weights)[train], y[train])
    for parameter, wanted in zip(
        model.out.parameters(), torch.autograd.grad(J, list(model.out.parameters())), strict=True
    ):
        torch.testing.assert_close(parameter.grad, wanted)
    assert engine.run.num_forwards == 2


@pytest.mark.parametrize("head", [False, True])
def test_a_prediction_equals_the_one_on_the_graph_with_virtual_nodes(head):
    x, edges, y = graph()
    model = network()
    engine, _ = evaluated(model, SingleForward(head=head, num_classes=K), (x, edges), y)
    joined = torch.cat([edges, virtual_edges(y, "to virtual")], 1)
    with torch.no_grad():
        H, p = torch.cat([x, virtual_features(x, K, seed=0)]), []
        for index, layer in enumerate(model.layers):
            H = torch.relu(layer(H if index == 0 else F.normalize(H), joined))
            p.append(torch.softmax(H[:N] @ H[N:].T, 1))
        if head:
            p.append(model(x, edges).softmax(1))
        wanted = sum(p) / len(p)
        torch.testing.assert_close(Predictor(model, engine.method)(x, edges).exp(), wanted)
    assert len(engine.method.prediction) == 1 + head


@pytest.mark.parametrize("head", [False, True])
def test_a_prediction_before_the_first_step_is_the_models(head):
    x, edges, _ = graph()
    model = network()
    assert torch.equal(Predictor(model, SingleForward(head=head, num_classes=K))(x, edges), model(x, edges))


def test_no_node_hears_of_its_own_label():
    """Permuting the classes of all labels permutes the class embeddings, and changes no node's own row."""
    x, edges, y = graph()
    rows = []
    for labels in (y, torch.where(y >= 0, (y + 1) % K, y)):
        method = SingleForward(num_classes=K)
        original, seen = method.signal, []

        def signal(activity, run, original=original, seen=seen):
            seen.append(activity.output[:N].detach().clone())
            return original(activity, run)

        method.signal = signal
        evaluated(network(), method, (x, edges), labels)
        rows.append(seen)
    assert len(rows[0]) == 2
    for one, two in zip(*rows, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(
    "make",
    [
        lambda: GCN(D, 8, 3, K, dropout=0.1),
        lambda: GraphSAGE(D, 8, 3, K),
        lambda: GAT(D, 8, 3, K, heads=2),
        lambda: GCN(D, 8, 2, K, jk="last"),
    ],
    ids=["gcn", "sage", "gat", "a linear read-out"],
)
def test_pygs_own_models_learn_as_they_are(make):
    x, edges, _ = graph()
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    edges = edges[:, y[edges[0]] == y[edges[1]]]  # neighbours are of one class
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with localplug.attach(model, "graph-sf", optimizer, num_classes=K, targets=lambda args, kwargs: y):
        for _ in range(60):
            loss = F.cross_entropy(model(x, edges), y)
            loss.backward()
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            accuracy = (model(x, edges).argmax(1) == y).float().mean()
    assert accuracy > y.bincount().max() / N + 0.1


def test_a_norm_behind_its_layer_learns_with_it():
    x, edges, y = graph()
    torch.manual_seed(0)
    net = torch_geometric.nn.Sequential(
        "x, edges", [(GCNConv(D, 8), "x, edges -> x"), nn.BatchNorm1d(8), nn.ReLU(), (GCNConv(8, K), "x, edges -> x")]
    )
    engine, _ = evaluated(net, SingleForward(num_classes=K), (x, edges), y)
    assert len(engine.method.partition(engine.run)) == 2
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm1d))
    assert norm.weight.grad.any() and int(norm.num_batches_tracked) == 1


def test_one_layer_after_the_other():
    x, edges, y = graph()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = SingleForward(schedule="sequential", unit_steps=2, num_classes=K)
    engine = Engine(model, method, optimizer)
    layers, moved = [*model.layers, model.out], []
    for _ in range(7):
        before = [layer.lin.weight.detach().clone() for layer in layers]
        engine.step(lambda: F.cross_entropy(model(x, edges), y), optimizer, targets=y)
        moved.append([not torch.equal(layer.lin.weight, b) for layer, b in zip(layers, before, strict=True)])
        assert set(method.classes) == {"layers.0", "layers.1"}  # also of layers that wait
    assert moved == [[True, False, False]] * 2 + [[False, True, False]] * 2 + [[False, False, True]] * 3


def test_what_it_refuses():
    x, edges, y = graph()
    with pytest.raises(ValueError) as wrong:
        SingleForward(temperature=0, schedule="sequential", num_classes=0)
    assert all(word in str(wrong.value) for word in ("temperature", "unit_steps", "num_classes"))
    with pytest.raises(ValueError, match='"simultaneous" or "sequential"'):
        SingleForward(schedule="greedy")
    with pytest.raises(localplug.Unsupported, match="cached=False"):
        Engine(GCN(D, 8, 2, K, cached=True), SingleForward(num_classes=K))
    with pytest.raises(localplug.Unsupported, match="right behind its own layer"):
        Engine(GraphSAGE(D, 8, 2, K, norm="batch_norm"), SingleForward(num_classes=K))
    model = network()
    for labels, message in (
        (y.masked_fill(y == 2, K), r"-100 or in \[0, 3\)"),
        (y[:-1], "-100 for those without"),
        (torch.full((N,), -100), "no node has a label"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluated(model, SingleForward(num_classes=K), (x, edges), labels)
    with pytest.raises(TypeError, match="integer tensor"):
        evaluated(model, SingleForward(num_classes=K), (x, edges), y.float())
    with pytest.raises(ValueError, match="local targets need the labels"):
        evaluated(model, SingleForward(num_classes=K), (x, edges), None)
    attributed = GAT(D, 8, 2, K, edge_dim=2)
    with pytest.raises(ValueError, match=r"at most edge weights \(E,\)"):
        engine = Engine(attributed, SingleForward(num_classes=K))
        engine.evaluate(lambda: attributed(x, edges, edge_attr=torch.rand(50, 2)).sum(), targets=y)
    assert torch.is_grad_enabled()
