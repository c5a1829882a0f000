"""PhyLL against its equations, with physical transforms that cannot be differentiated; inner steps; evaluations alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, Predictor, Unsupported
from localplug_forward.labels import overlay, wrong_labels
from localplug_forward.phyll import PhyLL, PhysicalLayer

K = 3


class Device:
    """A transform outside of torch: it counts its evaluations, and what it gives carries no graph."""

    def __init__(self, seed, size):
        self.matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).numpy() / size**0.5
        self.evaluations = 0

    def __call__(self, x):
        self.evaluations += 1
        return torch.from_numpy((x.numpy() @ self.matrix) ** 2 * 0.3 + x.numpy())


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        PhysicalLayer(Device(1, 8), nn.Linear(8, 12)), PhysicalLayer(Device(2, 12), nn.Linear(12, 9)), nn.Linear(9, K)
    )


def data(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=g), torch.randint(0, K, (n,), generator=g)


def loss(unit, h, p, theta):
    """J and the unit's output, with h the input: pos and neg."""
    outputs = [unit(a) for a in h]
    g_pos, g_neg = ((y.abs() @ p) / (y.norm(dim=1) * p.norm()) for y in outputs)
    return torch.log(1 + torch.exp(-theta * (g_pos - g_neg))).mean(), outputs


def directions(engine):
    return {name: p for (_, name, _, _), p in engine.method._p.items()}


def labelled(x, y, engine, value=1.0):
    wrong = wrong_labels(y, K, engine.run)
    return [overlay(x, F.one_hot(label, K), value=value) for label in (y, wrong)]


def evaluated(method, net=None, optimizer=None):
    net, (x, y) = net or network(), data()
    engine = Engine(net, method, optimizer)
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    return net, engine, x, y


def test_digital_layers_follow_the_equations():
    net, engine, x, y = evaluated(PhyLL(theta=3.0, label_value=2.0))
    h = labelled(x, y, engine, 2.0)
    for i in range(2):
        p = directions(engine)[str(i)]
        assert float(p.norm()) == pytest.approx(1, abs=1e-5)
        J, outputs = loss(net[i], h, p, 3.0)
        parameters = list(net[i].parameters())
        for q, expected in zip(parameters, torch.autograd.grad(J, parameters), strict=True):
            torch.testing.assert_close(q.grad, expected, atol=1e-6, rtol=1e-4)
        h = [o.detach() for o in outputs]
    assert net[0].transform.evaluations > 0


def test_directions_follow_from_the_seed_and_differ_between_units():
    found = []
    for seed in (0, 0, 1):
        net, (x, y) = network(), data()
        engine = Engine(net, PhyLL(), seed=seed)
        engine.evaluate(lambda net=net, x=x, y=y: F.cross_entropy(net(x), y), targets=y)
        found.append(directions(engine))
    assert torch.equal(found[0]["0"], found[1]["0"]) and not torch.equal(found[0]["0"], found[2]["0"])
    assert not torch.equal(found[0]["0"][:9], found[0]["1"])


def test_a_modules_own_weights_are_frozen():
    transform = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    layer = PhysicalLayer(transform, nn.Linear(8, 12))
    net, _, _, _ = evaluated(PhyLL(), nn.Sequential(layer, nn.Linear(12, K)))
    assert all(not p.requires_grad and p.grad is None for p in transform.parameters())
    assert net[0].digital.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("inner_lr", [None, 0.2])
def test_inner_steps_end_where_gradient_descent_on_the_batch_does(inner_lr):
    """With SGD at the rate of the inner steps, one step of the trainer is all of them; at half of it, half the way."""
    net, (x, y) = network(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    engine = Engine(net, PhyLL(inner_steps=4, inner_lr=inner_lr), optimizer)
    other = network()
    h = labelled(x, y, engine)
    engine.step(lambda: F.cross_entropy(net(x), y), optimizer, targets=y)
    first = [other[0](a).detach() for a in h]  # the next unit is fed what came before the inner steps
    for i, inputs in ((0, h), (1, first)):
        start = other[i].digital.weight.detach().clone()
        own = torch.optim.SGD(other[i].parameters(), lr=inner_lr or 0.1)
        for _ in range(4):
            own.zero_grad()
            loss(other[i], inputs, directions(engine)[str(i)], 4.0)[0].backward()
            own.step()
        share = 0.5 if inner_lr else 1.0
        expected = start + share * (other[i].digital.weight.detach() - start)
        torch.testing.assert_close(net[i].digital.weight.detach(), expected, atol=1e-5, rtol=1e-4)


def test_everything_in_a_unit_can_be_only_evaluated():
    """The gradient's estimate from evaluations alone: no graph is ever made in a hidden unit."""

    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) / 3)

        def forward(self, x):
            assert not torch.is_grad_enabled() or not x.requires_grad
            return torch.from_numpy(x.numpy() @ self.weight.detach().numpy().T)

    torch.manual_seed(0)
    net = nn.Sequential(Opaque(), nn.Linear(12, K))
    before = net[0].weight.detach().clone()
    net, engine, x, y = evaluated(PhyLL(probe="spsa", num_directions=800), net)
    assert torch.equal(net[0].weight, before)
    differentiable = nn.Linear(8, 12, bias=False)
    differentiable.weight = nn.Parameter(before)
    J, _ = loss(differentiable, labelled(x, y, engine), directions(engine)["0"], 4.0)
    (expected,) = torch.autograd.grad(J, differentiable.weight)
    assert F.cosine_similarity(net[0].weight.grad.flatten(), expected.flatten(), dim=0) > 0.85


def test_the_prediction_sums_the_cosines_of_every_label():
    net, engine, x, _ = evaluated(PhyLL(theta=2.0))
    expected = []
    for label in range(K):
        h, total = overlay(x, torch.eye(K)[[label] * len(x)]), 0.0
        for i in range(2):
            with torch.no_grad():
                h = net[i](h)
            p = directions(engine)[str(i)]
            total = total + 2 * (h.abs() @ p) / (h.norm(dim=1) * p.norm())
        expected.append(total)
    predictor = Predictor(net, engine.method)
    torch.testing.assert_close(predictor(x), torch.stack(expected, 1))
    torch.testing.assert_close(predictor(x[3:4]), predictor(x)[3:4])


def test_it_learns_through_devices():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(600, 8, generator=g)
    y = x[:, 3:6].argmax(1)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    engine = Engine(net, PhyLL(), optimizer)
    predictor = Predictor(net, engine.method)
    before = float((predictor(x[400:]).argmax(1) == y[400:]).float().mean())
    for _ in range(120):
        engine.step(lambda: F.cross_entropy(net(x[:400]), y[:400]), optimizer, targets=y[:400])
    after = float((predictor(x[400:]).argmax(1) == y[400:]).float().mean())
    assert before < 0.5 and after > 0.75, (before, after)


def test_the_door():
    with pytest.raises(ValueError) as wrong:
        PhyLL(theta=0, inner_steps=0, inner_lr=-1, probe="finite", eps=-1, num_directions=0, label_value=0, label_start=-1,
              kind="model", num_classes=1)  # fmt: skip
    for word in ("theta", "inner_steps must", "inner_lr", "probe must", "eps and num", "eps must", "num_directions must",
                 "label_value", "label_start", "kind", "num_classes"):  # fmt: skip
        assert word in str(wrong.value)
    with pytest.raises(ValueError, match="for 'spsa' raise num_directions"):
        PhyLL(probe="spsa", inner_steps=2)
    with pytest.raises(Unsupported, match="no wrong label among 1 classes"):
        Engine(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), PhyLL())
