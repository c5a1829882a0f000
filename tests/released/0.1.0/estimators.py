"""released-estimator: each direction is evaluated on both sides, and the clean loss is reported (Spall, 1992).

c_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps)
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

import localplug
from localplug import Estimate, Probing, Projection, Run

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_estimators() -> dict[str, Any]:
    return {"released-estimator": ReleasedEstimator}


@final
class ReleasedEstimator(Probing):
    """Central differences, c_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps), and the clean loss.

    Args:
        eps: half-width of the difference, in parameter units, > 0.
        num_directions: q >= 1.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> ReleasedEstimator(eps=0.01, num_directions=2).probes()
        [(0, 0.01), (0, -0.01), (1, 0.01), (1, -0.01), (0, 0.0)]
    """

    num_fields = 1

    def __init__(self, eps: float = 1e-3, num_directions: int = 1) -> None:
        wrong = []
        if not eps > 0:
            wrong.append(f"eps must be positive, got {eps!r}")
        if num_directions < 1:
            wrong.append(f"num_directions must be at least 1, got {num_directions!r}")
        if wrong:
            raise ValueError("released-estimator: " + "; ".join(wrong))
        self.eps, self.num_directions = float(eps), int(num_directions)

    def describe(self) -> str:
        return f"released-estimator, eps {self.eps:g}, {self.num_directions} direction(s)"

    def problems(self, run: Run) -> list[str]:
        return []

    def probes(self) -> list[tuple[int, float]]:
        return [(j, side * self.eps) for j in range(self.num_directions) for side in (1, -1)] + [(0, 0.0)]

    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:
        *sides, clean = outputs
        pairs = zip(sides[::2], sides[1::2], strict=True)
        slopes = [[(p - m) / (2 * self.eps) for p, m in zip(plus, minus, strict=True)] for plus, minus in pairs]
        return Projection(list(clean), slopes)

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        return list(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return kappa * sum(c * c for c in coefficients) / len(coefficients) ** 2
