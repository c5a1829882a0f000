"""tpSGD against its equations, unit by unit; locality; memory; schedules; what it refuses."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Engine
from localplug.testing.local_method import saved_elements
from localplug_tpsgd import losses, recurrent
from localplug_tpsgd.tpsgd import TPSGD


class Functional(nn.Module):
    """Activations and pooling that are functions, not modules."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.hidden, self.out = nn.Linear(6 * 2 * 2, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.out(torch.tanh(self.hidden(x.flatten(1))))


def mlp(depth=2, width=12):
    layers = [nn.Linear(8, width), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def gradients(model, x, y, method=None, seed=0):
    engine = Engine(model, method or TPSGD(), seed=seed)
    engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y)
    found = {n: p.grad for n, p in model.named_parameters()}
    engine.close()
    return engine, found


def target(engine, index, y, output, K=3):
    unit = engine.method.partition(engine.run)[index]
    return engine.method.targets.generate(F.one_hot(y, K).float(), output, unit=unit, seed=engine.run.seed)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_linear_layers_follow_the_papers_equation(loss):
    """dW_i = (dJ/dy . sigma'(z)) y_{i-1}^T with t_i = P_i y*, and the last layer's is the gradient of the true loss."""
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(7, 8), torch.randint(0, 3, (7,))
    engine, found = gradients(model, x, y, TPSGD(loss=loss))
    h = x
    for i, layer in enumerate((0, 2)):
        out = torch.tanh(F.linear(h, model[layer].weight, model[layer].bias)).detach()
        t = target(engine, i, y, out)
        error = out - t if loss == "l2" else torch.sign(out - t)
        delta = error * (1 - out**2) / len(y)
        torch.testing.assert_close(found[f"{layer}.weight"], delta.T @ h, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found[f"{layer}.bias"], delta.sum(0), atol=1e-6, rtol=1e-5)
        h = out
    (last,) = torch.autograd.grad(F.cross_entropy(F.linear(h, model[4].weight, model[4].bias), y), [model[4].weight])
    torch.testing.assert_close(found["4.weight"], last)


@pytest.mark.parametrize("loss", ["l1", "l2", "user"])
def test_closed_form_equals_autograd_of_the_local_loss_in_convolutions(loss):
    torch.manual_seed(0)
    model, x, y = Functional(), torch.randn(5, 1, 8, 8), torch.randint(0, 3, (5,))
    chosen = (lambda output, t: F.smooth_l1_loss(output, t)) if loss == "user" else loss
    compared = chosen if loss == "user" else {"l1": losses.l1, "l2": losses.l2}[loss]
    engine, found = gradients(model, x, y, TPSGD(loss=chosen))
    first = F.max_pool2d(torch.relu(model.conv1(x)), 2)
    second = F.max_pool2d(torch.relu(model.conv2(first.detach())), 2).flatten(1)
    third = torch.tanh(model.hidden(second.detach()))
    for i, (layer, out) in enumerate(((model.conv1, first), (model.conv2, second), (model.hidden, third))):
        J = compared(out, target(engine, i, y, out.detach()))
        for p, expected in zip(layer.parameters(), torch.autograd.grad(J, list(layer.parameters())), strict=True):
            name = next(n for n, q in model.named_parameters() if q is p)
            torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_written_out_deltas_equal_autograd(loss):
    output, t = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(4, 3, 5, 5)
    J, delta = {"l1": (losses.l1, losses.delta_l1), "l2": (losses.l2, losses.delta_l2)}[loss]
    (expected,) = torch.autograd.grad(J(output, t), output)
    torch.testing.assert_close(delta(output.detach(), t), expected)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("time", ["all", "last"])
def test_recurrent_units_are_truncated_to_one_step(kind, time):
    """Equal to autograd of the local loss where every step sees detached states; the values equal torch's own."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = kind(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    model, x, y = Net(), torch.randn(5, 7, 4), torch.randint(0, 3, (5,))
    outputs = recurrent.truncated_outputs(model.rnn, (x,))
    torch.testing.assert_close(outputs[-1].transpose(0, 1), model.rnn(x)[0], atol=1e-6, rtol=1e-5)
    engine, found = gradients(model, x, y, TPSGD(time=time))
    unit = engine.method.partition(engine.run)[0]
    J = 0.0
    inputs_TBD = x.transpose(0, 1)
    for layer in range(2):
        h = c = torch.zeros(5, 6)
        hs = []
        for x_BD in inputs_TBD:
            h, c = recurrent.step(model.rnn, layer, x_BD.detach(), h.detach(), c.detach())
            hs.append(h)
        h_BTH = torch.stack(hs[-1:] if time == "last" else hs, 1)
        part = localplug.Unit(unit.index * 1000 + layer, f"{unit.name}.{layer}", unit.module, unit.parameters)
        t = engine.method.targets.generate(F.one_hot(y, 3).float(), h_BTH.detach(), unit=part, seed=0)
        J = J + losses.l2(h_BTH, t)
        inputs_TBD = torch.stack(hs).detach()
    expected = torch.autograd.grad(J, list(model.rnn.parameters()))
    for (name, _), e in zip(model.rnn.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[f"rnn.{name}"], e, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_units_step_does_not_depend_on_the_units_above(index):
    x, y = torch.randn(7, 8), torch.randint(0, 3, (7,))
    torch.manual_seed(0)
    one = mlp(depth=3)
    torch.manual_seed(0)
    two = mlp(depth=3)
    with torch.no_grad():
        for layer in two[2 * index + 1 :]:
            for p in layer.parameters():
                p.add_(torch.randn_like(p))
    _, a = gradients(one, x, y)
    _, b = gradients(two, x, y)
    for name in (f"{2 * k}.weight" for k in range(index + 1)):
        assert torch.equal(a[name], b[name])
    if index < 2:
        assert not torch.equal(a["6.weight"], b["6.weight"])


def peak_saved_elements(model, step):
    """Largest number of elements that autograd holds for a backward at one time."""
    with saved_elements(model) as peak:
        step()
    return peak[0]


def test_saved_memory_is_flat_in_depth_where_backprop_grows():
    x, y = torch.randn(32, 8), torch.randint(0, 3, (32,))
    local, backprop = [], []
    for depth in (2, 4, 8, 16):
        model = mlp(depth, width=16)
        engine = Engine(model, TPSGD())
        local.append(
            peak_saved_elements(
                model, lambda m=model, e=engine: e.evaluate(lambda: F.cross_entropy(m(x), y), targets=y)
            )
        )
        engine.close()
        backprop.append(peak_saved_elements(model, lambda m=model: F.cross_entropy(m(x), y).backward()))
    assert max(local) == min(local)
    assert backprop[-1] > 4 * backprop[0]


def test_one_unit_after_the_other():
    model, x, y = mlp(), torch.randn(7, 8), torch.randint(0, 3, (7,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, TPSGD(schedule="sequential", unit_steps=2), optimizer)
    moved = []
    for _ in range(6):
        before = [p.detach().clone() for p in model.parameters()]
        engine.step(lambda: F.cross_entropy(model(x), y), optimizer, targets=y)
        moved.append([not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)][::2])
    assert moved == [[True, False, False]] * 2 + [[False, True, False]] * 2 + [[False, False, True]] * 2


def test_micro_batches_average_whether_or_not_the_loss_is_an_output():
    x, y = torch.randn(8, 8), torch.randint(0, 3, (8,))
    torch.manual_seed(0)
    model = mlp()
    _, whole = gradients(model, x, y)
    whole = {n: g.clone() for n, g in whole.items()}
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with localplug.attach(model, "tpsgd", optimizer, targets=lambda args, kwargs: kwargs.get("labels", labels)):
        for half in (slice(0, 4), slice(4, 8)):
            labels = y[half]
            (F.cross_entropy(model(x[half]), labels) / 2).backward()
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.grad, whole[n], atol=1e-6, rtol=1e-5)


def test_regression_targets_are_projected_as_they_are():
    model, x, y = mlp(), torch.randn(7, 8), torch.randn(7, 3)
    engine = Engine(model, TPSGD())
    engine.evaluate(lambda: F.mse_loss(model(x), y), targets=y)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_batch_norm_learns_with_the_layer_before_it():
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    _, found = gradients(model, torch.randn(7, 8), torch.randint(0, 3, (7,)))
    assert found["1.weight"].abs().sum() > 0
    assert int(model[1].num_batches_tracked) == 1


def test_what_it_refuses_and_says():
    x, y = torch.randn(4, 8), torch.randint(0, 3, (4,))
    model = mlp()
    engine = Engine(model, TPSGD())
    with pytest.raises(ValueError, match="local targets need the labels"):
        engine.evaluate(lambda: F.cross_entropy(model(x), y))
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=y + 3)
    with pytest.raises(ValueError, match="tokens of a language model"):
        engine.evaluate(lambda: F.cross_entropy(model(x), y), targets=torch.zeros(4, 2, dtype=torch.long))
    engine.close()
    with pytest.raises(localplug.Unsupported, match="at least 2 units"):
        Engine(nn.Linear(3, 2), TPSGD())
    with pytest.raises(localplug.Unsupported, match="no module is named"):
        Engine(mlp(), TPSGD(units=["layers.*"]))
    with pytest.raises(localplug.Unsupported, match="bidirectional"):
        Engine(nn.Sequential(nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 2)), TPSGD())
    with pytest.raises(ValueError) as wrong:
        TPSGD(scale=-1, schedule="sequential", time="first")
    assert all(word in str(wrong.value) for word in ("scale", "unit_steps", "time"))

    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.out(self.q(x) * self.k(x))

    parallel = Parallel()
    engine = Engine(parallel, TPSGD())
    with pytest.raises(localplug.Unsupported, match="does not depend on it; choose coarser units"):
        engine.evaluate(lambda: F.cross_entropy(parallel(x), y), targets=y)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("truncation", [1, 3, 7])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_a_gradient_goes_back_through_as_many_time_steps_as_asked_for(kind, truncation):
    """Equal to torch's own layer, called on pieces of the sequence with detached states between them."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = kind(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    model, x, y = Net(), torch.randn(5, 7, 4), torch.randint(0, 3, (5,))
    engine, found = gradients(model, x, y, TPSGD(truncation=truncation))
    unit = engine.method.partition(engine.run)[0]
    pieces, state = [], None
    for piece in x.split(truncation, 1):
        h, state = model.rnn(piece, state)
        state = tuple(s.detach() for s in state) if kind is nn.LSTM else state.detach()
        pieces.append(h)
    h_BTH = torch.cat(pieces, 1)
    part = localplug.Unit(unit.index * 1000, f"{unit.name}.0", unit.module, unit.parameters)
    t = engine.method.targets.generate(F.one_hot(y, 3).float(), h_BTH.detach(), unit=part, seed=0)
    expected = torch.autograd.grad(losses.l2(h_BTH, t), list(model.rnn.parameters()))
    for (name, _), e in zip(model.rnn.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found[f"rnn.{name}"], e, atol=1e-6, rtol=1e-4)
