"""PEPITA against its equations, layer by layer, in linear and convolutional networks; what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, Unsupported
from localplug_forward.pepita import PEPITA

K = 3


def evaluated(net, x, y, method=None, loss=F.cross_entropy, seed=0):
    engine = Engine(net, method or PEPITA(scale=0.5), seed=seed)
    reported = engine.evaluate(lambda: loss(net(x), y), targets=y)
    return engine.method, reported


def projection_of(method, n_0):
    (F_KD,) = method._F.values()
    assert F_KD.shape == (K, n_0)
    return F_KD.T


def test_every_layer_follows_the_rule():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, K))
    x, y = torch.randn(20, 8), torch.randint(0, K, (20,))
    method, reported = evaluated(net, x, y)
    with torch.no_grad():

        def passes(x):
            a = torch.tanh(net[0](x))
            b = torch.relu(net[2](a))
            return [x, a, b, net[4](b).softmax(1)]

        h1 = passes(x)
        e = h1[3] - F.one_hot(y, K)
        h2 = passes(x + e @ projection_of(method, 8).T)
        assert (h2[0] - x).abs().max() > 1e-3
        for layer, k in ((net[0], 1), (net[2], 2)):
            wanted, of_bias = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
            for b in range(20):
                wanted += torch.outer(h1[k][b] - h2[k][b], h2[k - 1][b]) / 20
                of_bias += (h1[k][b] - h2[k][b]) / 20
            torch.testing.assert_close(layer.weight.grad, wanted, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(layer.bias.grad, of_bias, atol=1e-6, rtol=1e-4)
        e2 = h2[3] - F.one_hot(y, K)
        torch.testing.assert_close(net[4].weight.grad, e2.T @ h2[2] / 20, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(reported, -h2[3][torch.arange(20), y].log().mean())


def test_the_projection_is_uniform_in_its_bound_and_follows_from_the_seed():
    net = nn.Sequential(nn.Linear(600, 4), nn.ReLU(), nn.Linear(4, K))
    x, y = torch.randn(5, 600), torch.tensor([0, 1, 2, 0, 1])
    found = []
    for seed in (0, 0, 1):
        method, _ = evaluated(net, x, y, PEPITA(scale=0.05), seed=seed)
        found.append(projection_of(method, 600).clone())
        net.zero_grad()
    bound = 0.05 * (6 / 600) ** 0.5
    assert 0.98 * bound < found[0].abs().max() <= bound and found[0].mean().abs() < 0.1 * bound
    assert float(found[0].std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_convolutions_correlate_the_difference_with_their_patches():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 3, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, K),
    )
    x, y = torch.randn(5, 2, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    method, _ = evaluated(net, x, y)
    with torch.no_grad():
        e = net(x).softmax(1) - F.one_hot(y, K)
        x2 = x + (e @ projection_of(method, 72).T).view_as(x)
        a1, a2 = torch.tanh(net[0](x)), torch.tanh(net[0](x2))
        patches = F.unfold(x2, 3, padding=1, stride=2)  # (B, 18, 9)
        wanted = torch.einsum("bop,bip->oi", (a1 - a2).flatten(2), patches) / 5
        torch.testing.assert_close(net[0].weight.grad.flatten(1), wanted, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(net[0].bias.grad, (a1 - a2).sum((0, 2, 3)) / 5, atol=1e-6, rtol=1e-4)
        d = torch.tanh(net[2](a1)) - torch.tanh(net[2](a2))
        wanted = torch.einsum("bop,bip->oi", d.flatten(2), F.unfold(a2, 2)) / 5  # the unit ends in a Flatten
        torch.testing.assert_close(net[2].weight.grad.flatten(1), wanted, atol=1e-6, rtol=1e-4)


def test_dropout_drops_the_same_units_in_both_passes():
    """Otherwise h1 - h2 would be the noise of the mask: here it is as small as F e."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Dropout(0.5), nn.Linear(50, K))
    x, y = torch.randn(20, 8), torch.randint(0, K, (20,))
    evaluated(net, x, y, PEPITA(scale=1e-4))
    assert 0 < net[0].weight.grad.abs().max() < 1e-3


def test_regression_has_the_error_of_the_output_itself():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, K))
    x, y = torch.randn(20, 8), torch.randn(20, K)
    method, _ = evaluated(net, x, y, loss=lambda out, y: (out - y).square().sum(1).mean() / 2)
    with torch.no_grad():
        x2 = x + (net(x) - y) @ projection_of(method, 8).T
        wanted = (torch.tanh(net[0](x)) - torch.tanh(net[0](x2))).T @ x2 / 20
    torch.testing.assert_close(net[0].weight.grad, wanted, atol=1e-6, rtol=1e-4)


def test_a_frozen_bias_has_no_gradient_and_nothing_is_kept_after_a_step():
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, K))
    net[0].bias.requires_grad_(False)
    method, _ = evaluated(net, torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))
    assert net[0].bias.grad is None and net[0].weight.grad.abs().sum() > 0
    assert not method._h1


def test_the_door():
    with pytest.raises(ValueError) as wrong:
        PEPITA(scale=0, num_classes=0)
    assert "scale" in str(wrong.value) and "num_classes" in str(wrong.value)
    for layers, why in (
        ([nn.Conv1d(2, 3, 3)], "rule is for Linear and Conv2d layers, and '0' is a Conv1d"),
        ([nn.Linear(4, 4), nn.LayerNorm(4)], "'0' is followed by other weights"),
        ([nn.Conv2d(1, 1, 3, padding="same")], "give padding as integers"),
        ([nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")], "pad by a number of zeros"),
    ):
        with pytest.raises(Unsupported, match=why):
            Engine(nn.Sequential(*layers, nn.Linear(4, K)), PEPITA())
    pooled = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, K))
    with pytest.raises(Unsupported, match="no rule for pooling, use strides"):
        evaluated(pooled, torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0]))
    words = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, K))
    with pytest.raises(Unsupported, match="'0' is a Embedding"):
        Engine(words, PEPITA())
