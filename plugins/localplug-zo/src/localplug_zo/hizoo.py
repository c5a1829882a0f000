"""HiZOO: zeroth order with a diagonal estimate of the curvature (Zhao et al., arXiv:2402.15173, ICLR 2025).

With H > 0 the diagonal, one number for each weight, y ~ N(0, I) and z = y / sqrt(H):

    L0, L+, L- = L(theta), L(theta + eps z), L(theta - eps z)
    theta <- theta - lr (L+ - L-) / (2 eps) z
    H     <- (1 - alpha) H + alpha H |L+ - 2 L0 + L-| / (2 eps^2) y^2

with q directions the means of both right-hand sides. H starts at 1, so that with alpha = 0 this is MeZO.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import Directions, Distribution, Groups, Piece, Run, Update, noise
from localplug.shards import is_sharded
from localplug_zo.two_sided import Curvature
from localplug_zo.updates import each


@final
class DiagonalCurvature(Distribution):
    """z = y / sqrt(H), y ~ N(0, I), and H itself: one float32 for each trained weight.

    E[z z^T] = diag(1 / H), and not the identity: the estimate is the gradient times 1 / H.
    """

    def describe(self) -> str:
        return "curvature-scaled Gaussian"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        self.diagonal = {
            run.parameters[i][0]: torch.ones(run.parameters[i][1].numel(), device=run.parameters[i][1].device)
            for i in indices
        }
        """H by parameter name, flat, float32."""

    def raw(self, piece: Piece, num: int, factor: float, like: Tensor) -> Tensor:
        """factor * y of a piece."""
        y = torch.zeros(num, dtype=torch.float32, device=like.device)
        name = self._run.parameters[piece.index][0]
        noise.add_normal_(y, noise.stream(self._run.seed, piece.step, piece.direction, name), piece.offset, factor)
        return y

    def part(self, index: int, offset: int, num: int) -> Tensor:
        """H of some elements of a parameter; a view."""
        return self.diagonal[self._run.parameters[index][0]][offset : offset + num]

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        y = self.raw(piece, target.numel(), factor, target)
        target.add_(y.mul_(self.part(piece.index, piece.offset, target.numel()).rsqrt()))

    def kappa(self, num_elements: int) -> float:
        """Of the estimate in the metric of H, where it is a Gaussian's."""
        return num_elements + 2

    def state_dict(self) -> dict[str, Any]:
        return {"diagonal": {name: h.clone() for name, h in self.diagonal.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, h in state.get("diagonal", {}).items():
            self.diagonal[name].copy_(h)


@final
class HiZOOUpdate(Update):
    """One step of theta along the directions that were evaluated, and then of H.

    Args:
        curvature: the estimator that measures the curvature along the directions.
        alpha: share of the new measurement in H, in [0, 1).
        limits: H is kept within these, so that a single measurement cannot freeze or free a weight; (0, inf) does not.

    Raises:
        ValueError: alpha or limits are out of range.
    """

    def __init__(self, curvature: Curvature, alpha: float, limits: tuple[float, float]) -> None:
        if not 0 <= alpha < 1 or not 0 <= limits[0] < limits[1]:
            raise ValueError(f"alpha must be in [0, 1) and limits ascend from 0, got {alpha!r} and {limits!r}")
        self.curvature, self.alpha, self.limits = curvature, float(alpha), limits

    def describe(self) -> str:
        return f"SGD and a diagonal of the curvature (alpha {self.alpha:g})"

    def problems(self, run: Run) -> list[str]:
        if any(is_sharded(p) for _, p in run.parameters):
            return ["hizoo keeps its diagonal by whole parameters, and these are sharded; use another method"]
        return []

    def setup(self, run: Run, directions: Directions) -> None:
        assert isinstance(directions.distribution, DiagonalCurvature)
        self._scaled = directions.distribution

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        scaled, q = self._scaled, len(coefficients)
        for index, lr, decay in each(run, directions, groups):

            def rule(value: Tensor, offset: int, index: int = index, lr: float = lr, decay: float = decay) -> Tensor:
                h = scaled.part(index, offset, value.numel())
                root, measured = h.rsqrt(), torch.zeros_like(h)
                value.mul_(1 - decay)
                for j, (c, bend) in enumerate(zip(coefficients, self.curvature.curvatures, strict=True)):
                    y = scaled.raw(Piece(index, offset, run.step, j), value.numel(), 1.0, value)
                    measured.addcmul_(y, y, value=abs(bend) / (2 * q))
                    value.add_(y.mul_(root), alpha=-lr * c / q)
                h.mul_(1 - self.alpha + self.alpha * measured).clamp_(*self.limits)
                return value

            directions.rewrite_(run.parameters[index][1].data, index, rule)
