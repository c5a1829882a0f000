"""The two distributions of directions that need nothing but the noise itself: Gaussian and Rademacher."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from localplug import noise
from localplug.contract import Run
from localplug.parts import Distribution, Piece


@final
class Gaussian(Distribution):
    """z ~ N(0, I). kappa = d + 2.

    Reference: Nesterov, Spokoiny: Random Gradient-Free Minimization of Convex Functions, 2017.
    """

    streams = True

    def describe(self) -> str:
        return "Gaussian"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        noise.add_normal_(target, _key(self._run, piece), piece.offset, factor)

    def add_to_(self, target: Tensor, source: Tensor, piece: Piece, factor: float) -> None:
        noise.add_normal_(target, _key(self._run, piece), piece.offset, factor, source)

    def kappa(self, num_elements: int) -> float:
        return num_elements + 2


@final
class Rademacher(Distribution):
    """Each element of z is -1 or +1 with equal probability, one random bit each. kappa = d.

    Reference: Spall: Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation, 1992.
    """

    streams = True

    def describe(self) -> str:
        return "Rademacher"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        noise.add_signs_(target, _key(self._run, piece), piece.offset, factor)

    def add_to_(self, target: Tensor, source: Tensor, piece: Piece, factor: float) -> None:
        noise.add_signs_(target, _key(self._run, piece), piece.offset, factor, source)

    def kappa(self, num_elements: int) -> float:
        return num_elements


def _key(run: Run, piece: Piece) -> int:
    return noise.stream(run.seed, piece.step, piece.direction, run.parameters[piece.index][0])
