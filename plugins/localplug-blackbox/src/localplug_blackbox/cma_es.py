"""The covariance matrix adaptation evolution strategy, from the library cma (pip install localplug-blackbox[cma]).

Hansen: The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772. The state is the values that were told (`replayed`). Letters:
N points, D numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug_blackbox.box import Box
from localplug_blackbox.replayed import Replayed


@final
class CMAES(Replayed):
    """CMA-ES: a normal distribution whose mean, size and shape follow the better half of what it draws.

    Args:
        box: where to look; bounds may be infinite. At least two numbers.
        start: (D,), the first mean; by default the middle of the box, or 0. Values that `fit` gives before the first `ask`
            move it to the best of them; later ones do not change the search.
        sigma: standard deviation at the start, > 0, in the units of x.
        population: points in a generation, >= 2; by default 4 + 3 ln D.
        seed: of the draws.

    Raises:
        ImportError: cma is not installed.
        ValueError: an option is outside its range; lists all of them.

    Reference: arXiv:1604.00772.

    Example:
        >>> from localplug_blackbox import Box, minimize
        >>> searcher = CMAES(Box.free(3), start=[1.0, 2.0, 3.0], sigma=0.5)
        >>> minimize(lambda X: X.square().sum(1), searcher, 600).value < 1e-6
        True
    """

    def __init__(
        self,
        box: Box,
        start: Tensor | Sequence[float] | None = None,
        sigma: float = 1.0,
        population: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        wrong = [] if 0 < sigma < math.inf else [f"sigma must be positive and finite, got {sigma!r}"]
        if population is not None and not population >= 2:
            wrong.append(f"population must be at least 2, got {population!r}")
        if box.num < 2:
            wrong.append("box must have at least two numbers for CMA-ES")
        wrong += box.start_problems(start)
        if wrong:
            raise ValueError("; ".join(wrong))
        self._start_D = box.start(start)
        _library()
        self.sigma, self.population, self.seed = sigma, population, seed
        self._out: list[Any] = []

    @property
    def finished(self) -> str:
        """What the library's own criteria say; empty while it goes on."""
        return ", ".join(self._search.stop()) if self._search is not None and self._now is None else ""

    def _begun(self) -> Any:
        import numpy as np

        random = np.random.default_rng(self.seed)
        options = {
            "bounds": [self._limits(self.box.lower_D), self._limits(self.box.upper_D)],
            "verbose": -9,
            "seed": float("nan"),  # the library seeds numpy's global generator else
            "randn": lambda *shape: random.standard_normal(shape),
        }
        if self.population is not None:
            options["popsize"] = self.population
        return _library().CMAEvolutionStrategy(self._start_D.tolist(), self.sigma, options)

    @staticmethod
    def _limits(bounds_D: Tensor) -> list[float | None] | None:
        values = [value if math.isfinite(value) else None for value in bounds_D.tolist()]
        return None if all(value is None for value in values) else values

    def _drawn(self, num: int) -> Tensor:
        self._out = self._search.ask()  # a population, whatever is asked for
        return torch.tensor([point.tolist() for point in self._out], dtype=torch.float64)

    def _follow(self, values: list[float]) -> None:
        """Only ranks count: a value that is not finite becomes one worse than the others."""
        worst = max((v for v in values if math.isfinite(v)), default=0.0)
        worse = worst + max(1.0, abs(worst))
        self._search.tell(self._out, [v if math.isfinite(v) else worse for v in values])


def _library() -> Any:
    try:
        import cma  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("CMAES uses the library cma: pip install localplug-blackbox[cma]") from error
    return cma
