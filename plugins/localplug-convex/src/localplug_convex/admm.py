"""Two-layer ReLU networks with squared loss, solved to global optimality on sampled activation patterns, by ADMM.

Bai, Gautam, Sojoudi: Efficient Global Optimization of Two-Layer ReLU Networks, 2022, arXiv:2201.01965.

With patterns D_i = diag(1[X h_i >= 0]), i <= P, sampled once, the convex program

    min  1/2 |sum_i D_i X (v_i - w_i) - y|^2 + beta sum_i (|v_i| + |w_i|)
    s.t. (2 D_i - I) X v_i >= 0,  (2 D_i - I) X w_i >= 0

is training a ReLU network with weight decay among the networks whose neurons have one of these patterns. With
F u = sum_i D_i X (v_i - w_i) and G u = ((2 D_i - I) X v_i, (2 D_i - I) X w_i)_i, split as u = v and G u = s >= 0:

    u <- (I + F^T F / rho + G^T G)^{-1} (F^T y / rho + v - lambda + G^T (s - nu))        localplug_convex.linear
    v <- prox of (beta/rho) |.|, block by block, at u + lambda:   x (1 - (beta/rho) / |x|)_+
    s <- max(G u + nu, 0)
    lambda <- lambda + gamma (u - v),   nu <- nu + gamma (G u - s)                       scaled duals

Letters: N examples, D features, S = 2 signs (v, then w), P patterns, K outputs.
"""

import dataclasses
import math
from typing import Literal, final

import torch
from torch import Tensor

from localplug_convex import linear, patterns, recover
from localplug_convex.data import checked, with_ones
from localplug_convex.recover import Solution

_CHECK_EVERY = 10  # iterations between two looks at the residuals
_LARGEST_FACTOR = 8000  # rows of a matrix that "auto" still factorizes: 0.5 GB in float64
_SOLVERS = ("auto", "cholesky", "woodbury", "cg", "rbcd")


@dataclasses.dataclass
class State:
    """The variables of one iteration, and rho, in whose unit the duals are scaled.

    u, v and lambda are (D, S, P, K), s and nu (N, S, P, K).
    """

    u: Tensor
    v: Tensor
    s: Tensor
    lambda_: Tensor
    nu: Tensor
    rho: float


@final
class Program:
    """The convex program of one data set and one sample of patterns, and the steps of ADMM on it."""

    def __init__(self, X_ND: Tensor, Y_NK: Tensor, patterns_NP: Tensor, beta: float) -> None:
        self.X_ND, self.Y_NK, self.patterns_NP, self.beta = X_ND, Y_NK, patterns_NP, beta
        self.sign_N1P1 = (2 * patterns_NP - 1)[:, None, :, None]
        self.Fty_DSPK = self.fit_transposed(Y_NK)

    def start(self, rho: float) -> State:
        """All zeros."""
        (N, D), P, K = self.X_ND.shape, self.patterns_NP.shape[1], self.Y_NK.shape[1]
        of_D, of_N = self.X_ND.new_zeros(D, 2, P, K), self.X_ND.new_zeros(N, 2, P, K)
        return State(of_D, of_D, of_N, of_D, of_N, rho)

    def constrain(self, u_DSPK: Tensor) -> Tensor:
        """G u = (2 D_i - I) X u, block by block: (N, S, P, K)."""
        return self.sign_N1P1 * (self.X_ND @ u_DSPK.flatten(1)).view(-1, *u_DSPK.shape[1:])

    def constrain_transposed(self, s_NSPK: Tensor) -> Tensor:
        """G^T s = X^T (2 D_i - I) s, block by block: (D, S, P, K)."""
        signed = (self.sign_N1P1 * s_NSPK).flatten(1)
        return (self.X_ND.T @ signed).view(-1, *s_NSPK.shape[1:])

    def fit(self, Gu_NSPK: Tensor) -> Tensor:
        """F u from G u, which has the same products X u in it where D_i is one: (N, K)."""
        return torch.einsum("np,npk->nk", self.patterns_NP, Gu_NSPK[:, 0] - Gu_NSPK[:, 1])

    def fit_transposed(self, z_NK: Tensor) -> Tensor:
        """(X^T D_i z, -X^T D_i z)_i: (D, S, P, K)."""
        masked_NPK = self.patterns_NP[:, :, None] * z_NK[:, None, :]
        half_DPK = (self.X_ND.T @ masked_NPK.flatten(1)).view(-1, *masked_NPK.shape[1:])
        return torch.stack([half_DPK, -half_DPK], 1)

    def iterate(self, state: State, system: linear.Difference, gamma: float) -> tuple[State, Tensor]:
        """One iteration of the module's equations: the new state, and G u."""
        rho = state.rho
        r_DSPK = state.v - state.lambda_ + self.constrain_transposed(state.s - state.nu)
        r_DSPK += self.Fty_DSPK / rho
        sum_DPK = system.divide(r_DSPK[:, 0] + r_DSPK[:, 1])
        guess_DPK = state.u[:, 0] - state.u[:, 1]
        difference_DPK = system.solve(r_DSPK[:, 0] - r_DSPK[:, 1], rho, guess_DPK)
        u_DSPK = torch.stack([sum_DPK + difference_DPK, sum_DPK - difference_DPK], 1).div_(2)
        Gu_NSPK = self.constrain(u_DSPK)
        v_DSPK = shrink(u_DSPK + state.lambda_, self.beta / rho)
        s_NSPK = (Gu_NSPK + state.nu).clamp_(min=0)
        lambda_DSPK = state.lambda_ + gamma * (u_DSPK - v_DSPK)
        nu_NSPK = state.nu + gamma * (Gu_NSPK - s_NSPK)
        return State(u_DSPK, v_DSPK, s_NSPK, lambda_DSPK, nu_NSPK, rho), Gu_NSPK

    def residuals(self, before: State, state: State, Gu_NSPK: Tensor) -> tuple[float, float, float, float]:
        """(primal, its scale, dual, its scale), Euclidean norms over all variables.

        primal: (u - v, G u - s), against the larger of its two parts; dual: rho (v+ - v + G^T (s+ - s)), against
        rho (lambda + G^T nu), which balances the loss's gradient at the solution.
        """
        primal = _norm(state.u - state.v, Gu_NSPK - state.s)
        primal_scale = max(_norm(state.u, Gu_NSPK), _norm(state.v, state.s))
        change = state.v - before.v + self.constrain_transposed(state.s - before.s)
        dual = state.rho * _norm(change)
        dual_scale = state.rho * _norm(state.lambda_ + self.constrain_transposed(state.nu))
        return primal, primal_scale, dual, dual_scale

    def objective(self, v_DSPK: Tensor) -> float:
        """1/2 |F v - y|^2 + beta sum |v|; the constraints are the caller's."""
        error_NK = self.fit(self.constrain(v_DSPK)) - self.Y_NK
        return float(0.5 * error_NK.square().sum() + self.beta * v_DSPK.norm(dim=0).sum())

    def best_multiple(self, v_DSPK: Tensor) -> Tensor:
        """v times the factor >= 0, one an output, that makes the objective least: 1 at the optimum. It keeps v in its cones."""
        fit_NK = self.fit(self.constrain(v_DSPK))
        gain_K = (fit_NK * self.Y_NK).sum(0) - self.beta * v_DSPK.norm(dim=0).sum((0, 1))
        tiny = torch.finfo(fit_NK.dtype).tiny
        return v_DSPK * (gain_K.clamp(min=0) / fit_NK.square().sum(0).clamp(min=tiny))

    def lower_bound(self, state: State, Gu_NSPK: Tensor) -> float:
        """A value of the dual program, hence no greater than the optimum:

            max over z, mu >= 0 of  z.y - 1/2 |z|^2   s.t.  |+-X^T D_i z + X^T (2 D_i - I) mu_i| <= beta, every block

        at z = theta (y - F u), mu = -theta rho nu, theta the best multiple that keeps the constraints.
        """
        z_NK = self.Y_NK - self.fit(Gu_NSPK)
        mu_NSPK = (-state.rho * state.nu).clamp_(min=0)
        norm_SPK = (self.fit_transposed(z_NK) + self.constrain_transposed(mu_NSPK)).norm(dim=0)
        tiny = torch.finfo(z_NK.dtype).tiny
        most_K = self.beta / norm_SPK.amax((0, 1)).clamp(min=tiny)
        zy_K, zz_K = (z_NK * self.Y_NK).sum(0), z_NK.square().sum(0)
        theta_K = torch.minimum((zy_K / zz_K.clamp(min=tiny)).clamp(min=0), most_K)
        return float((theta_K * zy_K - 0.5 * theta_K.square() * zz_K).sum())


def shrink(x_D: Tensor, threshold: float) -> Tensor:
    """x (1 - threshold / |x|)_+ over dimension 0: the proximal map of threshold |.|.

    Example:
        >>> import torch
        >>> (10 * shrink(torch.tensor([[3.0, 0.3], [4.0, 0.4]]), 1.0)).round().tolist()  # columns of norm 5 and 0.5
        [[24.0, 0.0], [32.0, 0.0]]
    """
    norm = x_D.norm(dim=0).clamp_(min=torch.finfo(x_D.dtype).tiny)
    return x_D * (1 - threshold / norm).clamp_(min=0)


def _norm(*parts: Tensor) -> float:
    return math.sqrt(sum(float(part.square().sum()) for part in parts))


@final
class ADMM:
    """A two-layer ReLU network with squared loss and weight decay, by ADMM on the convex program of sampled patterns.

        min  1/2 |sum_i relu(X u_i) alpha_i - y|^2 + beta/2 sum_i (|u_i|^2 + alpha_i^2)

    Called with the whole data set, (inputs (N, D), targets), it returns a localplug_convex.recover.Solution with the network,
    the objective and a lower bound on it. Floating-point targets are (N,) or (N, K); integer labels (N,) become -1 and +1,
    in one output for two classes (class 1 where it is positive), else one against all in K outputs (the largest wins).
    K outputs are K independent programs on the same patterns, solved at once: each neuron feeds one output.

    Memory: about ten arrays of 2 N P K elements, and the factor of the linear system.

    Args:
        beta: weight decay, > 0, on the scale of the summed loss: it grows with the number of examples for equal effect. From
            max_i |X^T D_i y| on, the network is zero.
        num_patterns: P, how many distinct patterns to sample, >= 1; the program has 2 P D K unknowns. Fewer where the data
            have no more (localplug_convex.patterns).
        rho: penalty, > 0, in units of the loss; by default beta. The larger, the sooner the constraints hold, and the later the
            loss is least.
        bias: neurons have a bias, which is part of u_i in the weight decay.
        adapt_rho: balance the residuals by a change of rho after 10, 20, 40, 80, ... iterations, each at the price of
            a new factor; finitely many, so that convergence is not lost.
        dual_step: gamma, in (0, 1.618): the length of the dual step.
        linear_solver: of the u-step. "cholesky" factorizes D P x D P, "woodbury" N x N; both are exact, and "auto" takes
            the smaller of the two, or "cg" if it has more than 8,000 rows. "cg" (conjugate gradients) and "rbcd" (random block
            coordinate descent) hold no matrix larger than D x D, start from the last solution, and are inexact.
        inner_steps: of "cg" and "rbcd" in an iteration, >= 1; by default 20 and 2 P.
        tolerance: stop when both residuals are below it, relative to their scales, >= 0.
        max_iterations: stop after so many, >= 1.
        seed: of the patterns, and of the order of the blocks of "rbcd".

    Raises:
        ValueError: an option is outside its range, or the data are not what is described above; lists everything.

    Reference: arXiv:2201.01965.

    Example:
        >>> import torch, localplug
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)
        >>> solution = localplug.solver("relu-admm", beta=0.01, num_patterns=10)(x, x.abs().squeeze(1))
        >>> [round(y, 1) for y in solution.network(x).flatten().tolist()]
        [2.0, 1.0, 1.0, 2.0]
        >>> abs(solution.objective - solution.network_objective) < 1e-6
        True
    """

    def __init__(
        self,
        beta: float,
        num_patterns: int = 50,
        rho: float | None = None,
        bias: bool = False,
        adapt_rho: bool = False,
        dual_step: float = 1.6,
        linear_solver: Literal["auto", "cholesky", "woodbury", "cg", "rbcd"] = "auto",
        inner_steps: int | None = None,
        tolerance: float = 1e-6,
        max_iterations: int = 20_000,
        seed: int = 0,
    ) -> None:
        wrong = []
        for name, value in (("beta", beta), ("rho", 1 if rho is None else rho)):
            if not 0 < value < math.inf:
                wrong.append(f"{name} must be positive and finite, got {value!r}")
        for name, count in (("num_patterns", num_patterns), ("max_iterations", max_iterations)):
            if not count >= 1:
                wrong.append(f"{name} must be at least 1, got {count!r}")
        if not 0 < dual_step < (1 + math.sqrt(5)) / 2:
            wrong.append(f"dual_step must be in (0, 1.618), where ADMM converges, got {dual_step!r}")
        if linear_solver not in _SOLVERS:
            wrong.append(f"linear_solver must be one of {', '.join(_SOLVERS)}, got {linear_solver!r}")
        if inner_steps is not None and not inner_steps >= 1:
            wrong.append(f"inner_steps must be at least 1, got {inner_steps!r}")
        if inner_steps is not None and linear_solver in ("cholesky", "woodbury"):
            wrong.append(f"inner_steps goes with an inexact solver, not with linear_solver={linear_solver!r}")
        if not tolerance >= 0:
            wrong.append(f"tolerance must not be negative, got {tolerance!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.beta, self.rho = float(beta), float(beta if rho is None else rho)
        self.num_patterns, self.bias = num_patterns, bias
        self.adapt_rho, self.dual_step, self.linear_solver = adapt_rho, dual_step, linear_solver
        self.inner_steps, self.tolerance, self.max_iterations, self.seed = inner_steps, tolerance, max_iterations, seed

    @torch.no_grad()
    def __call__(self, inputs: Tensor, targets: Tensor) -> Solution:
        """The network, from the whole data set; see the class."""
        given_ND, Y_NK = checked(inputs, targets)
        X_ND = with_ones(given_ND) if self.bias else given_ND
        patterns_NP, gates_DP = patterns.sample(X_ND, self.num_patterns, self.seed)
        basis = None
        if X_ND.shape[1] > len(X_ND):  # every solution lies in the row space of X: work in N coordinates of it
            basis, R = torch.linalg.qr(X_ND.T)
            X_ND, gates_DP = R.T.contiguous(), basis.T @ gates_DP
        program = Program(X_ND, Y_NK, patterns_NP, self.beta)
        system = self._system(X_ND, patterns_NP)
        state, next_adaptation, converged, iteration = program.start(self.rho), _CHECK_EVERY, False, 0
        primal = dual = math.inf
        for iteration in range(1, self.max_iterations + 1):
            before = state
            state, Gu_NSPK = program.iterate(state, system, self.dual_step)
            if iteration % _CHECK_EVERY and iteration < self.max_iterations:
                continue
            primal, primal_scale, dual, dual_scale = program.residuals(before, state, Gu_NSPK)
            converged = primal <= self.tolerance * primal_scale and dual <= self.tolerance * dual_scale
            if converged or iteration == self.max_iterations:
                break
            if self.adapt_rho and iteration >= next_adaptation:
                next_adaptation *= 2
                _balance(state, primal / max(primal_scale, 1e-300), dual / max(dual_scale, 1e-300))
        lower_bound = program.lower_bound(state, Gu_NSPK)
        feasible_DSPK = program.best_multiple(recover.into_cones(state.v, X_ND, patterns_NP, gates_DP))
        candidates = []
        for v_DSPK in (feasible_DSPK, state.v):  # outside its cone a neuron is a neuron too, with another pattern
            network = recover.network_of(v_DSPK if basis is None else _lifted(basis, v_DSPK), bias=self.bias)
            value = recover.network_objective(network, given_ND, Y_NK, self.beta, half_squares)
            candidates.append((value, network))
        value, network = candidates[0] if candidates[0][0] <= candidates[1][0] else candidates[1]
        return Solution(
            network=network,
            objective=program.objective(feasible_DSPK),
            network_objective=value,
            lower_bound=lower_bound,
            residuals={"primal": primal, "dual": dual},
            iterations=iteration,
            converged=converged,
        )

    def _system(self, X_ND: Tensor, patterns_NP: Tensor) -> linear.Difference:
        N, size, kind = len(X_ND), X_ND.shape[1] * patterns_NP.shape[1], self.linear_solver
        if kind == "auto":
            kind = "cg" if min(N, size) > _LARGEST_FACTOR else "woodbury" if size > N else "cholesky"
        if kind == "cholesky":
            return linear.Cholesky(X_ND, patterns_NP)
        if kind == "woodbury":
            return linear.Woodbury(X_ND, patterns_NP)
        if kind == "cg":
            return linear.ConjugateGradient(X_ND, patterns_NP, self.inner_steps or 20)
        return linear.RandomBlocks(X_ND, patterns_NP, self.inner_steps or 2 * patterns_NP.shape[1], self.seed)


def half_squares(output_NK: Tensor, target_NK: Tensor) -> Tensor:
    """1/2 |output - target|^2, summed over examples and outputs."""
    return 0.5 * (output_NK - target_NK).square().sum()


def _balance(state: State, primal: float, dual: float) -> None:
    """rho <- rho sqrt(primal / dual), unless that is within a factor of 2; the scaled duals follow."""
    factor = min(max(math.sqrt(max(primal, 1e-300) / max(dual, 1e-300)), 1e-3), 1e3)
    if 0.5 < factor < 2:
        return
    state.rho *= factor
    state.lambda_ = state.lambda_ / factor
    state.nu = state.nu / factor


def _lifted(basis_DR: Tensor, v_RSPK: Tensor) -> Tensor:
    return (basis_DR @ v_RSPK.flatten(1)).view(-1, *v_RSPK.shape[1:])
