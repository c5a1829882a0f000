"""Every optimizer of the library nevergrad, by its name (pip install localplug-blackbox[nevergrad]).

Rapin, Teytaud: Nevergrad, 2018, https://github.com/facebookresearch/nevergrad. The state is the values that were told
(`replayed`). Letters: N points, D numbers.
"""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug_blackbox.box import Box
from localplug_blackbox.replayed import Replayed

_BAD = 4e20  # for a value that is not finite, or larger: nevergrad clips just above


@final
class NevergradSearch(Replayed):
    """A search by one of nevergrad's optimizers.

    Args:
        box: where to look; bounds may be infinite.
        start: (D,), where the library begins; by default the middle of the box, or 0. Values that `fit` gives before the first
            `ask` move it to the best of them; later ones do not change the search.
        optimizer: a name in nevergrad.optimizers.registry, such as "TwoPointsDE", "OnePlusOne" or "PSO".
        max_evaluations: the budget that the library plans for, >= 1; None for an open one.
        num_workers: points that are out at once, >= 1; `ask` gives at most so many.
        sigma: standard deviation of its first changes, > 0, in the units of x; by default a sixth of the distance of the
            bounds, and 1 for a number without two.
        seed: of the library's draws.

    Raises:
        ImportError: nevergrad is not installed.
        ValueError: an option is outside its range, or there is no such optimizer; lists all of them.

    Reference: https://github.com/facebookresearch/nevergrad.

    Example:
        >>> from localplug_blackbox import Box, minimize
        >>> searcher = NevergradSearch(Box([-2, -2], [2, 2]), optimizer="OnePlusOne")
        >>> minimize(lambda X: (X - 1).square().sum(1), searcher, 200).value < 1e-2
        True
    """

    def __init__(
        self,
        box: Box,
        start: Tensor | Sequence[float] | None = None,
        optimizer: str = "TwoPointsDE",
        max_evaluations: int | None = None,
        num_workers: int = 1,
        sigma: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        wrong = []
        if max_evaluations is not None and not max_evaluations >= 1:
            wrong.append(f"max_evaluations must be at least 1, or None, got {max_evaluations!r}")
        if not num_workers >= 1:
            wrong.append(f"num_workers must be at least 1, got {num_workers!r}")
        if sigma is not None and not 0 < sigma < math.inf:
            wrong.append(f"sigma must be positive and finite, or None, got {sigma!r}")
        if optimizer not in _library().optimizers.registry:
            wrong.append(f"optimizer must be a name in nevergrad.optimizers.registry, got {optimizer!r}")
        wrong += box.start_problems(start)
        if wrong:
            raise ValueError("; ".join(wrong))
        self._start_D = box.start(start)
        self.optimizer, self.max_evaluations, self.num_workers, self.seed = (
            optimizer,
            max_evaluations,
            num_workers,
            seed,
        )
        width_D = box.upper_D - box.lower_D
        self._sigma_D = torch.where(torch.isfinite(width_D), width_D / 6, torch.ones_like(width_D))
        if sigma is not None:
            self._sigma_D = torch.full_like(width_D, sigma)
        self._out: list[Any] = []

    def _begun(self) -> Any:
        import numpy as np

        lower, upper = (None if bool(torch.isinf(b).all()) else b.numpy() for b in (self.box.lower_D, self.box.upper_D))
        library = _library()
        array = library.p.Array(init=self._start_D.numpy())
        array.set_mutation(sigma=self._sigma_D.numpy())
        array.random_state = np.random.RandomState(self.seed)  # before all else: it would come from numpy's global one
        if lower is not None or upper is not None:
            array.set_bounds(lower, upper)
        return library.optimizers.registry[self.optimizer](
            parametrization=array, budget=self.max_evaluations, num_workers=self.num_workers
        )

    def _drawn(self, num: int) -> Tensor:
        self._out = [self._search.ask() for _ in range(min(num, self.num_workers))]
        return torch.stack([torch.as_tensor(c.value, dtype=torch.float64).reshape(-1) for c in self._out])

    def _follow(self, values: list[float]) -> None:
        for candidate, value in zip(self._out, values, strict=True):
            self._search.tell(candidate, min(max(value, -_BAD), _BAD))
        self._out = []


def _library() -> Any:
    try:
        import nevergrad  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "NevergradSearch uses the library nevergrad: pip install localplug-blackbox[nevergrad]"
        ) from error
    return nevergrad
