"""The solutions against torch's own, their gradients against finite differences in float64, and that none leaves its expert."""

import pytest
import torch

from localplug_experts import HardConstraint, derivative, least_squares, levenberg_marquardt


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_least_squares_is_that_of_torch_for_each_expert(ridge):
    A, b = normal(3, 7, 4), normal(3, 7, seed=1)
    H = A.mT @ A + ridge * torch.eye(4)
    torch.testing.assert_close(least_squares(A, b, ridge=ridge), torch.linalg.solve(H, (A.mT @ b[..., None])[..., 0]))
    if not ridge:
        torch.testing.assert_close(least_squares(A, b), torch.linalg.lstsq(A, b[..., None]).solution[..., 0])


@pytest.mark.parametrize("ridge, rows", [(0.0, 7), (0.3, 7), (0.3, 3)])
def test_the_gradient_of_least_squares_is_that_of_finite_differences(ridge, rows):
    A, b = normal(2, rows, 4).requires_grad_(), normal(2, rows, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda A, b: least_squares(A, b, ridge=ridge), (A, b), atol=1e-7)


def residual(w, p):
    """Neither linear nor zero at its least."""
    return torch.cat([torch.tanh(p[:, 0] * w[0]) + w[1] ** 2 * p[:, 1] - p[:, 2], 0.1 * w])


def test_the_gradient_of_a_nonlinear_solution_is_that_of_finite_differences():
    """Of what the solution weighs in random directions, along random changes of the input."""
    p, direction, weight = normal(3, 6, 3), normal(3, 6, 3, seed=5), normal(3, 2, seed=6)

    def value(t):
        start = torch.full((3, 2), 0.5, dtype=torch.float64)
        return (levenberg_marquardt(residual, start, p + t * direction, ridge=0.05, tolerance=1e-11) * weight).sum(1)

    t = torch.zeros(3, 1, 1, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(value(t).sum(), t)
    with torch.no_grad():
        expected = (value(torch.tensor(1e-5)) - value(torch.tensor(-1e-5))) / 2e-5
    torch.testing.assert_close(found.flatten(), expected, atol=1e-6, rtol=1e-5)


def test_a_linear_residual_gives_both_solvers_the_same():
    A, b = normal(3, 7, 4).requires_grad_(), normal(3, 7, seed=1)
    ways = {
        "closed": least_squares(A, b, ridge=0.2),
        "iterated": levenberg_marquardt(lambda w, A, b: A @ w - b, torch.zeros(3, 4).double(), A, b, ridge=0.2),
    }
    gradients = [torch.autograd.grad(w.square().sum(), A)[0] for w in ways.values()]
    torch.testing.assert_close(ways["closed"], ways["iterated"])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("way", ["closed", "iterated"])
def test_a_gradient_stays_inside_of_its_expert(way):
    A, b = normal(3, 7, 4).requires_grad_(), normal(3, 7, seed=1)
    if way == "closed":
        w = least_squares(A, b)
    else:
        w = levenberg_marquardt(lambda w, A, b: A @ w - b, torch.zeros(3, 4).double(), A, b, ridge=0.0)
    (gradient,) = torch.autograd.grad(w[1].square().sum(), A)
    assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


def test_nothing_of_the_iterations_is_held_for_the_backward_pass():
    held = []
    p = normal(3, 6, 3).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        levenberg_marquardt(residual, torch.full((3, 2), 0.5, dtype=torch.float64), p, ridge=0.05)
    assert sum(held) == p.numel() + 3 * 2


def test_what_cannot_be_solved_is_told_at_the_door():
    with pytest.raises(ValueError, match=r"3 rows do not determine 4 .*ridge must not be negative|ridge must not"):
        least_squares(normal(2, 3, 4), normal(2, 3), ridge=-1.0)
    with pytest.raises(ValueError, match="do not determine"):
        least_squares(normal(2, 3, 4), normal(2, 3))
    with pytest.raises(ValueError, match=r"A must be \(E, M, N\)"):
        least_squares(normal(2, 3), normal(2, 3))
    with pytest.raises(
        ValueError, match=r"a row for each of 2 experts, got \[\(3, 1\)\]; ridge.*; tolerance.*; max_iter"
    ):
        levenberg_marquardt(residual, normal(2, 2), normal(3, 1), ridge=-1, tolerance=0, max_iterations=0)
    with pytest.raises(RuntimeError, match=r"experts \[0\] did not converge in 3 iterations"):
        levenberg_marquardt(
            lambda w, p: torch.exp(w) * p, normal(1, 1), torch.ones(1, 1).double(), ridge=0.0, max_iterations=3
        )


def test_derivatives_of_a_network_are_those_of_autograd():
    net = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()
    x = normal(4, 2)
    hessian = torch.stack([torch.func.jacfwd(torch.func.jacfwd(net))(row) for row in x])
    for axis in (0, 1):
        torch.testing.assert_close(derivative(net, x, axis, 2), hessian[:, :, axis, axis])
    (slope,) = torch.autograd.grad(derivative(net, x, 0, 2).square().sum(), net[0].weight)
    assert slope.any()


class Poisson:
    """u'' = -k^2 sin(kx) on [0, 1], whose solution sin(kx) gives each part its values at its own ends."""

    def __init__(self, experts, k=9.0, points=24):
        self.k, self.edges = k, torch.linspace(0, 1, experts + 1).double()
        inner = torch.linspace(0, 1, points).double()
        self.points = (self.edges[:-1, None] + (self.edges[1:] - self.edges[:-1])[:, None] * inner)[..., None]

    def solution(self, x):
        return torch.sin(self.k * x)

    def rows(self, basis, points):
        ends = torch.stack([self.edges[:-1], self.edges[1:]], 1)[..., None]
        A = torch.cat([derivative(basis, points, order=2) / self.k**2, 10 * basis(ends)], 1)
        b = torch.cat([-self.solution(points[..., 0]), 10 * self.solution(ends[..., 0])], 1)
        return A, b

    def layer(self, basis):
        return HardConstraint(basis, self.rows, self.edges.tolist(), self.points, ridge=1e-12)


class Features(torch.nn.Module):
    def __init__(self, num=16):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(3 * normal(num, 1)), torch.nn.Parameter(3 * normal(num, seed=1))

    def forward(self, x):
        return torch.tanh(x @ self.weight.T + self.bias)


def test_more_experts_solve_better():
    x = torch.linspace(0, 1, 101).double()[:, None]
    errors = []
    for experts in (1, 2, 4, 8):
        problem = Poisson(experts, k=20.0)
        with torch.no_grad():
            u = problem.layer(Features())(x)
        errors.append(float((u - problem.solution(x[:, 0])).norm() / problem.solution(x[:, 0]).norm()))
    assert errors[0] > 0.1 and errors[-1] < 1e-3 and errors == sorted(errors, reverse=True), errors


def test_the_networks_functions_learn_through_the_solution_as_finite_differences_say():
    features = Features(6)
    layer = Poisson(2).layer(features)
    loss = layer.residuals().square().mean()
    (gradient,) = torch.autograd.grad(loss, features.bias)
    with torch.no_grad():
        for i in (0, 3):
            sides = []
            for sign in (1, -1):
                features.bias[i] += sign * 1e-5
                sides.append(float(layer.residuals().square().mean()))
                features.bias[i] -= sign * 1e-5
            assert float(gradient[i]) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_each_point_is_its_parts_experts_and_bad_parts_are_refused():
    layer = Poisson(4).layer(Features())
    assert layer.experts(torch.tensor([[-1.0], [0.1], [0.3], [0.6], [0.9], [2.0]]).double()).tolist() == [
        0,
        0,
        1,
        2,
        3,
        3,
    ]
    with pytest.raises(ValueError, match=r"two or more growing numbers, got \[1.0, 0.0\]; points must be \(1, P, D\)"):
        HardConstraint(Features(), Poisson(2).rows, [1.0, 0.0], torch.zeros(3, 4))
