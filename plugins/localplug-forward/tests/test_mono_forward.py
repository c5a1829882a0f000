"""Mono-Forward against its equations: W and M together, the head as the last M, both predictions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, Predictor, Unsupported
from localplug_forward.mono_forward import MonoForward

K = 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, K))


def data(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=g), torch.randint(0, K, (n,), generator=g)


def evaluated(method):
    net, (x, y) = network(), data()
    engine = Engine(net, method)
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    return net, engine.method.owned_modules.modules, x, y, engine


def cross_entropy(G, y):
    """-mean log softmax, from its definition."""
    p = G.exp() / G.exp().sum(1, keepdim=True)
    return -p[torch.arange(len(y)), y].log().mean()


def same(parameters, J):
    for p, expected in zip(parameters, torch.autograd.grad(J, parameters), strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-5)


def test_weights_and_projection_learn_together():
    net, M, x, y, _ = evaluated(MonoForward())
    assert list(M) == ["0"] and M["0"].weight.shape == (K, 12) and M["0"].bias is None
    a_1 = torch.relu(net[0](x))
    same([*net[0].parameters(), M["0"].weight], cross_entropy(a_1 @ M["0"].weight.T, y))
    G_2 = net[4](torch.relu(net[2](a_1.detach())))  # the head is the last layer's M
    same([*net[2].parameters(), *net[4].parameters()], cross_entropy(G_2, y))


def test_with_a_head_by_itself_every_hidden_layer_has_a_projection():
    net, M, x, y, _ = evaluated(MonoForward(joins_head=False))
    assert list(M) == ["0", "2"]
    a_2 = torch.relu(net[2](torch.relu(net[0](x)).detach()))
    same([*net[2].parameters(), M["2"].weight], cross_entropy(a_2 @ M["2"].weight.T, y))
    same([*net[4].parameters()], cross_entropy(net[4](a_2.detach()), y))


def test_predictions():
    net, M, x, _, engine = evaluated(MonoForward(predict="sum"))
    with torch.no_grad():
        a_1 = torch.relu(net[0](x))
        a_2 = torch.relu(net[2](a_1))
        expected = a_1 @ M["0"].weight.T + a_2 @ M["2"].weight.T + net[4](a_2)
        torch.testing.assert_close(Predictor(net, engine.method)(x), expected)
    with pytest.raises(ValueError, match="predicts by a forward pass of the model"):
        Predictor(network(), MonoForward(predict="last"))


def test_maps_are_projected_whole():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, K))
    x, y = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    engine = Engine(net, MonoForward())
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    M = engine.method.owned_modules.modules["0"].weight
    same([*net[0].parameters(), M], cross_entropy(torch.relu(net[0](x)).flatten(1) @ M.T, y))


def test_the_door():
    with pytest.raises(ValueError) as wrong:
        MonoForward(predict="best", num_classes=0)
    assert "predict" in str(wrong.value) and "num_classes" in str(wrong.value)
    with pytest.raises(ValueError, match="leave joins_head out"):
        MonoForward(predict="sum", joins_head=True)
    with pytest.raises(Unsupported, match="at least 2 units"):  # one unit would be backpropagation
        Engine(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), MonoForward())
