"""DRTP, DFA and FA against their equations, written out layer by layer; what they refuse."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import localplug
from localplug import Engine
from localplug_tpsgd.dfa import DFA
from localplug_tpsgd.drtp import DRTP
from localplug_tpsgd.fa import FA
from localplug_tpsgd.feedback import Feedback


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 3))


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def batch(kind=mlp):
    torch.manual_seed(1)
    return (torch.randn(7, 8) if kind is mlp else torch.randn(7, 1, 8, 8)), torch.randint(0, 3, (7,))


def gradients(model, x, y, method, seed=0, loss=F.cross_entropy):
    engine = Engine(model, method, seed=seed)
    engine.evaluate(lambda: loss(model(x), y), targets=y)
    found = {n: p.grad for n, p in model.named_parameters()}
    return engine, found


def carried(engine, index, e, output, scale=1.0):
    return Feedback(scale).carried(e, output, unit=engine.method.partition(engine.run)[index], seed=engine.run.seed)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_drtp_follows_its_equation(reduction):
    model, (x, y) = mlp(), batch()
    engine, found = gradients(model, x, y, DRTP(scale=2.0, reduction=reduction))
    h = x
    for i, layer in enumerate((0, 2)):
        out = model[layer + 1](model[layer](h)).detach()
        dz = carried(engine, i, F.one_hot(y, 3).float(), out, 2.0) * (1 - out**2)
        dz = dz / 7 if reduction == "mean" else dz
        torch.testing.assert_close(found[f"{layer}.weight"], dz.T @ h, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found[f"{layer}.bias"], dz.sum(0), atol=1e-6, rtol=1e-5)
        h = out
    (last,) = torch.autograd.grad(F.cross_entropy(model[4](h), y), [model[4].weight])
    torch.testing.assert_close(found["4.weight"], last)


@pytest.mark.parametrize(
    "error, loss, outward",
    [
        ("cross-entropy", F.cross_entropy, lambda o: o.softmax(-1)),
        ("bce", lambda o, y: F.binary_cross_entropy_with_logits(o, F.one_hot(y, 3).float()), torch.sigmoid),
        ("mse", lambda o, y: 0.5 * F.mse_loss(o, F.one_hot(y, 3).float()), lambda o: o),
    ],
)
@pytest.mark.parametrize("sign", [False, True])
def test_dfa_follows_its_equation(error, loss, outward, sign):
    model, (x, y) = mlp(), batch()
    engine, found = gradients(model, x, y, DFA(error=error, sign=sign), loss=loss)
    with torch.no_grad():
        e = outward(model.forward(x)) - F.one_hot(y, 3)
    h = x
    for i, layer in enumerate((0, 2)):
        out = model[layer + 1](model[layer](h)).detach()
        dz = carried(engine, i, e.sign() if sign else e, out) * (1 - out**2) / 7
        torch.testing.assert_close(found[f"{layer}.weight"], dz.T @ h, atol=1e-6, rtol=1e-5)
        h = out
    assert engine.run.num_forwards == 2
    engine.apply(torch.optim.SGD(model.parameters(), lr=0.0))


def test_the_error_of_cross_entropy_is_the_gradient_of_its_loss():
    """So that the output layer and the hidden ones learn from the same error."""
    o, y = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 1, 2, 0, 1])
    (expected,) = torch.autograd.grad(F.cross_entropy(o, y, reduction="sum"), o)
    torch.testing.assert_close(o.detach().softmax(-1) - F.one_hot(y, 3), expected)


@pytest.mark.parametrize("rule", [DRTP, DFA])
def test_a_convolutions_map_has_a_value_at_each_place(rule):
    model, (x, y) = cnn(), batch(cnn)
    engine, found = gradients(model, x, y, rule())
    with torch.no_grad():
        e = F.one_hot(y, 3).float() if rule is DRTP else model.forward(x).softmax(-1) - F.one_hot(y, 3)
    out = model[2](torch.relu(model[0](x)))
    dy = carried(engine, 0, e, out.detach())
    assert dy.shape == out.shape and dy[0, 0].std() > 0
    (expected,) = torch.autograd.grad((dy * out).sum() / 7, [model[0].weight])
    torch.testing.assert_close(found["0.weight"], expected, atol=1e-6, rtol=1e-4)


def test_a_sequence_gets_the_same_values_at_every_position():
    output = torch.zeros(4, 5, 6)
    unit = localplug.Unit(0, "x", nn.Linear(2, 6), [])
    t = Feedback(1.0).carried(torch.eye(3)[[0, 1, 2, 0]], output, unit=unit, seed=0)
    assert t.shape == output.shape and torch.equal(t[:, 0], t[:, 4]) and torch.equal(t[0], t[3])
    assert t.abs().max() <= 1.0  # sqrt(6 / 6)


@pytest.mark.parametrize("kind", [mlp, cnn])
def test_fa_goes_back_through_its_own_weights(kind):
    """Backpropagation in a twin whose derivative with respect to each layer's input is written out with B_k."""
    model, (x, y) = kind(), batch(kind)
    method = FA()
    engine, found = gradients(model, x, y, method)
    layers = [m for m in model if isinstance(m, nn.Linear | nn.Conv2d)]
    twin, h, firsts = kind(), x, []
    for module in twin:
        if isinstance(module, nn.Linear | nn.Conv2d):
            number = len(firsts)
            firsts.append(module)
            B = method.feedback_weight(number, layers[number], engine.run)
            with torch.no_grad():
                assert B.shape == module.weight.shape and abs(float(B.std() / module.weight.std()) - 1) < 0.3
            through_B = (
                F.linear(h, B) if isinstance(module, nn.Linear) else F.conv2d(h, B, None, module.stride, module.padding)
            )
            h = module(h.detach()) + through_B - through_B.detach()
        else:
            h = module(h.clone())
    F.cross_entropy(h, y).backward()
    for name, p in twin.named_parameters():
        torch.testing.assert_close(found[name], p.grad, atol=1e-6, rtol=1e-4)
    F.cross_entropy(kind()(x), y)  # the layers are as they were
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_fa_with_the_weights_own_signs():
    model, (x, y) = mlp(), batch()
    for feedback in ("sign", "sign-fixed-random", "sign-batch-random"):
        method = FA(feedback=feedback)
        engine, _ = gradients(model, x, y, method)
        B = method.feedback_weight(1, model[2], engine.run)
        assert torch.equal(B.sign(), model[2].weight.sign())
        engine.run.step += 1
        assert torch.equal(method.feedback_weight(1, model[2], engine.run), B) == (feedback != "sign-batch-random")


def test_fa_says_that_it_goes_backward():
    assert "BACKWARD" in FA().describe() and FA().backpropagates


def test_bad_options_are_told_all_at_once():
    with pytest.raises(ValueError, match="scale must be positive.*reduction must be.*num_classes"):
        DRTP(scale=0, reduction="median", num_classes=0)
    with pytest.raises(ValueError, match="error must be.*scale must be positive.*num_classes"):
        DFA(error="hinge", scale=-1, num_classes=0)
    with pytest.raises(ValueError, match="sign-fixed-random"):
        FA(feedback="weights")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("rule", [DRTP, DFA, FA])
def test_recurrent_layers_are_refused(rule):
    with pytest.raises(localplug.Unsupported, match=r"'?rnn'?.*(recurrent|GRU)"):
        Engine(Recurrent(), rule())


def test_fa_refuses_padding_by_name():
    with pytest.raises(localplug.Unsupported, match="padding in numbers"):
        Engine(nn.Sequential(nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(8, 2)), FA())


def test_dfa_refuses_outputs_that_are_no_scores():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    engine = Engine(model, DFA())
    with pytest.raises(ValueError, match=r"outputs of the shape of the labels \(2, 3\), got \(2, 6, 3\)"):
        engine.evaluate(lambda: model(torch.zeros(2, 6, 4)).mean(), targets=torch.tensor([0, 1]))
