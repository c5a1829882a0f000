"""Descent on the mean of a Gaussian process: the plainest way from past values to the next point.

    x <- x - lr * slope of the mean,   from the best points that are known

The mean is of the box scaled to [0, 1] and of values scaled to variance 1. It is the baseline that other offline searches are
measured against. Letters: N points, D numbers.
"""

import math
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from localplug_blackbox import gaussian_process
from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.past_values import PastValues, spread


@final
class MeanDescent(Searcher):
    """The lowest points of a Gaussian process's mean near the best known points. Asks for nothing before it knows values.

    Args:
        box: where to look; every bound finite.
        num_steps: of the descent, >= 1.
        lr: length of a step, > 0, as a share of the box; steps are normalised and shrink to 0.
        num_starts: of the best known points, >= 1.

    Raises:
        ValueError: an option is outside its range; lists all of them. `ask` raises it while fewer than two finite values
            are known.

    Example:
        >>> import torch
        >>> from localplug_blackbox import Box
        >>> X = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)).double()
        >>> searcher = MeanDescent(Box([0, 0], [1, 1]))
        >>> searcher.fit(X, (X - 0.5).square().sum(1))
        >>> bool(((searcher.ask() - 0.5).abs() < 0.05).all())
        True
    """

    def __init__(self, box: Box, num_steps: int = 200, lr: float = 0.02, num_starts: int = 64) -> None:
        super().__init__(box)
        wrong = [] if box.bounded else ["box must have finite bounds"]
        for name, count in (("num_steps", num_steps), ("num_starts", num_starts)):
            if not count >= 1:
                wrong.append(f"{name} must be at least 1, got {count!r}")
        if not 0 < lr < math.inf:
            wrong.append(f"lr must be positive and finite, got {lr!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.num_steps, self.lr, self.num_starts = num_steps, lr, num_starts
        self._past = PastValues(box)

    def _propose(self, num: int) -> Tensor:
        if len(self._past) < 2:
            raise ValueError(f"give `fit` at least two finite values first; {len(self._past)} are known")
        U_ND, y_N = self._past.unit(), self._past.standard()
        process = gaussian_process.fitted(U_ND, y_N)
        Z_MD = U_ND[y_N.argsort()[: max(self.num_starts, num)]]
        for step in range(self.num_steps):
            slope_MD = process.slope(Z_MD)
            length_M1 = slope_MD.norm(dim=1, keepdim=True).clamp_min(1e-12)
            Z_MD = (Z_MD - self.lr * (1 - step / self.num_steps) * slope_MD / length_M1).clamp(0, 1)
        found_ND = spread(Z_MD, process.mean(Z_MD), min(num, len(Z_MD)), 0.02 * math.sqrt(self.box.num))
        return self.box.from_unit(found_ND)

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        self._past.add(X_ND, y_N)

    _know = _learn

    def _state(self) -> dict[str, Any]:
        return self._past.state()

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._past.restore(state)
