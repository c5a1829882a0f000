"""Two-sided estimators: the losses at theta + eps z and theta - eps z, and the clean one for the curvature.

    slope_j     = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps)                       -> <grad L, z_j>
    curvature_j = (L(theta + eps z_j) - 2 L(theta) + L(theta - eps z_j)) / eps^2            -> z_j^T Hessian z_j

Spall: Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation, 1992; Duchi, Jordan,
Wainwright, Wibisono: Optimal Rates for Zero-Order Convex Optimization, 2015 (q directions).
"""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from localplug import Estimate, Probing, Projection, Run
from localplug_zo.losses import checked, mean, scalar


@final
class TwoSided(Probing):
    """c_j = slope_j, two evaluations a direction; without bias in even orders of eps.

    Args:
        eps: half-width of the finite difference, in parameter units, > 0.
        num_directions: q >= 1.

    Raises:
        ValueError: eps or num_directions is out of range.

    Example:
        >>> import localplug
        >>> localplug.estimator("two-sided", eps=1e-3, num_directions=4).describe()
        'eps 0.001, 4 direction(s)'
    """

    num_fields = 1

    def __init__(self, eps: float = 1e-3, num_directions: int = 1) -> None:
        self.eps, self.num_directions = checked(eps, num_directions)

    def describe(self) -> str:
        return f"eps {self.eps:g}, {self.num_directions} direction(s)"

    def problems(self, run: Run) -> list[str]:
        return []

    def probes(self) -> list[tuple[int, float]]:
        return [(j, sign * self.eps) for j in range(self.num_directions) for sign in (+1, -1)]

    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:
        pairs = list(zip(outputs[::2], outputs[1::2], strict=True))
        slopes = [[(p - m) / (2 * self.eps) for p, m in zip(plus, minus, strict=True)] for plus, minus in pairs]
        return Projection(mean(outputs), slopes)

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        return list(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance(coefficients, kappa)


@final
class Curvature(Probing):
    """1.5-SPSA: c_j = slope_j / max(floor, |curvature_j|^power), 2 q + 1 evaluations.

    A direction along which the loss bends strongly counts less. `curvatures` holds those of the last step. With the
    paper's learning rate eta, which multiplies (L+ - L-) / 2, the trainer's lr here is eta * eps.

    Args:
        eps: half-width of the finite difference, in parameter units, > 0.
        num_directions: q >= 1.
        power: alpha of the paper, >= 0; 0 leaves the slopes as they are.
        floor: lambda of the paper, > 0.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> import localplug
        >>> localplug.estimator("curvature", num_directions=2).describe()
        'two-sided with the clean loss, eps 0.0001, 2 direction(s), curvature power 0.1'

    Reference: Chaubard, Kochenderfer, Re: probe-space preconditioning (1.5-SPSA), 2026.
    """

    num_fields = 2

    def __init__(self, eps: float = 1e-4, num_directions: int = 1, power: float = 0.1, floor: float = 1.0) -> None:
        self.eps, self.num_directions = checked(eps, num_directions)
        if not power >= 0 or not floor > 0:
            raise ValueError(f"power must not be negative and floor must be positive, got {power!r} and {floor!r}")
        self.power, self.floor = float(power), float(floor)
        self.curvatures: list[float] = []

    def describe(self) -> str:
        return f"two-sided with the clean loss, eps {self.eps:g}, {self.num_directions} direction(s)" + (
            f", curvature power {self.power:g}" if self.power else ""
        )

    def problems(self, run: Run) -> list[str]:
        if run.clipping:
            return [
                f"this trainer clips the slopes to {run.clipping:g}, and the curvature beside them would be scaled with them; "
                "set max_grad_norm=0 (transformers) or gradient_clip_val=None (lightning)"
            ]
        return []

    def probes(self) -> list[tuple[int, float]]:
        return [(0, 0.0), *((j, sign * self.eps) for j in range(self.num_directions) for sign in (+1, -1))]

    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:
        clean, *others = (scalar(leaves, "the curvature") for leaves in outputs)
        pairs = list(zip(others[::2], others[1::2], strict=True))
        slopes = [[(plus - minus) / (2 * self.eps)] for plus, minus in pairs]
        bends = [[(plus - 2 * clean + minus) / self.eps**2] for plus, minus in pairs]
        return Projection([clean], slopes + bends)

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        slopes, self.curvatures = list(raw[: len(raw) // 2]), list(raw[len(raw) // 2 :])
        if not self.power:
            return slopes
        return [s / max(self.floor, abs(c) ** self.power) for s, c in zip(slopes, self.curvatures, strict=True)]

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance(coefficients, kappa)


def spsa_variance(coefficients: Sequence[float], kappa: float) -> float:
    """tr Cov[(1/q) sum_j c_j z_j] = ||grad||^2 (kappa - 1) / q, with E c_j^2 = ||grad||^2 put in."""
    q = len(coefficients)
    return sum(c * c for c in coefficients) / q * (kappa - 1) / q
