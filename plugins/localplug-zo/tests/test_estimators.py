"""Estimators against their formulas: unbiased on a quadratic within three standard errors, with the variance they say."""

import math

import pytest
import torch
from torch import nn

import localplug
from localplug import Engine, EngineError
from localplug.testing.problem import Problem
from localplug_zo.forward_gradient import ForwardGradient
from localplug_zo.low_rank import LowRank
from localplug_zo.one_sided import OneSided, Population, Residual
from localplug_zo.sparse import Coordinates, Sphere
from localplug_zo.svrg import SVRG, AnchoredSGD
from localplug_zo.two_sided import Curvature, TwoSided
from localplug_zo.updates import SGD, Materialized


class Quadratic(nn.Module):
    """L(w) = <b, w> + w^T A w / 2, of a 3 x 4 matrix of weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.w = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.b = torch.randn(12, generator=generator)
        a = torch.randn(12, 12, generator=generator) / 4
        self.a = a + a.T

    def forward(self):
        w = self.w.flatten()
        return self.b @ w + w @ self.a @ w / 2

    def gradient(self):
        return self.b + self.a @ self.w.detach().flatten()


def estimates(estimator, distribution, num):
    """(num, 12) estimates of the gradient at one point, and the variances that the method reported."""
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = localplug.ZerothOrder(estimator, Materialized(), distribution)
    engine = Engine(model, method, optimizer, seed=3)
    found, variances = [], []
    for _ in range(num):
        engine.evaluate(model)
        engine.apply(optimizer)
        found.append(model.w.grad.flatten().clone())
        variances.append(method.variance)
        model.w.grad = None
    return model, torch.stack(found), torch.tensor(variances)


@pytest.mark.parametrize(
    "estimator, distribution",
    [
        (TwoSided(1e-2), localplug.Gaussian()),
        (TwoSided(1e-2, 4), localplug.Rademacher()),
        (TwoSided(1e-2, 2), Sphere()),
        (TwoSided(1e-2, 2), LowRank()),
        (TwoSided(1e-2), LowRank(noise="gaussian")),
        (TwoSided(1e-2, 3), Coordinates(3)),
        (OneSided(1e-3, 2), localplug.Rademacher()),
        (ForwardGradient(2), localplug.Gaussian()),
        (Curvature(1e-1, 2, power=0.0), localplug.Gaussian()),
    ],
    ids=[
        "two-sided",
        "signs",
        "sphere",
        "rank-1",
        "rank-1 gaussian",
        "coordinates",
        "one-sided",
        "jvp",
        "with curvature",
    ],
)
def test_the_mean_is_the_gradient_and_the_variance_is_as_reported(estimator, distribution):
    model, found, variances = estimates(estimator, distribution, 1200)
    mean, error = found.mean(0), found.std(0) / math.sqrt(len(found))
    assert ((mean - model.gradient()).abs() < 4 * error + 2e-3).all()  # 12 elements, three sigma all together
    spread = (found - model.gradient()).square().sum(1)
    if isinstance(distribution, Coordinates):  # without replacement: less than that of independent directions
        assert spread.mean() < variances.mean()
    else:
        wrong = math.sqrt(float(spread.var() + variances.var()) / len(found))
        assert abs(float(spread.mean() - variances.mean())) < 4 * wrong


def test_all_coordinates_give_the_gradient_itself():
    """CGE: q = d, and no variance at all."""
    model, found, _ = estimates(TwoSided(1e-2, 12), Coordinates(12), 2)
    torch.testing.assert_close(found, model.gradient().expand(2, 12), atol=2e-3, rtol=1e-3)


def test_residual_feedback_is_unbiased_after_its_first_step_with_more_variance():
    model, found, _ = estimates(Residual(0.5), localplug.Gaussian(), 4000)
    assert not found[0].any()
    mean, error = found[1:].mean(0), found[1:].std(0) / math.sqrt(len(found) - 1)
    bias = 4 * error
    assert ((mean - model.gradient()).abs() < bias).all()
    assert found.var(0).sum() > 2 * estimates(TwoSided(0.5), localplug.Gaussian(), 500)[1].var(0).sum()


def test_curvature_is_the_second_derivative_along_the_direction_and_scales_the_slope():
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    plain, scaled = Curvature(1e-1, 3, power=0.0), Curvature(1e-1, 3, power=0.5, floor=0.1)
    for estimator in (plain, scaled):
        engine = Engine(model, localplug.ZerothOrder(estimator, SGD()), optimizer, seed=3)
        engine.step(model, optimizer)
    directions = localplug.Directions(localplug.Run(model, [("w", model.w)], seed=3))
    for j, bend in enumerate(plain.curvatures):
        z = directions.values(0, j).flatten()
        assert bend == pytest.approx(float(z @ model.a @ z), rel=2e-2, abs=2e-2)
    shaped = scaled.coefficients(engine.run, [1.0, 2.0, 3.0, 0.0, 4.0, -9.0])
    assert shaped == pytest.approx([1 / 0.1, 2 / 2, 3 / 3])


def test_fzoo_divides_by_the_deviation_and_a_population_is_z_scored():
    raw = [1.0, 2.0, 6.0]
    deviation = math.sqrt(14 / 3)
    assert OneSided(1e-3, 3, normalized=True).coefficients(None, raw) == pytest.approx([c / deviation for c in raw])
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = Engine(model, localplug.ZerothOrder(Population(0.1, 4), SGD()), optimizer, seed=3)
    directions = localplug.Directions(localplug.Run(model, [("w", model.w)], seed=3))
    z = torch.stack([directions.values(0, j) for j in range(4)])
    before, losses = model.w.detach().clone(), []
    for d in z:
        with torch.no_grad():
            model.w.copy_(before + 0.1 * d)
            losses.append(float(model()))
            model.w.copy_(before)
    losses = torch.tensor(losses)
    scores = (losses - losses.mean()) / losses.std(unbiased=False)
    engine.step(model, optimizer)
    torch.testing.assert_close(
        model.w.detach(), before - 0.1 / 4 * torch.einsum("j,jab->ab", scores, z), atol=1e-4, rtol=1e-3
    )


def test_a_population_of_equal_losses_moves_nothing():
    assert Population(0.1, 3).coefficients(None, [0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]


def test_svrg_makes_its_anchor_again_from_the_steps_since():
    """The second pair of evaluations sees the weights of the anchor, which nobody stored."""
    problem = Problem(localplug.ZerothOrder(estimator := SVRG(1e-3, 6, 2), AnchoredSGD(estimator)))
    seen = []
    for step in range(12):
        if step % 6 == 0:
            anchor = problem.weights()
        before = len(seen)

        def loss():
            seen.append(problem.weights())  # inside an evaluation: what the model's modules would read
            return problem.loss()

        problem.engine.evaluate(loss, targets=problem.labels_B)
        assert len(seen) - before == (2 if step % 6 < 2 else 4)
        problem.engine.apply(problem.optimizer)
        if step % 6 >= 2:
            torch.testing.assert_close((seen[-2] + seen[-1]) / 2, anchor, atol=1e-6, rtol=1e-5)
            assert not torch.allclose((seen[-4] + seen[-3]) / 2, anchor, atol=1e-4) or step % 6 == 2


def test_conservative_takes_the_best_of_three():
    problem = Problem(localplug.method("zo-sgd-conservative"), lr=0.5)
    for _ in range(20):
        before = problem.clean_loss()
        problem.step()
        assert problem.clean_loss() <= before + 1e-6


def test_conservative_says_all_that_it_cannot_do():
    with pytest.raises(localplug.Unsupported) as raised:
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(
            [{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 2.0}], weight_decay=1.0
        )
        Engine(model, localplug.method("zo-sgd-conservative"), optimizer, clipping=1.0, accumulation=2)
    for word in ("accumulation to 1", "one learning rate", "max_grad_norm=0", "weight_decay to 0"):
        assert word in str(raised.value)


@pytest.mark.parametrize("name", ["hizoo", "es", "residual-zo", "1.5-spsa", "zo-sgd-conservative"])
def test_what_needs_the_loss_itself_says_so_when_the_loss_is_built_outside(name):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    few = {"num_directions": 2} if name in ("es", "1.5-spsa") else {}
    with localplug.attach(model, name, optimizer, **few), pytest.raises(EngineError, match="needs the loss itself"):
        nn.functional.cross_entropy(model(torch.randn(4, 3)), torch.tensor([0, 1, 0, 1])).backward()
        optimizer.step()


def test_hizoo_against_its_equations():
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    method = localplug.method("hizoo", eps=1e-1, alpha=0.1, limits=(0.0, math.inf))
    engine = Engine(model, method, optimizer, seed=3)
    w, h = model.w.detach().clone().flatten(), torch.ones(12)
    for step in range(4):
        y = localplug.Directions(localplug.Run(model, [("w", model.w)], seed=3, step=step)).values(0, 0).flatten()
        z = y / h.sqrt()
        value = lambda v: float(model.b @ v + v @ model.a @ v / 2)  # noqa: E731
        plus, minus, clean = value(w + 0.1 * z), value(w - 0.1 * z), value(w)
        w = w - 1e-2 * (plus - minus) / 0.2 * z
        h = 0.9 * h + 0.1 * h * abs(plus - 2 * clean + minus) / (2 * 0.01) * y**2
        engine.step(model, optimizer)
        torch.testing.assert_close(model.w.detach().flatten(), w, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(method.distribution.diagonal["w"], h, atol=2e-2, rtol=2e-2)


class Attends(nn.Module):
    """Tied embedding, attention by torch's kernel, a layer norm: what a language model is made of."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.ids = torch.randint(0, 11, (2, 5))

    def forward(self):
        x = self.embed(self.ids)
        q, k, v = (f(self.norm(x)).view(2, 5, 2, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 8)
        logits = (x + a) @ self.embed.weight.T
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten())


@pytest.mark.parametrize("attention, accuracy", [("exact", 1e-4), ("kernel", 2e-2)])
def test_the_forward_gradient_is_the_directional_derivative(attention, accuracy):
    torch.manual_seed(0)
    model = Attends()
    names = [name for name, _ in model.named_parameters()]
    grads = torch.autograd.grad(model(), list(model.parameters()))
    method = localplug.method("forward-grad", attention=attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = Engine(model, method, optimizer, seed=5)
    z = [method.directions.values(i, 0) for i in range(len(names))]
    engine.evaluate(model)
    engine.apply(optimizer)
    expected = sum(float((g * d).sum()) for g, d in zip(grads, z, strict=True))
    assert engine.gradient_norm == pytest.approx(abs(expected), rel=accuracy)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters()) and not any(
        m._forward_hooks or m._forward_pre_hooks for m in model.modules()
    )


def stepped(engine, model, optimizer, losses):
    """One step each, of a loss that is multiplied by a number."""
    for factor in losses:
        engine.evaluate(lambda factor=factor: model() * factor)
        engine.apply(optimizer)


def test_residual_feedback_goes_on_after_a_step_that_was_left_out():
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    residual = Residual(1e-1)
    engine = Engine(model, localplug.ZerothOrder(residual, SGD()), optimizer)
    stepped(engine, model, optimizer, [1.0, 1.0])
    last = residual.state_dict()["last"]
    stepped(engine, model, optimizer, [math.nan])
    assert engine.run.num_dropped == 1 and residual.state_dict()["last"] == last
    before = model.w.detach().clone()
    stepped(engine, model, optimizer, [1.0])
    assert engine.run.num_dropped == 1 and model.w.isfinite().all() and not torch.equal(before, model.w)


def test_the_anchor_of_svrg_is_the_mean_of_what_was_measured():
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    anchored = SVRG(1e-3, 8, 4)
    engine = Engine(model, localplug.ZerothOrder(anchored, AnchoredSGD(anchored)), optimizer)
    stepped(engine, model, optimizer, [1.0, math.nan, 3.0, 2.0])
    z = engine.method.directions.values(0, 0, step=0).flatten()
    assert anchored.anchor == pytest.approx(2.0 * float(model.gradient() @ z), rel=1e-3)


def test_the_trainer_sees_and_clips_slopes_alone():
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    curvature = Curvature(1e-2, 2, power=0.0)
    engine = Engine(model, localplug.ZerothOrder(curvature, SGD()), optimizer)
    engine.evaluate(model)
    shown = float(model.w.grad.norm())
    model.w.grad.mul_(0.5)  # as clipping, or unscaling, does
    engine.apply(optimizer)
    z = [engine.method.directions.values(0, j, step=0).flatten() for j in range(2)]
    slopes = [float(model.gradient() @ v) for v in z]
    assert shown == pytest.approx(math.sqrt(sum(s * s for s in slopes) / 2), rel=1e-3)
    assert engine.gradient_norm == pytest.approx(shown / 2)
    assert curvature.curvatures == pytest.approx([0.5 * float(v @ model.a @ v) for v in z], rel=1e-2, abs=2e-2)


@pytest.mark.parametrize("name", ["hizoo", "1.5-spsa"])
def test_clipping_is_refused_where_it_would_scale_the_curvature(name):
    with pytest.raises(localplug.Unsupported, match="clips the slopes to 1.*set max_grad_norm=0"):
        Engine(Quadratic(), localplug.method(name), clipping=1.0)


def test_what_clipping_changes_is_said():
    assert localplug.method("fzoo").is_scale_free and localplug.method("es").is_scale_free
    assert not localplug.method("mezo").is_scale_free and not localplug.method("zo-sgd").is_scale_free
