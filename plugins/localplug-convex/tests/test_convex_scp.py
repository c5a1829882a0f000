"""Sampled convex programs: losses, conjugates and proximal maps by definition, optima by CVXPY and KKT, the scenario bound."""

import pytest
import torch
from torch.nn import functional as F

import localplug
from localplug_convex import losses, patterns, scp
from localplug_convex.scp import SampledConvex, sufficient_neurons

# CVXPY 1.9.3 with Clarabel 0.11.1 on `problem()`, 40 neurons of seed 0, beta 0.5; the test below makes them again
GOLDEN = {"squared": 18.615591, "hinge": 31.9546996, "bce": 33.5873836, "cross_entropy": 51.3878658}
LOSSES = list(GOLDEN)


def problem(loss, N=60, D=6):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, dtype=torch.float64, generator=generator)
    y = torch.randn(N, dtype=torch.float64, generator=generator)
    return X, {"squared": y, "cross_entropy": torch.arange(N) % 3}.get(loss, (y > 0).long())


def features(X, num, seed=0):
    u = patterns.gates(num, X.shape[1], seed, X)
    return (X @ (u / u.norm(dim=0))).clamp(min=0)


@pytest.fixture(scope="module")
def solved():
    return {
        loss: localplug.solver("relu-scp", beta=0.5, num_neurons=40, loss=loss, tolerance=2e-7, max_iterations=30_000)(
            *problem(loss)
        )
        for loss in LOSSES
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_the_optimum_the_networks_objective_and_the_bound_agree(solved, loss):
    solution, (X, y) = solved[loss], problem(loss)
    assert solution.converged
    for value in (solution.objective, solution.network_objective, solution.lower_bound):
        assert value == pytest.approx(GOLDEN[loss], rel=1e-6)
    assert solution.network_objective == pytest.approx(solution.objective, abs=1e-9)
    out = solution.network(X).detach()
    sign = 2.0 * y.unsqueeze(1) - 1
    by_hand = {
        "squared": lambda: 0.5 * (out[:, 0] - y).square().sum(),
        "hinge": lambda: torch.relu(1 - sign * out).sum(),
        "bce": lambda: F.binary_cross_entropy_with_logits(out[:, 0], y.double(), reduction="sum"),
        "cross_entropy": lambda: F.cross_entropy(out, y, reduction="sum"),
    }[loss]()
    decay = sum(p.detach().square().sum() for p in solution.network.parameters())
    assert float(by_hand + 0.25 * decay) == pytest.approx(solution.network_objective, abs=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_cvxpy_agrees(loss):
    cp = pytest.importorskip("cvxpy")
    X, y = problem(loss)
    Phi, y = features(X, 40).numpy(), y.numpy()
    K = 3 if loss == "cross_entropy" else 1
    alpha = cp.Variable((40, K))
    f, sign = Phi @ alpha, 2 * y - 1
    value = {
        "squared": lambda: 0.5 * cp.sum_squares(f[:, 0] - y),
        "hinge": lambda: cp.sum(cp.pos(1 - cp.multiply(sign, f[:, 0]))),
        "bce": lambda: cp.sum(cp.logistic(-cp.multiply(sign, f[:, 0]))),
        "cross_entropy": lambda: cp.sum(cp.log_sum_exp(f, axis=1)) - cp.sum(cp.multiply(torch.eye(3)[y].numpy(), f)),
    }[loss]()
    found = cp.Problem(cp.Minimize(value + 0.5 * cp.sum(cp.norm(alpha, axis=1)))).solve(solver="CLARABEL")
    assert found == pytest.approx(GOLDEN[loss], rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_and_conjugates_are_what_defines_them(loss):
    """The gradient by autograd; Fenchel's inequality, with equality at the gradient."""
    _, y = problem(loss, N=12)
    Y = {"squared": lambda: y[:, None], "cross_entropy": lambda: 2 * F.one_hot(y).double() - 1}.get(
        loss, lambda: (2 * y - 1).double()[:, None]
    )()
    L = losses.LOSSES[loss](Y)
    generator = torch.Generator().manual_seed(1)
    f = torch.randn(Y.shape, dtype=Y.dtype, generator=generator).requires_grad_()
    (expected,) = torch.autograd.grad(L.value(f), f)
    f = f.detach()
    torch.testing.assert_close(L.gradient(f), expected)
    q = L.gradient(f)
    assert float((q * f).sum()) - L.conjugate(q) == pytest.approx(float(L.value(f)))
    for theta in (0.0, 0.3, 0.9):
        for _ in range(20):
            other = 2 * torch.randn(Y.shape, dtype=Y.dtype, generator=generator)
            assert float(L.value(other)) >= theta * float((q * other).sum()) - L.conjugate(theta * q) - 1e-9


def test_proximal_maps_minimise_what_defines_them():
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[0.6, -0.8, 1.0]], dtype=torch.float64)

    def value(z):
        return float(0.5 * z.norm() + 0.5 * (z - x).square().sum())

    best = scp.shrink_rows(x, 0.5)
    assert all(
        value(best) < value(best + 1e-3 * torch.randn(1, 3, dtype=x.dtype, generator=generator)) for _ in range(50)
    )
    assert scp.shrink_rows(x, 2.0).abs().sum() == 0
    Y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64)
    q, sigma = torch.tensor([[-0.4], [0.9], [2.0], [3.0]], dtype=torch.float64), 0.3
    p = losses.Hinge(Y).proximal_dual(q, sigma)
    for n in range(4):  # on a grid of the conjugate's domain, -1 <= p y <= 0
        grid = Y[n] * torch.linspace(-1, 0, 10_001, dtype=torch.float64)
        cost = grid * Y[n] + (grid - q[n]).square() / (2 * sigma)
        assert float(p[n]) == pytest.approx(float(grid[cost.argmin()]), abs=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_bounds_hold_at_any_iteration(loss):
    for iterations in (1, 20, 200):
        X, y = problem(loss)
        solution = SampledConvex(beta=0.5, num_neurons=40, loss=loss, max_iterations=iterations)(X, y)
        assert solution.lower_bound <= GOLDEN[loss] * (1 + 1e-6)
        assert solution.objective >= GOLDEN[loss] * (1 - 1e-6)


def test_a_given_loss_is_solved_like_the_named_one(solved):
    X, y = problem("squared")
    mine = SampledConvex(
        beta=0.5, num_neurons=40, loss=lambda f, t: 0.5 * (f - t).square().sum(), tolerance=1e-9, max_iterations=30_000
    )(X, y)
    assert mine.converged and mine.lower_bound is None
    assert mine.objective == pytest.approx(solved["squared"].objective, rel=1e-7)


def test_a_given_loss_meets_the_optimality_conditions():
    """|Phi^T g|_i <= beta, with equality along alpha_i where it is not zero; g = dL/df of the huber loss, by autograd."""
    X, y = problem("squared")
    loss = lambda f, t: F.huber_loss(f, t, reduction="sum", delta=0.5)  # noqa: E731
    solution = SampledConvex(beta=0.5, num_neurons=40, loss=loss, tolerance=1e-10, max_iterations=30_000)(X, y)
    f = solution.network(X).detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(f, y[:, None]), f)
    assert float((features(X, 40).T @ g).abs().max()) == pytest.approx(0.5, abs=1e-6)
    active = solution.network[0](X).clamp(min=0).detach()
    alpha = solution.network[2].weight[0].detach()
    unit = active / solution.network[0].weight.norm(dim=1).detach()
    torch.testing.assert_close(unit.T @ g[:, 0], -0.5 * torch.sign(alpha), atol=1e-5, rtol=0)


def test_outputs_share_their_neurons():
    X, y = problem("cross_entropy")
    solution = SampledConvex(beta=2.0, num_neurons=40, loss="cross_entropy")(X, y)
    weight = solution.network[2].weight
    assert weight.shape[0] == 3 and 0 < weight.shape[1] < 40
    assert ((weight != 0).sum(0) > 1).all()
    torch.testing.assert_close(solution.network[0].weight.norm(dim=1), weight.norm(dim=0))  # balanced, as |u| = |alpha|
    two = SampledConvex(beta=2.0, num_neurons=40, loss="cross_entropy")(X, (y > 0).long())
    assert two.network(X).shape == (60, 2)


def test_bias_is_a_column_of_ones_and_float32_stays():
    X, y = (t.float() for t in problem("squared"))
    ones = torch.cat([X, torch.ones(60, 1)], 1)
    with_bias = SampledConvex(beta=0.5, num_neurons=40, bias=True, tolerance=1e-4)(X, y)
    by_hand = SampledConvex(beta=0.5, num_neurons=40, tolerance=1e-4)(ones, y)
    torch.testing.assert_close(with_bias.network(X), by_hand.network(ones))
    assert with_bias.converged and with_bias.network(X).dtype == torch.float32
    assert with_bias.network[0].bias.abs().sum() > 0


def test_strong_weight_decay_gives_the_zero_network_and_no_weaker_one():
    """Zero is optimal exactly from beta = max_i |relu(X u_i)^T y| on."""
    X, y = problem("squared")
    edge = float((features(X, 40).T @ y).abs().max())
    zero, small = (SampledConvex(beta=factor * edge, num_neurons=40)(X, y) for factor in (1.01, 0.99))
    assert zero.network(X).abs().max() == 0 and zero.objective == pytest.approx(float(0.5 * y.square().sum()))
    assert small.network(X).abs().max() > 0


def test_the_scenario_bound():
    """The smaller of its two forms; and, for N = 4, unseen neurons violate the dual's constraint no more often than it says."""
    assert sufficient_neurons(100, 0.1, 0.01) == 2113
    assert sufficient_neurons(1, 0.5, 0.9) == 4  # (N + 1) / (psi xi) - 1 is the smaller one
    num, violated = sufficient_neurons(4, violation=0.2, failure=0.1), []
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    y = torch.randn(4, dtype=torch.float64, generator=generator)
    fresh = features(X, 2000, seed=99)
    for seed in range(8):
        solution = SampledConvex(beta=0.05, num_neurons=num, max_iterations=500, seed=seed)(X, y)
        q = y - solution.network(X).detach()[:, 0]
        violated.append(float(((fresh.T @ q).abs() > 0.05 * (1 + 1e-4)).double().mean()))
    assert max(violated) > 0  # the sample is not the whole
    assert sum(v > 0.2 for v in violated) <= 2
    with pytest.raises(ValueError) as wrong:
        sufficient_neurons(0, 1.0, 0.0)
    assert all(word in str(wrong.value) for word in ("num_examples", "violation", "failure"))


def test_the_seed_decides_and_the_global_generator_does_not():
    X, y = problem("squared", N=20)
    before = torch.get_rng_state()
    one, two, other = (SampledConvex(beta=0.5, num_neurons=10, seed=seed)(X, y) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.objective == two.objective != other.objective


def test_what_it_refuses_all_at_once():
    with pytest.raises(ValueError) as wrong:
        SampledConvex(beta=0, num_neurons=0, loss="l3", tolerance=-1, max_iterations=0)
    assert all(word in str(wrong.value) for word in ("beta", "num_neurons", "loss", "tolerance", "max_iterations"))
    X, y = problem("squared", N=6)
    with pytest.raises(ValueError, match="not finite; inputs have 5 examples and targets 6"):
        SampledConvex(beta=1.0)(X[:5], y.where(y > y.min(), torch.nan))
    with pytest.raises(ValueError, match="must be integer labels, or -1 and"):
        SampledConvex(beta=1.0, loss="hinge")(X, y)
    with pytest.raises(ValueError, match="have one .1 in every row"):
        SampledConvex(beta=1.0, loss="cross_entropy")(X, torch.ones(6, 2, dtype=X.dtype))
