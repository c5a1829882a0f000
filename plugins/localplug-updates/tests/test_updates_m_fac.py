"""M-FAC against the dense inverse in float64, and its damping against the variance of the gradients."""

import pytest
import torch
from torch import nn

import localplug

D = 12


def rows(number, seed=0, d=D):
    return torch.randn(number, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mfac(params, **options):
    return localplug.update_rule("m-fac")(params, **options)


def dense(window, damping, g, m):
    """(lambda I + sum g g^T / m)^-1 g, as it stands."""
    F = damping * torch.eye(window.shape[1], dtype=torch.float64) + window.T @ window / m
    return torch.linalg.inv(F) @ g


@pytest.mark.parametrize("number", [1, 3, 5, 13])
def test_a_step_is_the_dense_inverse_times_the_newest_gradient(number):
    """While the window fills and after it wraps; one unit of a matrix and a vector."""
    g = rows(number)
    w, b = (nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((2, 4), (4,)))
    rule = mfac([w, b], lr=1.0, window=5, damping=0.3)
    for row in g:
        before = torch.cat([w.detach().flatten(), b.detach()])
        w.grad, b.grad = row[:8].view(2, 4).clone(), row[8:].clone()
        rule.step()
    moved = before - torch.cat([w.detach().flatten(), b.detach()])
    torch.testing.assert_close(moved, dense(g[-5:], 0.3, g[-1], 5), rtol=1e-10, atol=1e-12)


def test_a_parameter_group_is_a_unit():
    """Two groups give the block-diagonal matrix: the unit of one knows nothing of the other."""
    g = rows(3)
    w, b = (nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (8, 4))
    rule = mfac([{"params": [w]}, {"params": [b]}], lr=1.0, window=4, damping=0.3)
    for row in g:
        w_before, b_before = w.detach().clone(), b.detach().clone()
        w.grad, b.grad = row[:8].clone(), row[8:].clone()
        rule.step()
    torch.testing.assert_close(w_before - w.detach(), dense(g[:, :8], 0.3, g[-1, :8], 4), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(b_before - b.detach(), dense(g[:, 8:], 0.3, g[-1, 8:], 4), rtol=1e-10, atol=1e-12)


def test_with_the_gradients_of_all_examples_it_is_a_gauss_newton_step():
    """Least squares with residuals of one: the Fisher matrix is the Hessian, and lr 1 steps to the minimum."""
    X = rows(40, d=4)
    w = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    target = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    rule = mfac([w], lr=1.0, window=41, damping=1e-9)
    H = X.T @ X / 41
    for x in X:  # gradients of examples with residuals of 1, at a standing w
        w.grad = x.clone()
        rule.step()
        with torch.no_grad():
            w.zero_()
    w.grad = H @ (w.detach() - target)
    small = w.grad * 1e-3
    w.grad = small.clone()  # so small that it does not count in the matrix itself
    rule.step()
    torch.testing.assert_close(w.detach(), 1e-3 * target, rtol=1e-3, atol=1e-6)


def test_the_variance_of_the_method_can_be_handed_over():
    """tr Cov of the estimate is added to the damping; the zeroth-order method's own attribute is that number."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1))
    estimator = localplug.estimator("two-sided", eps=1e-3, num_directions=4)
    method = localplug.method("zo", estimator=estimator, update="trainer")
    handed = []

    def variance():
        handed.append(method.variance)
        return method.variance

    optimizer = mfac(model.parameters(), lr=1.0, window=4, variance=variance)
    x = torch.randn(16, 6)
    before = [p.detach().clone() for p in model.parameters()]
    with localplug.attach(model, method, optimizer):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        grads = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    moved = torch.cat([(a - p.detach()).flatten() for a, p in zip(before, model.parameters(), strict=True)]).double()
    assert len(handed) == 1 and handed[0] > 0
    torch.testing.assert_close(moved, dense(grads[None], 1e-5 + handed[0], grads, 4), rtol=1e-3, atol=1e-6)


def test_of_single_random_directions_it_is_plain_descent():
    """Random directions are nearly orthogonal, and so a window of them says nothing: the step is along the estimate."""
    z = torch.randn(8, 2000, generator=torch.Generator().manual_seed(2))
    w = nn.Parameter(torch.zeros(2000))
    rule = mfac([w], lr=1.0, window=8, damping=1e-5)
    for row in z:
        before = w.detach().clone()
        w.grad = row.clone()
        rule.step()
    assert torch.cosine_similarity(before - w.detach(), z[-1], dim=0) > 0.97


def test_of_several_directions_it_harms_unless_it_knows_their_variance():
    """Cosines with the true gradient: the estimate's, less after M-FAC, and kept where the variance is handed over."""
    generator = torch.Generator().manual_seed(3)
    g, q, d = torch.randn(600, generator=generator), 64, 600
    variance = float(g.square().sum()) * (d + 1) / q
    found = {}
    for name, options in (("alone", {}), ("handed over", {"variance": lambda: variance})):
        w = nn.Parameter(torch.zeros(d))
        rule = mfac([w], lr=1.0, window=16, damping=1e-5 * float(g.square().mean()), **options)
        noise = torch.Generator().manual_seed(4)
        for _ in range(20):
            z = torch.randn(q, d, generator=noise)
            w.grad = (z @ g) @ z / q
            with torch.no_grad():
                w.zero_()
            rule.step()
        found[name] = float(torch.cosine_similarity(-w.detach(), g, dim=0))
    estimate = float(torch.cosine_similarity(w.grad, g, dim=0))
    assert found["alone"] < 0.5 * estimate < 0.9 * estimate < found["handed over"]


@pytest.mark.parametrize(
    "options, says",
    [
        ({"lr": -1.0, "window": 0}, "lr and weight_decay .*window must be an integer of at least 1, got 0"),
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
    ],
)
def test_what_is_out_of_range_is_refused_all_at_once(options, says):
    with pytest.raises(ValueError, match=says):
        mfac([nn.Parameter(torch.zeros(1))], **options)
