"""CaFo against its equations: blocks that stay, head losses, normal equations over all data, the sum of probabilities."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localplug import Engine, Predictor, Unsupported
from localplug_forward.cafo import CaFo
from localplug_forward.sparsemax import sparsemax, sparsemax_loss

K = 3
LOSSES = ("ce", "sparsemax", "mse", "mse-closed-form")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, K))


def data(n=60):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=g), torch.randint(0, K, (n,), generator=g)


def blocks(net, x):
    with torch.no_grad():
        h_1 = torch.tanh(net[0](x))
        return {"0": h_1, "2": torch.tanh(net[2](h_1))}


def by_definition(p):
    """argmin over the simplex of |p - z|^2: the best of all faces, each solved by itself."""
    z, best = p.double(), None
    for size in range(1, len(z) + 1):
        for face in itertools.combinations(range(len(z)), size):
            q = torch.zeros_like(z)
            q[list(face)] = z[list(face)] - (z[list(face)].sum() - 1) / size
            if (q >= 0).all() and (best is None or (q - z).norm() < (best - z).norm()):
                best = q
    return best


def test_sparsemax_is_the_nearest_point_of_the_simplex():
    z = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    for row, p in zip(z, sparsemax(z), strict=True):
        torch.testing.assert_close(p.double(), by_definition(row), atol=1e-6, rtol=1e-5)
    assert (sparsemax(z) == 0).any() and torch.equal(sparsemax(torch.zeros(1, 4)), torch.full((1, 4), 0.25))


def test_the_sparsemax_loss_is_its_formula_and_its_gradient_is_the_error():
    z = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.arange(12) % 4
    expected = 0.0
    for row, label in zip(z.detach(), y, strict=True):
        p = by_definition(row).float()
        support = p > 0
        tau = (row[support].sum() - 1) / support.sum()
        expected += -row[label] + 0.5 * (row[support] ** 2 - tau**2).sum() + 0.5
    J = sparsemax_loss(z, y)
    torch.testing.assert_close(J.detach(), expected / 12)
    torch.testing.assert_close(torch.autograd.grad(J, z)[0], (sparsemax(z.detach()) - F.one_hot(y, 4)) / 12)
    sure = 5.0 * F.one_hot(y, 4)
    assert float(sparsemax_loss(sure, y)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_stay_under_an_optimizer_that_decays(loss):
    net, (x, y) = network(), data()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)
    engine = Engine(net, CaFo(loss=loss), optimizer)
    for _ in range(3):
        engine.step(lambda: F.cross_entropy(net(x), y), optimizer, targets=y)
    after = net.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("4"))
    assert not torch.equal(before["4.weight"], after["4.weight"])


@pytest.mark.parametrize("loss", ["ce", "sparsemax", "mse"])
def test_heads_learn_from_their_blocks(loss):
    net, (x, y) = network(), data()
    engine = Engine(net, CaFo(loss=loss))
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    heads, y_BK = engine.method.owned_modules.modules, F.one_hot(y, K).float()
    assert list(heads) == ["0", "2"]
    for name, h in blocks(net, x).items():
        W = heads[name].weight
        z = h @ W.T
        if loss == "ce":
            error = (z.softmax(1) - y_BK) / len(x)
        elif loss == "sparsemax":
            error = (torch.stack([by_definition(row) for row in z.detach()]).float() - y_BK) / len(x)
        else:
            error = 2 * (z - y_BK) / len(x)
        torch.testing.assert_close(W.grad, error.detach().T @ h, atol=1e-6, rtol=1e-5)


def test_normal_equations_over_batches_are_least_squares_over_the_data():
    """Batches of unequal sizes, twice over: the same as torch.linalg.lstsq on all rows at once."""
    net, (x, y) = network(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = CaFo(loss="mse-closed-form", ridge=1e-9)
    engine = Engine(net, method, optimizer)
    for _ in range(2):
        for rows in torch.arange(60).split([25, 25, 10]):
            engine.step(lambda rows=rows: F.cross_entropy(net(x[rows]), y[rows]), optimizer, targets=y[rows])
    Predictor(net, method)(x)
    for name, h in blocks(net, x).items():
        expected = torch.linalg.lstsq(h.double(), F.one_hot(y, K).double()).solution
        torch.testing.assert_close(method.owned_modules.modules[name].weight.double(), expected.T, atol=1e-4, rtol=1e-3)


def test_ridge_is_what_it_says():
    net, (x, y) = network(), data()
    engine = Engine(net, CaFo(loss="mse-closed-form", ridge=0.3))
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    Predictor(net, engine.method)(x)
    h, y_BK = blocks(net, x)["0"], F.one_hot(y, K).float()
    W = engine.method.owned_modules.modules["0"].weight.detach().clone().requires_grad_()
    J = (h @ W.T - y_BK).square().sum() / 60 + 0.3 * W.square().sum()
    assert torch.autograd.grad(J, W)[0].abs().max() < 1e-5  # at the minimum
    assert not any(p.requires_grad for p in engine.method.owned_modules.modules["0"].parameters())


def test_a_resumed_closed_form_predicts_the_same_and_goes_on():
    net, (x, y) = network(), data()
    method = CaFo(loss="mse-closed-form")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    engine = Engine(net, method, optimizer)
    engine.step(lambda: F.cross_entropy(net(x[:30]), y[:30]), optimizer, targets=y[:30])
    saved = copy.deepcopy(engine.state_dict())
    engine.step(lambda: F.cross_entropy(net(x[30:]), y[30:]), optimizer, targets=y[30:])
    expected = Predictor(net, method)(x)
    resumed = Engine(net, CaFo(loss="mse-closed-form"), optimizer)
    resumed.load_state_dict(saved)
    engine.close()
    resumed.step(lambda: F.cross_entropy(net(x[30:]), y[30:]), optimizer, targets=y[30:])
    torch.testing.assert_close(Predictor(net, resumed.method)(x), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_prediction_sums_the_heads_probabilities(loss):
    net, (x, y) = network(), data()
    engine = Engine(net, CaFo(loss=loss))
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    with torch.no_grad():
        found = Predictor(net, engine.method)(x)
        heads = engine.method.owned_modules.modules
        expected = sum((h @ heads[name].weight.T).softmax(1) for name, h in blocks(net, x).items())
    torch.testing.assert_close(found, expected)
    assert len({float(head.weight.detach().sum()) for head in heads.values()}) == 2


def test_convolutional_blocks_with_batch_norm_predict_one_by_one():
    """In evaluation the norms use their running statistics, whatever else is in the batch."""
    torch.manual_seed(0)
    block = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4, eps=1e-4)]
    net = nn.Sequential(
        *block, nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, K)
    )
    x, y = torch.randn(12, 1, 8, 8), torch.arange(12) % K
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    engine = Engine(net, CaFo(), optimizer)
    for _ in range(5):
        engine.step(lambda: F.cross_entropy(net(x), y), optimizer, targets=y)
    model = Predictor(net, engine.method).eval()
    torch.testing.assert_close(model(x)[4:5], model(x[4:5]))
    assert torch.equal(net[3].weight, torch.ones(4)) and int(net[3].num_batches_tracked) == 5


def test_frozen_blocks_can_be_named():
    net, (x, y) = network(), data()
    for p in net[:4].parameters():
        p.requires_grad_(False)
    with pytest.raises(Unsupported, match="at least 2 units"):
        Engine(net, CaFo())
    engine = Engine(net, CaFo(units=["0", "2", "4"]))
    engine.evaluate(lambda: F.cross_entropy(net(x), y), targets=y)
    assert list(engine.method.owned_modules.modules) == ["0", "2"]


def test_the_door():
    with pytest.raises(ValueError) as wrong:
        CaFo(loss="hinge", ridge=-1, kind="model", num_classes=0)
    for word in ("loss must", "ridge=-1 belongs", "ridge must", "kind", "num_classes"):
        assert word in str(wrong.value)
