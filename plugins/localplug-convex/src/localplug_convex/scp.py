"""Two-layer ReLU networks with any convex loss, by a sampled convex program (SCP).

Bai, Gautam, Sojoudi: Efficient Global Optimization of Two-Layer ReLU Networks, 2022, arXiv:2201.01965.

With M neurons u_i of length 1 drawn once and kept, training the output weights alone is the convex program

    min over alpha  L(sum_i relu(X u_i) alpha_i) + beta sum_i |alpha_i|

a lasso over random ReLU features; alpha_i is a vector with one entry an output, and |.| its Euclidean norm. relu is
homogeneous, so that a neuron u_i sqrt(|alpha_i|) with the output weights alpha_i / sqrt(|alpha_i|) computes the same, and
its weight decay beta/2 (|u|^2 + |alpha|^2) is beta |alpha_i|. The dual of the same program over all neurons,

    max over q  -L*(-q)   s.t.  |q^T relu(X u)| <= beta  for all u of length 1

keeps only the constraints of the sampled ones: what a sample says of the whole is `sufficient_neurons`.

Smooth losses: FISTA (Beck, Teboulle, 2009) with backtracking, restarted when its momentum points uphill (O'Donoghue, Candes,
2015). Hinge: the primal-dual method of Chambolle and Pock (2011). Letters: N examples, D features, M neurons, K outputs.
"""

import math
from collections.abc import Callable
from typing import Literal, final

import torch
from torch import Tensor

from localplug_convex import losses, patterns, recover
from localplug_convex.data import checked, with_ones
from localplug_convex.recover import Solution

_CHECK_EVERY = 10  # iterations between two looks at the gap


def sufficient_neurons(num_examples: int, violation: float, failure: float) -> int:
    """How many random neurons make the sampled program's dual solution violate few of the constraints it has not seen.

        M >= min{ (N + 1) / (psi xi) - 1,  2/xi (N + 1 - log psi) }

    With probability at least 1 - psi over the sample, a further random neuron violates its constraint |q^T relu(X u)| <= beta
    with probability at most xi. (The dual has N unknowns, and one for its value: the number that the scenario bounds for
    convex programs with random constraints ask for.) For one output.

    Args:
        num_examples: N, >= 1.
        violation: xi, in (0, 1).
        failure: psi, in (0, 1).

    Raises:
        ValueError: an argument is outside its range; lists all of them.

    Example:
        >>> sufficient_neurons(100, violation=0.1, failure=0.01)
        2113
    """
    wrong = [] if num_examples >= 1 else [f"num_examples must be at least 1, got {num_examples!r}"]
    for name, value in (("violation", violation), ("failure", failure)):
        if not 0 < value < 1:
            wrong.append(f"{name} must be in (0, 1), got {value!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
    first = (num_examples + 1) / (failure * violation) - 1
    second = 2 / violation * (num_examples + 1 - math.log(failure))
    return math.ceil(min(first, second))


@final
class SampledConvex:
    """A two-layer ReLU network with any convex loss and weight decay, by a convex program over randomly drawn neurons.

        min over alpha  L(sum_i relu(X u_i) alpha_i) + beta sum_i |alpha_i|,   u_i uniform on the unit sphere, fixed

    Called with the whole data set, (inputs (N, D), targets), it returns a localplug_convex.recover.Solution; its network has
    the neurons whose alpha_i is not zero, and exactly the program's objective. Integer labels (N,) become -1 and +1: in
    one output for two classes, else in K outputs, each against all others; for "cross_entropy" in K outputs always.
    K outputs share their neurons: alpha_i is a vector, and a neuron is kept or dropped for all of them.

    Args:
        beta: weight decay, > 0, on the scale of the summed loss.
        num_neurons: M, >= 1; `sufficient_neurons` bounds it from below.
        loss: "squared", "hinge", "bce", "cross_entropy" (localplug_convex.losses), or a callable(outputs (N, K), targets
            (N, K)) -> scalar tensor, convex and differentiable in its outputs, and summed, not averaged, if beta is to mean the
            same. A callable has no lower bound, and stops by the length of its steps.
        bias: neurons have a bias, which is part of u_i.
        tolerance: stop when objective and lower bound differ by this fraction of the objective, >= 0; with a callable, when
            a proximal step moves alpha by this fraction of its norm.
        max_iterations: stop after so many, >= 1.
        seed: of the neurons.

    Raises:
        ValueError: an option is outside its range, the data are not what is described above, or the targets do not fit the
            loss; lists everything.

    Reference: arXiv:2201.01965.

    Example:
        >>> import torch, localplug
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]], dtype=torch.float64)
        >>> solver = localplug.solver("relu-scp", beta=0.1, num_neurons=20, loss="hinge", bias=True)
        >>> solution = solver(x, torch.tensor([1, 0, 0, 1]))
        >>> (solution.network(x) > 0).squeeze(1).tolist()
        [True, False, False, True]
    """

    def __init__(
        self,
        beta: float,
        num_neurons: int = 1000,
        loss: Literal["squared", "hinge", "bce", "cross_entropy"] | Callable[[Tensor, Tensor], Tensor] = "squared",
        bias: bool = False,
        tolerance: float = 1e-6,
        max_iterations: int = 20_000,
        seed: int = 0,
    ) -> None:
        wrong = []
        if not 0 < beta < math.inf:
            wrong.append(f"beta must be positive and finite, got {beta!r}")
        for name, count in (("num_neurons", num_neurons), ("max_iterations", max_iterations)):
            if not count >= 1:
                wrong.append(f"{name} must be at least 1, got {count!r}")
        if not callable(loss) and loss not in losses.LOSSES:
            wrong.append(f"loss must be a callable or one of {', '.join(losses.LOSSES)}, got {loss!r}")
        if not tolerance >= 0:
            wrong.append(f"tolerance must not be negative, got {tolerance!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.beta, self.num_neurons, self.loss, self.bias = float(beta), num_neurons, loss, bias
        self.tolerance, self.max_iterations, self.seed = tolerance, max_iterations, seed

    @torch.no_grad()
    def __call__(self, inputs: Tensor, targets: Tensor) -> Solution:
        """The network, from the whole data set; see the class."""
        given_ND, Y_NK = checked(inputs, targets, two_columns=self.loss == "cross_entropy")
        if self.loss in ("hinge", "bce", "cross_entropy") and not bool((Y_NK.abs() == 1).all()):
            raise ValueError(f"targets of loss={self.loss!r} must be integer labels, or -1 and +1")
        if self.loss == "cross_entropy" and not bool(((Y_NK > 0).sum(1) == 1).all()):
            raise ValueError("targets of loss='cross_entropy' must be integer labels, or have one +1 in every row")
        X_ND = with_ones(given_ND) if self.bias else given_ND
        u_DM = patterns.gates(self.num_neurons, X_ND.shape[1], self.seed, X_ND)
        u_DM /= u_DM.norm(dim=0)
        features_NM = (X_ND @ u_DM).clamp_(min=0)
        loss = losses.Given(Y_NK, self.loss) if callable(self.loss) else losses.LOSSES[self.loss](Y_NK)
        found = (
            self._primal_dual(features_NM, loss) if isinstance(loss, losses.Hinge) else self._fista(features_NM, loss)
        )
        alpha_MK, lower_bound, residuals, iterations, converged = found
        norm_M = alpha_MK.norm(dim=1)
        chosen = norm_M > 0
        root_M1 = norm_M[chosen].sqrt().unsqueeze(1)
        network = recover.assemble(u_DM.T[chosen] * root_M1, alpha_MK[chosen] / root_M1, bias=self.bias)
        return Solution(
            network=network,
            objective=self._objective(features_NM, loss, alpha_MK),
            network_objective=recover.network_objective(network, given_ND, Y_NK, self.beta, lambda f, _: loss.value(f)),
            lower_bound=lower_bound,
            residuals=residuals,
            iterations=iterations,
            converged=converged,
        )

    def _objective(self, features_NM: Tensor, loss: losses.Loss, alpha_MK: Tensor) -> float:
        return float(loss.value(features_NM @ alpha_MK) + self.beta * alpha_MK.norm(dim=1).sum())

    def _bound(self, features_NM: Tensor, loss: losses.Loss, q_NK: Tensor) -> float | None:
        """-L*(theta q), with the largest theta <= 1 for which |theta features^T q| <= beta: a value of the dual program."""
        largest = float((features_NM.T @ q_NK).norm(dim=1).max())
        conjugate = loss.conjugate(q_NK * min(1.0, self.beta / max(largest, 1e-300)))
        return None if conjugate is None else -conjugate

    def _fista(
        self, features_NM: Tensor, loss: losses.Loss
    ) -> tuple[Tensor, float | None, dict[str, float], int, bool]:
        """x+ = prox of t beta |.| at y - t grad, y = x + momentum (x - x_before); t halves until L's quadratic bound holds."""
        x_MK = features_NM.new_zeros(features_NM.shape[1], loss.Y_NK.shape[1])
        y_MK, fit_y_NK, fit_x_NK = x_MK, features_NM @ x_MK, features_NM @ x_MK
        t, momentum_count = 1 / max(float(features_NM.square().sum()), 1e-30) * 16, 1.0
        best, bound = math.inf, -math.inf
        step, converged, iteration = math.inf, False, 0
        for iteration in range(1, self.max_iterations + 1):
            slope_NK, value = loss.gradient(fit_y_NK), loss.value(fit_y_NK)
            gradient_MK = features_NM.T @ slope_NK
            while True:
                new_MK = shrink_rows(y_MK - t * gradient_MK, t * self.beta)
                moved_MK = new_MK - y_MK
                fit_new_NK = features_NM @ new_MK
                bend = loss.value(fit_new_NK) - value - (slope_NK * (fit_new_NK - fit_y_NK)).sum()
                rounding = 10 * torch.finfo(x_MK.dtype).eps * value.abs()
                if bend <= moved_MK.square().sum() / (2 * t) + rounding:
                    break
                t /= 2
            step = float(moved_MK.norm()) / max(float(new_MK.norm()), 1e-30)
            uphill = bool((moved_MK * (new_MK - x_MK)).sum() < 0)
            next_count = 1.0 if uphill else (1 + math.sqrt(1 + 4 * momentum_count**2)) / 2
            weight = 0.0 if uphill else (momentum_count - 1) / next_count
            y_MK, fit_y_NK = new_MK + weight * (new_MK - x_MK), fit_new_NK + weight * (fit_new_NK - fit_x_NK)
            x_MK, fit_x_NK, momentum_count = new_MK, fit_new_NK, next_count
            if iteration % _CHECK_EVERY == 0 or iteration == self.max_iterations:
                best = float(loss.value(fit_x_NK) + self.beta * x_MK.norm(dim=1).sum())
                found = self._bound(features_NM, loss, loss.gradient(fit_x_NK))
                if found is not None:
                    bound = max(bound, found)
                    converged = best - bound <= self.tolerance * abs(best)
                else:
                    converged = step <= self.tolerance
                if converged:
                    break
        known = bound > -math.inf
        residuals = {"step": step, **({"gap": best - bound} if known else {})}
        return x_MK, bound if known else None, residuals, iteration, converged

    def _primal_dual(
        self, features_NM: Tensor, loss: losses.Hinge
    ) -> tuple[Tensor, float | None, dict[str, float], int, bool]:
        """q+ = prox of sigma L* at q + sigma Phi (2 x - x_before), x+ = prox of tau beta |.| at x - tau Phi^T q+.

        Restarted from the average of its iterates when that halves the gap between objective and bound, with the ratio
        sigma / tau = omega^2 set to how far q and x moved (Applegate and others, 2021): fast also close to the optimum.
        """
        x_MK = before_MK = start_x_MK = features_NM.new_zeros(features_NM.shape[1], loss.Y_NK.shape[1])
        q_NK = start_q_NK = torch.zeros_like(loss.Y_NK)
        sum_x_MK, sum_q_NK, num_summed, omega = torch.zeros_like(x_MK), torch.zeros_like(q_NK), 0, 1.0
        length = 0.99 / max(float(torch.linalg.matrix_norm(features_NM, 2)), 1e-30)
        best_MK, best, bound, gap_at_restart = x_MK, math.inf, 0.0, math.inf  # a loss is never negative
        step, converged, iteration = math.inf, False, 0
        for iteration in range(1, self.max_iterations + 1):
            sigma, tau = length * omega, length / omega
            q_NK = loss.proximal_dual(q_NK + sigma * (features_NM @ (2 * x_MK - before_MK)), sigma)
            before_MK, x_MK = x_MK, shrink_rows(x_MK - tau * (features_NM.T @ q_NK), tau * self.beta)
            sum_x_MK, sum_q_NK, num_summed = sum_x_MK + x_MK, sum_q_NK + q_NK, num_summed + 1
            if iteration % _CHECK_EVERY and iteration < self.max_iterations:
                continue
            step = float((x_MK - before_MK).norm()) / max(float(x_MK.norm()), 1e-30)
            average = (sum_x_MK / num_summed, sum_q_NK / num_summed)
            gaps = []
            for some_x_MK, some_q_NK in (average, (x_MK, q_NK)):
                value = self._objective(features_NM, loss, some_x_MK)
                lower = self._bound(features_NM, loss, some_q_NK) or 0.0
                gaps.append(value - lower)
                bound = max(bound, lower)
                if value < best:
                    best, best_MK = value, some_x_MK
            converged = best - bound <= self.tolerance * abs(best)
            if converged:
                break
            if min(gaps) <= 0.5 * gap_at_restart or num_summed >= 0.5 * iteration:
                if gaps[0] <= gaps[1]:
                    x_MK, q_NK = average
                x_moved, q_moved = float((x_MK - start_x_MK).norm()), float((q_NK - start_q_NK).norm())
                if x_moved > 1e-12 and q_moved > 1e-12:
                    omega = math.sqrt(omega * q_moved / x_moved)  # a geometric mean, so that it does not jump
                before_MK, start_x_MK, start_q_NK, gap_at_restart = x_MK, x_MK, q_NK, min(gaps)
                sum_x_MK, sum_q_NK, num_summed = torch.zeros_like(x_MK), torch.zeros_like(q_NK), 0
        return best_MK, bound, {"step": step, "gap": best - bound}, iteration, converged


def shrink_rows(x_MK: Tensor, threshold: float) -> Tensor:
    """x (1 - threshold / |x|)_+, row by row: the proximal map of threshold |.|.

    Example:
        >>> import torch
        >>> (10 * shrink_rows(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)).round().tolist()
        [[24.0, 32.0], [0.0, 0.0]]
    """
    norm_M1 = x_MK.norm(dim=1, keepdim=True).clamp_(min=torch.finfo(x_MK.dtype).tiny)
    return x_MK * (1 - threshold / norm_M1).clamp_(min=0)
