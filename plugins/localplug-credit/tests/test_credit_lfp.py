"""LFP against its equations, through every way in which a loss reaches it; and what it can train."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug_credit.lfp import LFP


def normal(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_layers():
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normal(*p.shape, seed=i + 10))
    return net


def by_hand(net, x, reward):
    """-dw of each parameter, by the equations at the head of localplug_credit.lfp."""
    with torch.no_grad():
        z1 = net[0](x)
        a = z1.relu()
        s2 = reward(net[2](a)) / net[2](a)
        s1 = a * (s2 @ net[2].weight) / z1
        found = [s1.T @ x, s1.sum(0), s2.T @ a, s2.sum(0)]
        return [-p.abs() * g for p, g in zip(net.parameters(), found, strict=True)]


def gradients(net, loss, *, method=None, **options):
    engine = localplug.Engine(net, method or LFP(eps=1e-12), torch.optim.SGD(net.parameters(), lr=1.0), **options)
    engine.evaluate(loss)
    return [p.grad for p in net.parameters()]


LOSSES = {
    "cross-entropy": (
        lambda o, y: F.cross_entropy(o, y),
        lambda o, y: o * (F.one_hot(y, 3) - o.softmax(1)) / len(y),
    ),
    "smoothed": (
        lambda o, y: F.cross_entropy(o, y, label_smoothing=0.1, reduction="sum"),
        lambda o, y: o * (0.9 * F.one_hot(y, 3).double() + 0.1 / 3 - o.softmax(1)),
    ),
    "of floats of it": (
        lambda o, y: F.cross_entropy(o.float().view(-1, 3), y),
        lambda o, y: o * (F.one_hot(y, 3) - o.softmax(1)) / len(y),
    ),
    "squares": (
        lambda o, y: F.mse_loss(o, F.one_hot(y, 3).double()),
        lambda o, y: o * 2 * (F.one_hot(y, 3) - o) / o.numel(),
    ),
    "squares by hand": (
        lambda o, y: ((F.one_hot(y, 3) - o) ** 2).sum(1).mean() / 2,
        lambda o, y: o * (F.one_hot(y, 3) - o) / len(y),
    ),
    "binary": (
        lambda o, y: F.binary_cross_entropy_with_logits(o, F.one_hot(y, 3).double()),
        lambda o, y: o * (F.one_hot(y, 3) - o.sigmoid()) / o.numel(),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_each_weight_has_the_reward_that_went_through_it(name):
    loss, reward = LOSSES[name]
    net, x, y = two_layers(), normal(6, 5), torch.arange(6) % 3
    found = gradients(net, lambda: loss(net(x), y))
    rough = 1e-6 if name == "of floats of it" else 1e-9
    for g, expected in zip(found, by_hand(net, x, lambda o: reward(o, y)), strict=True):
        torch.testing.assert_close(g, expected, atol=rough, rtol=rough)


def test_a_loss_outside_of_an_attached_model_gives_the_same():
    net, x, y = two_layers(), normal(6, 5), torch.arange(6) % 3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    with localplug.attach(net, LFP(eps=1e-12), optimizer):
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        found = [p.grad.clone() for p in net.parameters()]
    reward = LOSSES["cross-entropy"][1]
    for g, expected in zip(found, by_hand(net, x, lambda o: reward(o, y)), strict=True):
        torch.testing.assert_close(g, expected, atol=1e-9, rtol=1e-9)


def test_no_graph_of_the_model_is_built_and_the_tape_is_gone_after_the_step():
    """Autograd sees the operations of the loss, one at a time, when they are differentiated."""
    net, x, y = two_layers(), normal(6, 5), torch.arange(6) % 3
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.numel()) or t, lambda t: t):
        method = LFP()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        engine = localplug.Engine(net, method, optimizer)

        def loss():
            value = F.cross_entropy(net(x), y)
            assert not value.requires_grad and not packed
            return value

        engine.step(loss, optimizer)
    assert max(packed) <= 6 * 3 and not any(isinstance(v, torch.Tensor) for v in vars(method).values())


class Step(nn.Module):
    def forward(self, x):
        return torch.heaviside(x, x.new_zeros(()))


def test_units_without_a_derivative_learn():
    """The sign of a product of two inputs, by steps, of which autograd has no derivative. eps bounds reward / z near 0."""
    x = normal(400, 6).float()
    y = (x[:, 0] * x[:, 1] > 0).long()

    def trained(*, hidden):
        generator = torch.Generator().manual_seed(3)
        net = nn.Sequential(nn.Linear(6, 32), Step(), nn.Linear(32, 2))
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
        net[0].requires_grad_(hidden)
        optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
        engine = localplug.Engine(net, LFP(eps=0.1), optimizer)
        for _ in range(200):
            engine.step(lambda: F.cross_entropy(net(x), y), optimizer)
        with torch.no_grad():
            return float((net(x).argmax(1) == y).float().mean())

    whole, last = trained(hidden=True), trained(hidden=False)
    assert whole > last + 0.1 and whole > 0.85, (whole, last)


def test_weights_at_zero_are_told_of(caplog):
    net = two_layers()
    nn.init.zeros_(net[0].bias)
    with caplog.at_level(logging.WARNING, logger="localplug"):
        found = gradients(net, lambda: F.cross_entropy(net(normal(6, 5)), torch.arange(6) % 3))
    assert "0.bias" in caplog.text and not found[1].any() and found[0].any()


def test_a_compiled_model_is_refused_and_options_are_checked_together():
    net = torch.compile(two_layers(), backend="eager")
    with pytest.raises(localplug.Unsupported, match=r"torch\.compile"):
        localplug.Engine(net, LFP(), torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"LFP: .*eps must be positive, got 0.*rebuild must be an integer.* got -1"):
        LFP(eps=0, rebuild=-1)
