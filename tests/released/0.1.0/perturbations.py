"""released-perturbation: directions of random signs, half of them zero (Achlioptas, 2003).

z = sqrt(2) s b        s in {-1, +1}, b in {0, 1}, each with probability 1/2: E[z z^T] = I, and kappa = d + 1
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

import localplug
from localplug import Distribution, Piece, Run, noise

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_perturbations() -> dict[str, Any]:
    return {"released-perturbation": ReleasedPerturbation}


@final
class ReleasedPerturbation(Distribution):
    """z is -sqrt(2), 0, 0 or +sqrt(2), each with probability 1/4. kappa = d + 1.

    Example:
        >>> ReleasedPerturbation().kappa(10)
        11
    """

    def describe(self) -> str:
        return "released-perturbation"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run

    def add_(self, target: Tensor, piece: Piece, factor: float) -> None:
        name = self._run.parameters[piece.index][0]
        key = noise.stream(self._run.seed, piece.step, piece.direction, name)
        bits = noise.bits16(key, piece.offset, target.numel(), target.device)
        signs, kept = bits.lt(1 << 15).to(target.dtype).mul_(2).sub_(1), bits.remainder(2).to(target.dtype)
        target.add_(signs * kept, alpha=factor * 2**0.5)

    def kappa(self, num_elements: int) -> float:
        return num_elements + 1
