"""ReLU networks by ADMM: the program against CVXPY and by hand, the bounds, the iteration, the linear systems, the door."""

import copy
import itertools

import pytest
import torch
from torch import nn

import localplug
from localplug_convex import admm, linear, patterns, recover
from localplug_convex.admm import ADMM, Program, half_squares

GOLDEN = (
    11.5569976  # CVXPY 1.9.3 with Clarabel 0.11.1 on `problem()`, 8 patterns of seed 0, beta 0.1; see the test below
)


def problem(N=60, D=6, K=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(N, D, dtype=torch.float64, generator=generator)
    y = torch.randn(*((N,) if K is None else (N, K)), dtype=torch.float64, generator=generator)
    return X.to(dtype), y.to(dtype)


def weight_decay_objective(network, X, y, beta):
    """1/2 |f(X) - y|^2 + beta/2 (|u|^2 + alpha^2), by hand."""
    hidden, _, out = network
    z = X @ hidden.weight.T + (0 if hidden.bias is None else hidden.bias)
    error = z.clamp(min=0) @ out.weight.T - y.view(len(X), -1)
    squares = sum(p.square().sum() for p in network.parameters())
    return float((0.5 * error.square().sum() + 0.5 * beta * squares).detach())


@pytest.fixture(scope="module")
def solved():
    X, y = problem()
    return X, y, localplug.solver("relu-admm", beta=0.1, num_patterns=8, tolerance=1e-9)(X, y)


def test_the_convex_and_the_networks_objective_are_the_optimum(solved):
    X, y, solution = solved
    assert solution.converged
    assert solution.objective == pytest.approx(GOLDEN, abs=1e-6)
    assert solution.network_objective == pytest.approx(GOLDEN, abs=1e-6)
    assert weight_decay_objective(solution.network, X, y, 0.1) == pytest.approx(GOLDEN, abs=1e-6)
    assert solution.lower_bound == pytest.approx(GOLDEN, abs=1e-6)
    assert solution.lower_bound <= solution.objective
    assert solution.residuals["primal"] < 1e-7
    assert isinstance(solution.network[1], nn.ReLU)


def test_cvxpy_agrees(solved):
    cp = pytest.importorskip("cvxpy")
    X, y, solution = solved
    S = patterns.sample(X, 8, 0)[0].numpy()
    V, W = cp.Variable((6, S.shape[1])), cp.Variable((6, S.shape[1]))
    fit = cp.sum(cp.multiply(S, X.numpy() @ (V - W)), axis=1)
    cones = [cp.multiply(2 * S - 1, X.numpy() @ block) >= 0 for block in (V, W)]
    norms = cp.sum(cp.norm(V, axis=0)) + cp.sum(cp.norm(W, axis=0))
    value = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(fit - y.numpy()) + 0.1 * norms), cones).solve(solver="CLARABEL")
    assert value == pytest.approx(solution.objective, abs=1e-6)
    assert value == pytest.approx(GOLDEN, abs=1e-6)


def test_bounds_hold_long_before_convergence():
    """objective >= optimum >= lower bound at any iteration: both are values at points that satisfy their constraints."""
    X, y = problem()
    for iterations in (1, 3, 10, 100, 1000):
        solution = ADMM(beta=0.1, num_patterns=8, max_iterations=iterations)(X, y)
        assert solution.lower_bound <= GOLDEN + 1e-6 <= solution.objective + 2e-6
        assert solution.network_objective <= solution.objective + 1e-9
        assert solution.network_objective == pytest.approx(weight_decay_objective(solution.network, X, y, 0.1))


def test_one_iteration_is_the_papers():
    """Every update against dense F and G, built row by row from their definitions."""
    X, y = problem(N=12, D=3)
    S, _ = patterns.sample(X, 4, 0)
    P, D, rho, beta, gamma = S.shape[1], 3, 0.7, 0.3, 1.0
    F = torch.cat([S[:, i, None] * X for i in range(P)] + [-S[:, i, None] * X for i in range(P)], 1)
    G = torch.block_diag(*[(2 * S[:, i, None] - 1) * X for i in range(P)] * 2)
    u, v, lam = (torch.zeros(2 * P * D, dtype=X.dtype) for _ in range(3))
    s, nu = (torch.zeros(2 * P * 12, dtype=X.dtype) for _ in range(2))
    program = Program(X, y[:, None], S, beta)
    state, system = program.start(rho), linear.Woodbury(X, S)
    A = torch.eye(2 * P * D, dtype=X.dtype) + F.T @ F / rho + G.T @ G
    for _ in range(5):
        before = state
        state, Gu = program.iterate(state, system, gamma)
        old_v, old_s = v, s
        u = torch.linalg.solve(A, F.T @ y / rho + v - lam + G.T @ (s - nu))
        x = (u + lam).view(2 * P, D)
        v = (x * (1 - beta / rho / x.norm(dim=1, keepdim=True)).clamp(min=0)).flatten()
        s = (G @ u + nu).clamp(min=0)
        lam, nu = lam + gamma * (u - v), nu + gamma * (G @ u - s)

    def flat(x):  # (rows, S, P, 1) -> one block after the other
        return x[..., 0].permute(1, 2, 0).flatten()

    for ours, dense in ((state.u, u), (state.v, v), (state.s, s), (state.lambda_, lam), (state.nu, nu)):
        torch.testing.assert_close(flat(ours), dense)
    torch.testing.assert_close(flat(program.constrain(state.u)), G @ u)
    torch.testing.assert_close(program.fit(Gu)[:, 0], F @ u)
    primal, _, dual, dual_scale = program.residuals(before, state, Gu)
    assert primal == pytest.approx(float(torch.cat([u - v, G @ u - s]).norm()))
    assert dual == pytest.approx(rho * float((v - old_v + G.T @ (s - old_s)).norm()))
    assert dual_scale == pytest.approx(rho * float((lam + G.T @ nu).norm()))


def test_successive_steps_never_grow():
    """|z+ - z|, z = (v, s, lambda, nu), is monotone in ADMM with exact steps and gamma = 1 (He, Yuan, 2012)."""
    X, y = problem()
    S, _ = patterns.sample(X, 8, 0)
    program, system = Program(X, y[:, None], S, 0.1), linear.Woodbury(X, S)
    state, sizes = program.start(0.1), []
    for _ in range(200):
        before = state
        state, _ = program.iterate(state, system, 1.0)
        moved = [getattr(state, n) - getattr(before, n) for n in ("v", "s", "lambda_", "nu")]
        sizes.append(sum(float(m.square().sum()) for m in moved) ** 0.5)
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(sizes))
    assert sizes[-1] < 0.05 * sizes[0]


def test_the_proximal_map_minimises_what_defines_it():
    x, t = torch.tensor([0.6, -0.8, 1.0], dtype=torch.float64), 0.5
    best = admm.shrink(x[:, None], t)[:, 0]

    def value(z):
        return float(t * z.norm() + 0.5 * (z - x).square().sum())

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        assert value(best) < value(best + 1e-3 * torch.randn(3, dtype=torch.float64, generator=generator))
    assert admm.shrink(x[:, None], 2.0).abs().sum() == 0


@pytest.mark.parametrize("kind", ["cholesky", "woodbury", "cg", "rbcd"])
def test_every_linear_solver_solves_the_system(kind):
    X, _ = problem(N=20, D=4)
    S, _ = patterns.sample(X, 5, 0)
    system = {
        "cholesky": lambda: linear.Cholesky(X, S),
        "woodbury": lambda: linear.Woodbury(X, S),
        "cg": lambda: linear.ConjugateGradient(X, S, steps=100),
        "rbcd": lambda: linear.RandomBlocks(X, S, steps=4000, seed=0),
    }[kind]()
    r = torch.randn(4, 5, 2, dtype=X.dtype, generator=torch.Generator().manual_seed(1))
    for rho in (0.3, 2.0):
        Phi = torch.cat([S[:, i, None] * X for i in range(5)], 1)
        A = torch.block_diag(*[torch.eye(4, dtype=X.dtype) + X.T @ X] * 5) + 2 / rho * Phi.T @ Phi
        expected = torch.linalg.solve(A, r.transpose(0, 1).reshape(20, 2)).view(5, 4, 2).transpose(0, 1)
        tolerance = {"cg": 1e-3, "rbcd": 1e-3}.get(kind, 1e-9) * float(expected.norm())
        assert float((system.solve(r, rho, torch.zeros_like(r)) - expected).norm()) < tolerance


@pytest.mark.parametrize("kind", ["cholesky", "woodbury", "cg", "rbcd"])
def test_every_linear_solver_reaches_the_same_optimum(kind):
    X, y = problem(N=20, D=3)
    known = ADMM(beta=0.5, num_patterns=5, tolerance=1e-9, max_iterations=20_000)(X, y)
    solution = ADMM(beta=0.5, num_patterns=5, linear_solver=kind, max_iterations=600)(X, y)
    assert solution.network_objective == pytest.approx(known.objective, rel=1e-3)
    assert solution.objective - solution.lower_bound < 0.02 * known.objective


def test_a_block_step_of_rbcd_minimises_along_its_direction():
    """Nothing lower on the line through the block's old and new value."""
    X, _ = problem(N=20, D=4)
    S, _ = patterns.sample(X, 5, 0)
    system = linear.RandomBlocks(X, S, steps=1, seed=0)
    r = torch.randn(4, 5, 1, dtype=X.dtype, generator=torch.Generator().manual_seed(1))
    start = torch.zeros_like(r)
    moved = system.solve(r, 0.5, start) - start
    assert int((moved.abs().sum((0, 2)) > 0).sum()) == 1

    def value(t):
        a = start + t * moved
        return float(0.5 * (a * system.apply(a, 0.5)).sum() - (a * r).sum())

    assert value(1.0) < min(value(0.0), value(0.99), value(1.01))


def test_many_outputs_are_independent_programs():
    X, Y = problem(N=30, D=4, K=3)
    options = dict(beta=0.5, num_patterns=6, max_iterations=500, tolerance=0)
    together = ADMM(**options)(X, Y)
    alone = [ADMM(**options)(X, Y[:, k]) for k in range(3)]
    assert together.objective == pytest.approx(sum(one.objective for one in alone), rel=1e-6)
    out = torch.cat([one.network(X) for one in alone], 1)
    torch.testing.assert_close(together.network(X), out, atol=1e-4, rtol=1e-4)
    assert ((together.network[2].weight != 0).sum(0) == 1).all()  # each neuron feeds one output


def test_more_features_than_examples_change_nothing_but_the_coordinates():
    """Zero features added to a wide problem: the same program, though the work is done in N coordinates of it."""
    X, y = problem(N=8, D=8)
    wide = torch.cat([X, torch.zeros(8, 5, dtype=X.dtype)], 1)
    rotation = torch.linalg.qr(torch.randn(13, 13, dtype=X.dtype, generator=torch.Generator().manual_seed(2)))[0]
    S, H = patterns.sample(wide @ rotation, 5, 0)
    solution = ADMM(beta=0.5, num_patterns=5, tolerance=1e-9, max_iterations=20_000)(wide @ rotation, y)
    program = Program(wide @ rotation, y[:, None], S, 0.5)
    state, system = program.start(0.5), linear.Cholesky(wide @ rotation, S)
    for _ in range(20_000):
        state, Gu = program.iterate(state, system, 1.0)
        if float((Gu - state.s).abs().max()) < 1e-10 and float((state.u - state.v).abs().max()) < 1e-10:
            break
    feasible = recover.into_cones(state.v, wide @ rotation, S, H)
    assert solution.objective == pytest.approx(program.objective(feasible), abs=1e-6)
    assert solution.network_objective == pytest.approx(
        weight_decay_objective(solution.network, wide @ rotation, y, 0.5)
    )


def test_bias_is_a_column_of_ones():
    X, y = problem(N=30, D=4)
    ones = torch.cat([X, torch.ones(30, 1, dtype=X.dtype)], 1)
    with_bias = ADMM(beta=0.3, num_patterns=6, bias=True, max_iterations=500)(X, y)
    by_hand = ADMM(beta=0.3, num_patterns=6, max_iterations=500)(ones, y)
    torch.testing.assert_close(with_bias.network(X), by_hand.network(ones))
    assert with_bias.objective == pytest.approx(by_hand.objective)
    assert with_bias.network[0].bias.abs().sum() > 0


def test_cones_are_entered_and_their_points_left_alone():
    X, _ = problem(N=15, D=3)
    S, H = patterns.sample(X, 4, 0)
    noise = torch.randn(3, 2, 4, 1, dtype=X.dtype, generator=torch.Generator().manual_seed(3))
    v = H[:, None, :, None] + 0.3 * noise
    v[:, 0, 0] = 0
    v[:, 1, 1] = -H[:, 1, None]  # as far out as can be
    moved = recover.into_cones(v, X, S, H)

    def least(v):
        signed = (2 * S - 1)[:, None, :, None] * torch.einsum("nd,dspk->nspk", X, v)
        return signed.amin(0)[..., 0]

    assert float(least(moved).min()) > -1e-12
    assert moved[:, 0, 0].abs().sum() == 0 and moved[:, 1, 1].abs().sum() == 0
    outside = least(v) < 0
    outside[1, 1] = False
    assert outside.any() and not outside.all()
    touched = (moved != v).any(0)[..., 0]
    touched[1, 1] = False
    assert torch.equal(touched, outside)
    assert float(least(moved)[outside].abs().max()) < 1e-12  # just far enough: on the cone's boundary


def test_the_best_multiple_is_a_minimum_and_one_at_the_optimum():
    X, _ = problem()
    S, H = patterns.sample(X, 8, 0)
    v = torch.stack([H, 0.5 * H], 1).unsqueeze(3)
    reachable = 0.7 * torch.einsum("np,npk->nk", S, torch.einsum("nd,dpk->npk", X, v[:, 0] - v[:, 1]))
    program = Program(X, reachable, S, 0.1)
    best = program.best_multiple(v)
    value = program.objective(best)
    assert value < program.objective(v)
    assert 0 < float((best / v).mean()) < 0.7  # weight decay pulls it below the multiple that fits
    assert value < min(program.objective(1.01 * best), program.objective(0.99 * best))
    torch.testing.assert_close(program.best_multiple(best), best)
    away = program.best_multiple(v.flip(1))  # v and w exchanged: the fit changes its sign, and zero is best
    assert away.abs().sum() == 0


def test_strong_weight_decay_gives_the_zero_network():
    """Zero is optimal from beta = max_i |X^T D_i y| on: y is then feasible in the dual, with mu = 0."""
    X, y = problem(N=20, D=3)
    S, _ = patterns.sample(X, 5, 0)
    bound = float((X.T @ (S * y[:, None])).norm(dim=0).max())
    solution = ADMM(beta=1.01 * bound, num_patterns=5, max_iterations=1000)(X, y)
    assert solution.network(X).abs().max() == 0
    assert solution.objective == pytest.approx(0.5 * float(y.square().sum()), rel=1e-9)


def test_labels_and_float32():
    X, y = problem(N=40, D=4, dtype=torch.float32)
    solution = ADMM(beta=0.5, num_patterns=10, tolerance=1e-4)(X, (y > 0).long())
    signs = ADMM(beta=0.5, num_patterns=10, tolerance=1e-4)(X, torch.sign(y))
    assert solution.network(X).shape == (40, 1) and solution.network(X).dtype == torch.float32
    torch.testing.assert_close(solution.network(X), signs.network(X))
    assert solution.converged and solution.objective - solution.lower_bound < 0.01 * solution.objective
    three = ADMM(beta=0.5, num_patterns=10, max_iterations=100)(X, torch.arange(40) % 3)
    assert three.network(X).shape == (40, 3)


def test_residuals_are_balanced_by_rho():
    """From a rho 1000 times too small, adapting it ends nearer the optimum; the unscaled duals stay what they were."""
    X, y = problem()
    options = dict(beta=0.1, num_patterns=8, rho=1e-4, max_iterations=1500)
    fixed, adapted = ADMM(**options)(X, y), ADMM(adapt_rho=True, **options)(X, y)
    assert adapted.residuals["primal"] < 0.1 * fixed.residuals["primal"]
    assert adapted.objective - adapted.lower_bound < 0.5 * (fixed.objective - fixed.lower_bound)
    S, _ = patterns.sample(X, 8, 0)
    program = Program(X, y[:, None], S, 0.1)
    state, _ = program.iterate(program.start(0.1), linear.Woodbury(X, S), 1.0)
    before = copy.copy(state)
    admm._balance(state, 9.0, 1.0)
    assert state.rho == pytest.approx(0.3)
    torch.testing.assert_close(state.rho * state.lambda_, before.rho * before.lambda_)
    torch.testing.assert_close(state.rho * state.nu, before.rho * before.nu)


def test_the_seed_decides_and_the_global_generator_does_not():
    X, y = problem(N=20, D=3)
    before = torch.get_rng_state()
    one, two, other = (ADMM(beta=0.1, num_patterns=4, max_iterations=50, seed=seed)(X, y) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.objective == two.objective != other.objective


def test_patterns_are_distinct_belong_to_their_gates_and_extend():
    X, _ = problem(N=30, D=3)
    S, H = patterns.sample(X, 20, 0)
    assert S.shape == (30, 20) and len({tuple(c) for c in S.T.tolist()}) == 20
    assert torch.equal(S, (X @ H >= 0).to(X.dtype)) and S.any(0).all()
    assert torch.equal(patterns.sample(X, 7, 0)[0], S[:, :7])
    line = torch.tensor([[1.0], [2.0], [-1.0]])
    assert patterns.sample(line, 50, 0)[0].shape == (3, 2)  # a line has two patterns
    seed = next(s for s in range(5000) if float(patterns.gates(8, 1, s, line).max()) < 0)
    with pytest.raises(ValueError, match="no neuron was active on any of the 1 examples"):
        patterns.sample(torch.tensor([[1.0]]), 1, seed)


def test_half_squares():
    assert float(half_squares(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]))) == 2.5


def test_what_it_refuses_all_at_once():
    with pytest.raises(ValueError) as wrong:
        ADMM(
            beta=-1,
            num_patterns=0,
            rho=0,
            dual_step=2,
            linear_solver="lu",
            inner_steps=0,
            tolerance=-1,
            max_iterations=0,
        )
    words = ("beta", "num_patterns", "rho", "dual_step", "linear_solver", "inner_steps", "tolerance", "max_iterations")
    assert all(word in str(wrong.value) for word in words)
    with pytest.raises(ValueError, match="goes with an inexact solver"):
        ADMM(beta=1, linear_solver="cholesky", inner_steps=3)
    with pytest.raises(ValueError, match="beta"):
        ADMM(beta=float("nan"))
    solver = ADMM(beta=1.0)
    X, y = problem(N=5, D=2)
    with pytest.raises(ValueError) as wrong:
        solver(X.where(X.min() < X, torch.nan), y[:4].where(y[:4] > y[:4].min(), torch.inf))
    assert all(
        part in str(wrong.value) for part in ("inputs have values", "targets have values", "5 examples and targets 4")
    )
    for inputs, targets, message in (
        (X[0], y, "inputs must be .examples, features."),
        (X.half(), y, "float32 or float64, got torch.float16"),
        (X.long(), y, "float32 or float64, got torch.int64"),
        (X, y.view(5, 1, 1), "targets must be integer labels"),
        (X, torch.zeros(5, 2, dtype=torch.long), "targets must be integer labels"),
        (X, torch.zeros(5, dtype=torch.long), "at least two classes"),
        (X, torch.tensor([0, 1, -1, 0, 1]), "got values from -1 to 1"),
        (X, y.to(torch.complex64), "must be real"),
        (X, [0.0] * 5, "must be tensors"),
    ):
        with pytest.raises(ValueError, match=message):
            solver(inputs, targets)
