"""Points that fill a box evenly, whatever the values are: the baseline of every search.

Sobol's sequence with a random linear scramble and shift (Owen, 1998), from torch.quasirandom. Letters: N points, D numbers.
"""

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor
from torch.quasirandom import SobolEngine

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher


@final
class SobolSearch(Searcher):
    """A scrambled Sobol sequence over the box: it learns nothing, and says what random points would have found.

    Args:
        box: where to look; every bound finite.
        seed: of the scramble.

    Raises:
        ValueError: a bound is infinite.

    Reference: Sobol, 1967; Owen, 1998.

    Example:
        >>> from localplug_blackbox import Box, minimize
        >>> minimize(lambda X: X.square().sum(1), SobolSearch(Box([-1, -1], [1, 1])), 64).value < 0.1
        True
    """

    def __init__(self, box: Box, seed: int = 0) -> None:
        super().__init__(box)
        if not box.bounded:
            raise ValueError("box must have finite bounds for a Sobol sequence")
        self._engine = SobolEngine(box.num, scramble=True, seed=seed)

    def _propose(self, num: int) -> Tensor:
        return self.box.from_unit(self._engine.draw(num).double())

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        pass

    def _know(self, X_ND: Tensor, y_N: Tensor) -> None:
        pass

    def _state(self) -> dict[str, Any]:
        return {"drawn": self._engine.num_generated}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._engine.reset()
        self._engine.fast_forward(int(state["drawn"]))
