"""Scores without gradient in the place of the loss: what is trained, what the trainer sees, what is refused."""

import logging

import pytest
import torch
from torch import nn

import localplug
from localplug import objectives


class Classifies(nn.Module):
    def __init__(self, features=4, classes=3):
        super().__init__()
        self.score = nn.Linear(features, classes)

    def forward(self, x, labels=None):
        logits = self.score(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data(num=256):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num, 4, generator=generator)
    return x, (x @ torch.randn(4, 3, generator=generator)).argmax(1)


def trained(objective, steps=200, method="mezo", lr=0.3, **options):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = Classifies()
    x, labels = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    with localplug.attach(model, method, optimizer, objective=objective, **options) as plug:
        for _ in range(steps):
            loss = model(x, labels=labels)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return model, losses, plug


def share_right(model):
    x, labels = data()
    return float((model.score(x).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("objective", ["accuracy", "f1"])
def test_a_score_is_raised_that_has_no_gradient(objective):
    start = trained(objective, steps=1)[1][0]
    model, losses, plug = trained(objective, eps=0.05, num_directions=4)
    assert share_right(model) > 0.93 and -start < 0.6
    assert losses[-1] < -0.9 and all(-1 <= loss <= 0 for loss in losses)
    assert plug.engine.run.num_forwards == 200 * 8


def test_the_estimate_is_the_finite_difference_of_the_score():
    x, labels = data()
    model = Classifies()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with localplug.attach(model, "mezo", optimizer, objective="accuracy", eps=0.1, seed=5) as plug:
        before = [p.detach().clone() for p in model.parameters()]
        z = [plug.engine.method.directions.values(i, 0) for i in range(2)]
        loss = model(x, labels=labels)["loss"]
        loss.backward()
        optimizer.step()
    right = []
    for sign in (1, -1):
        weight, bias = (p + sign * 0.1 * v for p, v in zip(before, z, strict=True))
        right.append(float(((x @ weight.T + bias).argmax(1) == labels).float().mean()))
    slope = -(right[0] - right[1]) / 0.2
    assert abs(slope) > 0.01 and float(loss.detach()) == pytest.approx(-sum(right) / 2, abs=1e-6)
    for p, b, v in zip(model.parameters(), before, z, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.5 * slope * v)


def test_a_score_of_the_model_alone_spares_the_forward_passes_but_the_trainers():
    calls = []

    def small(model):
        return -sum(p.square().sum() for p in model.parameters())

    with torch.random.fork_rng():
        model = Classifies()
    x, labels = data()
    model.score.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = sum(float(p.detach().square().sum()) for p in model.parameters())
    with localplug.attach(model, "mezo", optimizer, objective=small, num_directions=3):
        for _ in range(20):
            model(x, labels=labels)["loss"].backward()
            optimizer.step()
    assert len(calls) == 20
    assert sum(float(p.detach().square().sum()) for p in model.parameters()) < before / 2


def test_arguments_by_position_and_by_name_make_the_batch():
    seen = []

    def spy(batch):
        seen.append(set(batch))
        return 0.0

    x, labels = data()
    model = Classifies()
    with localplug.attach(model, "mezo", torch.optim.SGD(model.parameters(), lr=0.1), objective=spy):
        model(x, labels)
        model(x=x, labels=labels)
    assert seen == [{"x", "labels"}] * 4


def test_an_objective_may_call_the_model_itself():
    """As generation does: those calls are not estimated, and see the perturbed weights."""
    seen = []

    def own(model, batch):
        with torch.no_grad():
            value = -model(**batch)["loss"]
        seen.append(float(value))
        return value

    _, losses, _ = trained(own, steps=30, lr=0.1)
    assert losses[-1] < losses[0] and len(seen) == 60 and seen[0] != seen[1]


def test_ten_zero_estimates_in_a_row_are_told_with_what_to_do(caplog):
    with caplog.at_level(logging.WARNING, "localplug"):
        trained(lambda outputs: 0.5, steps=12)
    (message,) = caplog.messages
    assert "exactly zero" in message and "accuracy, take larger batches and more directions" in message


def test_a_loss_built_outside_the_model_is_refused():
    x, labels = data()
    model = Classifies()
    with localplug.attach(model, "mezo", torch.optim.SGD(model.parameters(), lr=0.1), objective="accuracy"):
        loss = nn.functional.cross_entropy(model(x, labels=labels)["logits"], labels)
        with pytest.raises(localplug.EngineError, match=r"builds its loss on the outputs \['logits'\]"):
            loss.backward()


def test_a_model_that_gives_no_loss_is_refused():
    model = nn.Linear(4, 3)
    with localplug.attach(model, "mezo", torch.optim.SGD(model.parameters(), lr=0.1), objective=lambda outputs: 1.0):
        with pytest.raises(localplug.EngineError, match="its output has none.*pass the labels"):
            model(torch.ones(2, 4))


@pytest.mark.parametrize(
    "method, options, said",
    [
        ("forward-grad", {}, "has no gradient, and the method needs one"),
        ("mezo", {"backend": "stacked"}, "another back-end than 'stacked'"),
        ("elastic-zo", {}, "back-propagates the last"),
        ("mezo", {"outputs": ("logits",)}, "leave outputs="),
    ],
)
def test_methods_that_need_a_derivative_or_another_loss_are_refused(method, options, said):
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    with pytest.raises(localplug.Unsupported, match=said):
        localplug.attach(model, method, torch.optim.SGD(model.parameters(), lr=0.1), objective="accuracy", **options)


def test_layer_local_methods_are_refused():
    with pytest.raises(localplug.Unsupported, match="the method needs one"):
        localplug.Engine(nn.Linear(4, 3), localplug.method("tpsgd"), objective=lambda outputs: 1.0)


def test_what_is_no_objective_is_refused():
    for wrong in (lambda text: 1.0, lambda: 1.0, lambda outputs, text: 1.0):
        with pytest.raises(TypeError, match="name its parameters out of outputs, batch, model"):
            localplug.Objective(wrong)
    with pytest.raises(TypeError, match="a name or a callable, got 3"):
        localplug.objective(3)
    with pytest.raises(localplug.UnknownName, match="did you mean 'accuracy'"):
        localplug.objective("acuracy")
    with pytest.raises(TypeError, match=r"must give one number for a batch, gave shape \(2,\)"):
        localplug.Objective(lambda outputs: torch.ones(2)).loss(None, {}, nn.Linear(1, 1))
    assert localplug.Objective(lambda outputs, other=1: 2.0).loss(None, {}, nn.Linear(1, 1)) == -2.0
    engine = localplug.Engine(nn.Linear(4, 3), localplug.method("mezo"), objective=lambda outputs: 1.0)
    with pytest.raises(localplug.EngineError, match="let the closure return its score, negated"):
        engine.evaluate(lambda: torch.zeros(()))


def test_accuracy_and_f1_are_those_of_their_definition():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    labels = torch.tensor([0, 1, 2, 2, -100])
    model = nn.Linear(1, 1)
    assert float(objectives.accuracy({"logits": logits}, {"labels": labels}, model)) == 0.75
    # class 0: 1; class 1: 2 / (2 + 1 + 0); class 2: 2 / (2 + 0 + 1)
    assert float(objectives.macro_f1({"logits": logits}, {"labels": labels}, model)) == pytest.approx((1 + 4 / 3) / 3)
    with pytest.raises(ValueError, match="need `logits` in the output and `labels` in the batch"):
        objectives.accuracy({"loss": logits}, {"labels": labels}, model)


def test_a_language_models_logits_are_for_the_next_token():
    class ForCausalLM(nn.Module):
        loss_type = "ForCausalLM"

    labels = torch.tensor([[-100, 3, 1, 2]])
    logits = nn.functional.one_hot(torch.tensor([[3, 1, 0, 2]]), 4).float()
    assert float(objectives.accuracy({"logits": logits}, {"labels": labels}, ForCausalLM())) == pytest.approx(2 / 3)
    assert float(objectives.accuracy({"logits": logits}, {"labels": labels}, nn.Linear(1, 1))) == pytest.approx(1 / 3)
