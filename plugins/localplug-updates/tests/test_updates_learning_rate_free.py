"""The rules that find their learning rate take the steps of their papers' equations, and refuse noise that they cannot bear."""

import math

import pytest
import torch
from torch import nn

import localplug

NAMES = ("prodigy", "d-adaptation")


class Bowl(nn.Module):
    def __init__(self, d=30):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.t = torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def forward(self):
        return (self.w - self.t).square().sum()


def train(name, steps, num_directions=30, d=30, weight_decay=0.0, **options):
    """The update, the weights before each step and after the last, and the estimates."""
    model = Bowl(d)
    update = localplug.update(name, **options)
    estimator = localplug.estimator("two-sided", eps=1e-3, num_directions=num_directions)
    method = localplug.method("zo", estimator=estimator, update=update)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=weight_decay)
    weights, estimates = [model.w.detach().clone()], []
    with localplug.attach(model, method, optimizer) as attached:
        apply = update.apply

        def watched(run, directions, coefficients, groups):
            estimates.append(localplug.gradient_of(run, directions, coefficients, 0))
            apply(run, directions, coefficients, groups)

        update.apply = watched
        for _ in range(steps):
            model().backward()
            optimizer.step()
            optimizer.zero_grad()
            weights.append(model.w.detach().clone())
        del update.apply, attached
    return update, weights, estimates


def prodigy(g_t, x, beta1=0.9, beta2=0.999, d0=1e-2, eps=1e-8):
    """The equations, line by line."""
    d, r, s, m, v, x0, b3 = d0, 0.0, 0 * x, 0 * x, 0 * x, x.clone(), math.sqrt(beta2)
    for g in g_t:
        r = b3 * r + (d / d0) * d * float(g @ (x0 - x))
        s = b3 * s + (d / d0) * d * g
        m, v = beta1 * m + (1 - beta1) * d * g, beta2 * v + (1 - beta2) * d * d * g * g
        d_hat, step = r / float(s.abs().sum()), d
        d = max(d, d_hat)
        x = x - step * m / (v.sqrt() + d * eps)
    return x, d


def d_adaptation(g_t, x, beta1=0.9, beta2=0.999, d0=1e-2, eps=1e-8):
    d, n, s, m, v, b = d0, 0.0, 0 * x, 0 * x, 0 * x, math.sqrt(beta2)
    for g in g_t:
        n = b * n + (1 - b) * d * float(g @ (s / (v.sqrt() + eps)))
        m, v = beta1 * m + (1 - beta1) * d * g, beta2 * v + (1 - beta2) * g * g
        s = b * s + (1 - b) * d * g
        d = max(d, n / ((1 - b) * float(s.abs().sum())))
        x = x - m / (v.sqrt() + eps)
    return x, d


@pytest.mark.parametrize("name, equations", [("prodigy", prodigy), ("d-adaptation", d_adaptation)])
def test_it_takes_the_steps_of_its_equations(name, equations):
    update, weights, estimates = train(name, 40, d0=1e-2)
    x, d = equations(estimates, weights[0])
    assert d > 0.02, "the step has not grown, and the test says little"
    torch.testing.assert_close(weights[-1], x, rtol=1e-6, atol=1e-9)
    assert update.distance == pytest.approx(d, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_too_much_noise_is_refused_before_a_weight_moves(name):
    """With the number of directions that would do, which then does."""
    model = Bowl(d=100)
    before = model.w.detach().clone()
    limit = localplug.update(name).max_noise
    needed = math.ceil(101 / limit)
    update = localplug.update(name)
    method = localplug.method("zo", update=update)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with localplug.attach(model, method, optimizer):
        model().backward()
        with pytest.raises(
            ValueError, match=rf"of 100 weights is 101 times .*take num_directions={needed}, train fewer"
        ):
            optimizer.step()
    assert torch.equal(model.w.detach(), before)
    train(name, 1, num_directions=needed, d=100)
    train(name, 1, num_directions=1, d=100, max_noise=math.inf)


def test_the_directions_of_the_distribution_count():
    """Random signs have a kappa of d, a Gaussian of d + 2: at the limit one passes and the other does not."""
    for directions, passes in (("rademacher", True), ("gaussian", False)):
        model = Bowl(d=51)
        method = localplug.method("zo", directions=directions, update=localplug.update("prodigy", max_noise=50.0))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with localplug.attach(model, method, optimizer):
            model().backward()
            if passes:
                optimizer.step()
            else:
                with pytest.raises(ValueError, match="times as large as the gradient"):
                    optimizer.step()


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_by_the_trainers_rate(name):
    _, weights, _ = train(name, 1, weight_decay=0.1, d0=1e-12)
    torch.testing.assert_close(weights[1], 0.9 * weights[0], atol=1e-9, rtol=0)


def test_groups_at_different_rates_are_refused():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 0.5}], lr=1.0)
    with pytest.raises(localplug.Unsupported, match=r"one learning rate for all, and the groups have \[0.5, 1.0\]"):
        localplug.attach(model, localplug.method("zo", update="prodigy"), optimizer)


def test_a_log_of_seeds_and_scalars_replays_it(tmp_path):
    def method():
        return localplug.method("zo", update=localplug.update("prodigy", d0=1e-2))

    model, path = Bowl(), tmp_path / "run.log"
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with localplug.attach(model, method(), optimizer, log=path):
        for _ in range(5):
            model().backward()
            optimizer.step()
            optimizer.zero_grad()
    again = Bowl()
    localplug.replay_log(again, path, method=method())
    assert torch.equal(model.w, again.w)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("prodigy", {"d0": 0.0, "d_coef": -1.0}, "d0 must be positive, got 0.0; d_coef must be positive"),
        ("d-adaptation", {"betas": (0.9, 1.0), "growth_rate": 0.5}, "betas must be .*growth_rate must be at least 1"),
        ("prodigy", {"max_noise": 0.0}, "max_noise must be positive"),
    ],
)
def test_what_is_out_of_range_is_refused_all_at_once(name, options, says):
    with pytest.raises(ValueError, match=says):
        localplug.update(name, **options)


def test_schedule_free_evaluates_the_running_mean():
    """x_{t+1} = (1 - 1/(t+1)) x_t + z_{t+1} / (t + 1), by Adam's z steps, in float64."""
    g = torch.randn(9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w = nn.Parameter(torch.ones(4, dtype=torch.float64))
    rule = localplug.update_rule("schedule-free")([w], lr=0.1, betas=(0.9, 0.99))
    z, v, x = w.detach().clone(), 0 * w.detach(), w.detach().clone()
    for t, row in enumerate(g):
        w.grad = row.clone()
        rule.step()
        v = 0.99 * v + 0.01 * row * row
        z = z - 0.1 * row / ((v / (1 - 0.99 ** (t + 1))).sqrt() + 1e-8)
        x = x + (z - x) / (t + 1)
    torch.testing.assert_close(w.detach(), 0.1 * z + 0.9 * x)
    rule.eval()
    torch.testing.assert_close(w.detach(), x)
    with pytest.raises(ValueError, match="lr must be positive, got 0.*betas must be in"):
        localplug.update_rule("schedule-free")([w], lr=0, betas=(1.0, 0.9))
