"""Forward-Forward against its equations: hidden gradients, peers, the classifier, both predictions, and the door."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, Predictor, Unsupported
from localplug_forward.forward_forward import ForwardForward
from localplug_forward.labels import wrong_labels

K, WIDTHS = 3, (8, 12, 9, 7)  # widths differ, so that a readout of the wrong layer cannot pass


def network():
    torch.manual_seed(0)
    layers = []
    for before, after in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTHS[-1], K))


def data(n=20):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=g), torch.randint(0, K, (n,), generator=g)


def rms(z):
    return z / (z.square().mean(1, keepdim=True).sqrt() + 1e-8)


def written(x, label, value=1.0):
    x = x.clone()
    x[:, :K] = value * label
    return x


def hidden(net, x):
    """h of each hidden layer for an input that has its label."""
    found, h = [], x
    for i in range(0, 6, 2):
        h = torch.relu(net[i](rms(h.detach())))
        found.append(h)
    return found


def evaluated(net, method, x, y, seed=0):
    engine = Engine(net, method, seed=seed)
    loss = engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    return engine, loss


@pytest.mark.parametrize("how, theta", [("sum", None), ("mean", None), ("sum", 2.0)])
@pytest.mark.parametrize("peer", [0.0, 0.5])
def test_hidden_layers_follow_the_equations(how, theta, peer):
    net, (x, y) = network(), data()
    engine, _ = evaluated(net, ForwardForward(goodness=how, threshold=theta, peer_weight=peer, label_value=2.0), x, y)
    wrong = wrong_labels(y, K, engine.run)
    pos = hidden(net, written(x, F.one_hot(y, K), 2.0))
    neg = hidden(net, written(x, F.one_hot(wrong, K), 2.0))
    for i, (p, n) in enumerate(zip(pos, neg, strict=True)):
        G_p, G_n = ((h**2).sum(1) if how == "sum" else (h**2).mean(1) for h in (p, n))
        t = theta if theta is not None else (WIDTHS[i + 1] if how == "sum" else 1)
        J = -0.5 * torch.log(torch.sigmoid(G_p - t)).mean() - 0.5 * torch.log(1 - torch.sigmoid(G_n - t)).mean()
        m = 0.9 * 0.5 + 0.1 * p.mean(0)
        J = J + peer * ((m.mean() - m) ** 2).mean()
        for q, expected in zip(
            net[2 * i].parameters(), torch.autograd.grad(J, list(net[2 * i].parameters())), strict=True
        ):
            torch.testing.assert_close(q.grad, expected, atol=1e-6, rtol=1e-4)


def test_peers_running_means_are_kept_and_saved():
    net, (x, y) = network(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = ForwardForward()
    engine = Engine(net, method, optimizer)
    p = hidden(net, written(x, F.one_hot(y, K)))[0].mean(0).detach()
    m = torch.full((12,), 0.5)
    for _ in range(3):
        engine.step(lambda: F.cross_entropy(net(x), y), optimizer, targets=y)
        m = 0.9 * m + 0.1 * p
        torch.testing.assert_close(method.own_state()["means"]["0"], m)
    assert ForwardForward(peer_weight=0.0).own_state() == {}


def test_micro_batches_take_one_step_of_the_running_means():
    net, (x, y) = network(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = ForwardForward()
    engine = Engine(net, method, optimizer)
    for half in (slice(0, 10), slice(10, 20)):
        engine.evaluate(lambda half=half: F.cross_entropy(net(x[half]), y[half]), scale=0.5, targets=y[half])
    engine.apply(optimizer)
    p = hidden(net, written(x, F.one_hot(y, K)))[0].mean(0).detach()
    torch.testing.assert_close(method.own_state()["means"]["0"], 0.9 * 0.5 + 0.1 * p)


def neutral(net, x):
    return [h.detach() for h in hidden(net, written(x, torch.full((len(x), K), 1 / K)))]


def test_the_classifier_learns_from_the_neutral_input():
    """The last unit from the last hidden layer, the owned readout from the one between; the first is not read."""
    net, (x, y) = network(), data()
    engine, loss = evaluated(net, ForwardForward(), x, y)
    h = neutral(net, x)
    J = F.cross_entropy(net[6](rms(h[2])), y)
    torch.testing.assert_close(loss, J.detach())
    torch.testing.assert_close(net[6].weight.grad, torch.autograd.grad(J, net[6].weight)[0])
    readouts = engine.method.owned_modules.modules
    assert list(readouts) == ["2"] and readouts["2"].weight.shape == (K, 9) and readouts["2"].bias is None
    J = F.cross_entropy(F.linear(rms(h[1]), readouts["2"].weight), y)
    (expected,) = torch.autograd.grad(J, readouts["2"].weight)
    torch.testing.assert_close(readouts["2"].weight.grad, expected)


def test_hidden_layers_do_not_learn_from_the_classifier():
    x, y = data()
    gradients = []
    for readout in ("layers", "last"):
        net = network()
        evaluated(net, ForwardForward(readout=readout), x, y)
        gradients.append([p.grad for p in net[:6].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("readout", ["layers", "last"])
@pytest.mark.parametrize("reads_first", [False, True])
def test_prediction_by_the_classifier(readout, reads_first):
    net, (x, y) = network(), data()
    engine, _ = evaluated(net, ForwardForward(readout=readout, reads_first=reads_first), x, y)
    h, owned = neutral(net, x), engine.method.owned_modules.modules
    expected = net[6](rms(h[2]))
    if readout == "layers":
        expected = expected + owned["2"](rms(h[1]))
        if reads_first:
            expected = expected + owned["0"](rms(h[0]))
    assert len(owned) == (readout == "layers") * (1 + reads_first)
    with torch.no_grad():
        torch.testing.assert_close(Predictor(net, engine.method)(x), expected.detach())


@pytest.mark.parametrize("reads_first", [False, True])
@pytest.mark.parametrize("how", ["sum", "mean"])
def test_prediction_by_goodness_sums_the_layers_for_every_label(how, reads_first):
    net, (x, y) = network(), data()
    method = ForwardForward(inference="goodness", goodness=how, reads_first=reads_first)
    engine, _ = evaluated(net, method, x, y)
    expected = []
    for label in range(K):
        h = hidden(net, written(x, torch.eye(K)[[label] * len(x)]))
        h = h if reads_first else h[1:]
        expected.append(sum((a**2).sum(1) if how == "sum" else (a**2).mean(1) for a in h))
    predictor = Predictor(net, engine.method)
    with torch.no_grad():
        scores = predictor(x)
        assert scores.shape == (20, K)
        torch.testing.assert_close(scores, torch.stack(expected, 1).detach())
        torch.testing.assert_close(predictor(x[3:4]), scores[3:4])  # an example alone, as in its batch
    assert not engine.method.owned_modules.modules


def test_convolutions_have_a_goodness_of_their_whole_map():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(),
        nn.Linear(8, K),
    )
    x, y = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])
    evaluated(net, ForwardForward(peer_weight=0.0), x, y)
    engine = Engine(net, ForwardForward(peer_weight=0.0))
    J = 0.0
    for label, sign in ((y, 1), (wrong_labels(y, K, engine.run), -1)):
        one = x.clone()
        one[:, 0, 0, :K] = F.one_hot(label, K).float()
        one = one / one.square().mean((1, 2, 3), keepdim=True).sqrt()
        h = F.max_pool2d(torch.relu(net[0](one)), 2)
        J = J + F.softplus(-sign * (h.square().sum((1, 2, 3)) - 36)).mean() / 2
    (expected,) = torch.autograd.grad(J, net[0].weight)
    torch.testing.assert_close(net[0].weight.grad, expected, atol=1e-6, rtol=1e-4)


def test_the_door():
    with pytest.raises(ValueError) as wrong:
        ForwardForward(inference="argmax", readout="first", goodness="max", peer_weight=-1, label_value=0, label_start=-1,
                       num_classes=1)  # fmt: skip
    for word in ("inference", "readout", "goodness", "peer_weight", "label_value", "label_start", "num_classes"):
        assert word in str(wrong.value)
    with pytest.raises(ValueError, match="readout='last' belongs to inference='classifier'"):
        ForwardForward(inference="goodness", readout="last")
    with pytest.raises(Unsupported, match="no wrong label among 1 classes"):
        Engine(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)), ForwardForward())
    net, (x, y) = network(), data()
    with pytest.raises(ValueError, match="local targets need the labels"):
        Engine(net, ForwardForward()).evaluate(lambda: F.cross_entropy(net(x), y))
    with pytest.raises(TypeError, match="needs class labels as an integer tensor"):
        Engine(net, ForwardForward()).evaluate(lambda: net(x).sum(), targets=torch.randn(20, 3))
