"""graph-top2input against its equations over several steps; what it predicts; what it refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

import localplug
from localplug import Engine, Predictor
from localplug_graph.top_to_input import TopDown, TopToInput
from localplug_graph.virtual_nodes import virtual_edges, virtual_features

N, D, K, WIDTH = 20, 5, 3, 8


def graph(seed=0):
    """Features, edges (some of them one way), labels with -100 for a third of the nodes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K, (N,), generator=g)
    labels[::3] = -100
    return torch.randn(N, D, generator=g), torch.randint(0, N, (2, 50), generator=g), labels


class Net(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        below, above = [D] + [WIDTH] * (depth - 1), [WIDTH] * (depth - 1) + [K]
        self.layers = nn.ModuleList(TopDown(GCNConv(b + a, WIDTH), b, a) for b, a in zip(below, above, strict=True))
        self.out = nn.Linear(WIDTH, K)

    def forward(self, x, edge_index):
        for layer in self.layers:
            x = torch.relu(layer(x, edge_index))
        return self.out(x)


def network(depth=3):
    torch.manual_seed(0)
    return Net(depth)


def unit_rows(h):
    return h / h.norm(dim=1, keepdim=True).clamp_min(1e-12)


def seen(layer, index, states, x, top):
    """[below ; above] of a layer by the paper's formula, zeros for a state that is not there yet."""
    below = x if index == 0 else unit_rows(states[index - 1])
    if index == len(states) - 1:
        above = top
    else:
        above = unit_rows(states[index + 1]) if states[index + 1] is not None else torch.zeros(len(x), layer.num_above)
    return torch.cat([below, above], 1)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_three_steps_follow_the_papers_equations(depth):
    """Even layers, then odd ones, each from the states around it; SGD by hand on the losses."""
    x, edges, y = graph()
    model, mine = network(depth), network(depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, TopToInput(temperature=0.5, hidden_labels=0.0), optimizer)
    joined = torch.cat([edges, virtual_edges(y, "to virtual")], 1)
    x_all = torch.cat([x, virtual_features(x, K, seed=0)])
    labels = [*y.tolist(), *range(K)]
    top = torch.tensor([[float(k == c) for k in range(K)] if c >= 0 else [1 / K] * K for c in labels])
    known, states = y >= 0, [None] * depth
    for _ in range(3):
        engine.step(lambda: F.cross_entropy(model(x, edges), y), optimizer, targets=y)
        gradients = {}
        J = F.cross_entropy(mine(x, edges), y)
        gradients.update(zip(mine.out.parameters(), torch.autograd.grad(J, list(mine.out.parameters())), strict=True))
        for parity in (0, 1):
            for index, layer in enumerate(mine.layers):
                if index % 2 != parity:
                    if states[index] is None:
                        h = torch.relu(layer.layer(seen(layer, index, states, x_all, top), joined))
                        states[index] = h.detach()
                    continue
                h = torch.relu(layer.layer(seen(layer, index, states, x_all, top), joined))
                p = torch.softmax(h[:N] @ h[N:].T / 0.5, 1)
                J = -p[known, y[known]].log().mean()
                found = torch.autograd.grad(J, list(layer.parameters()))
                gradients.update(zip(layer.parameters(), found, strict=True))
                states[index] = h.detach()
        with torch.no_grad():
            for p in mine.parameters():
                p.sub_(0.1 * gradients[p])
        for p, q in zip(model.parameters(), mine.parameters(), strict=True):
            torch.testing.assert_close(p, q)
        for index, state in enumerate(states):
            torch.testing.assert_close(engine.method.states[f"layers.{index}"], state)
    assert engine.run.num_forwards == 3 * 3


def test_a_prediction_adds_up_steps_without_labels():
    x, edges, y = graph()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = TopToInput(num_steps=4, skip_steps=1)
    engine = Engine(model, method, optimizer)
    engine.step(lambda: F.cross_entropy(model(x, edges), y), optimizer, targets=y)
    with torch.no_grad():
        classes, states, p = [method.classes[f"layers.{i}"] for i in range(3)], [None] * 3, []
        top = torch.full((N, K), 1 / K)
        for step in range(4):
            for parity in (0, 1):
                for index, layer in enumerate(model.layers):
                    turn = index % 2 == parity
                    if not turn and states[index] is not None:
                        continue
                    states[index] = torch.relu(layer.layer(seen(layer, index, states, x, top), edges))
                    if turn and step >= 1:
                        p.append(torch.softmax(states[index] @ classes[index].T, 1))
        predictor = Predictor(model, method)
        torch.testing.assert_close(predictor(x, edges).exp(), sum(p) / len(p))
        assert len(p) == 3 * 3
        fresh = Predictor(network(), TopToInput(num_steps=4, skip_steps=1))
        assert torch.equal(fresh(x, edges), fresh.model(x, edges))  # before a first step
        fresh.load_state_dict(copy.deepcopy(predictor.state_dict()))
        assert torch.equal(fresh(x, edges), predictor(x, edges))


def test_a_hidden_label_is_learned_from_and_never_shown():
    """With all of them hidden the top layer's input tells nothing of them; its loss still does."""
    x, edges, y = graph()
    entered = []
    for labels in (y, torch.where(y >= 0, (y + 1) % K, y)):
        for hidden in (0.0, 1.0):
            model = network(2)
            seen_by_top = []
            model.layers[1].layer.register_forward_pre_hook(
                lambda _, args, seen_by_top=seen_by_top: seen_by_top.append(args[0][:N, -K:])
            )
            engine = Engine(model, TopToInput(hidden_labels=hidden))
            engine.evaluate(lambda model=model: F.cross_entropy(model(x, edges), y), targets=labels)
            entered.append((seen_by_top[1], model.layers[1].layer.lin.weight.grad))
    shown, never, shown_other, never_other = entered
    torch.testing.assert_close(never[0], torch.full((N, K), 1 / K))
    assert torch.equal(never[0], never_other[0]) and not torch.equal(never[1], never_other[1])
    assert not torch.equal(shown[0], shown_other[0])
    assert torch.equal(shown[0][y >= 0], F.one_hot(y[y >= 0], K).float())


def test_an_evaluation_between_steps_leaves_the_states_of_training_alone():
    x, edges, y = graph()
    found = []
    for looks in (False, True):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = Engine(model, TopToInput(), optimizer)
        for _ in range(2):
            engine.evaluate(lambda model=model: F.cross_entropy(model(x, edges), y), targets=y)
            if looks:
                Predictor(model, engine.method)(x, edges)
            engine.apply(optimizer)
            optimizer.step()
            optimizer.zero_grad()
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*found)


def test_what_it_refuses():
    x, edges, _ = graph()
    with pytest.raises(ValueError) as wrong:
        TopToInput(temperature=0, hidden_labels=2.0, num_steps=0, skip_steps=3, num_classes=0)
    for word in ("temperature", "hidden_labels", "num_steps", "skip_steps", "num_classes"):
        assert word in str(wrong.value)
    plain = nn.Sequential(nn.Linear(D, 8), nn.ReLU(), nn.Linear(8, K))
    with pytest.raises(localplug.Unsupported, match="put each in a localplug_graph.top_to_input.TopDown"):
        Engine(plain, TopToInput())
    with pytest.raises(ValueError, match="sees 5 features from below and 8 from above, got 7"):
        network().layers[0](torch.ones(N, 7), edges)
    layer = network().layers[0]
    assert torch.equal(layer(x, edges), layer(torch.cat([x, torch.zeros(N, WIDTH)], 1), edges))
