"""A set of points that is given out piece by piece, and used when all its values are there."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor


@final
class Generation:
    """N points, of which `num_told` have values. Letters: N points, D numbers in each.

    Args:
        X_ND: the points, at least one.
    """

    def __init__(self, X_ND: Tensor) -> None:
        self.X_ND = X_ND
        self.y_N = X_ND.new_full((len(X_ND),), float("inf"))
        self.num_told = 0

    @property
    def complete(self) -> bool:
        return self.num_told == len(self.X_ND)

    def next(self, num: int) -> Tensor:
        """The next points without values, at most `num`."""
        return self.X_ND[self.num_told : self.num_told + num].clone()

    def put(self, y_N: Tensor) -> None:
        """Values of the next points."""
        self.y_N[self.num_told : self.num_told + len(y_N)] = y_N
        self.num_told += len(y_N)

    def state(self) -> dict[str, Any]:
        return {"X": self.X_ND.clone(), "y": self.y_N.clone(), "told": self.num_told}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Generation":
        found = cls(state["X"].clone())
        found.y_N, found.num_told = state["y"].clone(), int(state["told"])
        return found


def generator(seed: int) -> torch.Generator:
    """A generator of a searcher's own."""
    return torch.Generator().manual_seed(seed)
