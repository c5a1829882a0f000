"""Where a search may look: a lower and an upper bound for each number."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class Box:
    """Bounds for D numbers; infinite ones leave a number free.

    Args:
        lower: (D,), each below its upper bound; -inf for none.
        upper: (D,); inf for none.

    Raises:
        ValueError: lists everything that is wrong.

    Example:
        >>> Box([0.0, -1.0], [1.0, 1.0]).clip(torch.tensor([[2.0, 0.5]])).tolist()
        [[1.0, 0.5]]
    """

    def __init__(self, lower: Tensor | Sequence[float], upper: Tensor | Sequence[float]) -> None:
        self.lower_D = torch.as_tensor(lower, dtype=torch.float64).detach().cpu().clone()
        self.upper_D = torch.as_tensor(upper, dtype=torch.float64).detach().cpu().clone()
        wrong = []
        if self.lower_D.dim() != 1 or self.lower_D.shape != self.upper_D.shape or not self.lower_D.numel():
            wrong.append(
                "lower and upper must be as many numbers, at least one, got the shapes "
                f"{tuple(self.lower_D.shape)} and {tuple(self.upper_D.shape)}"
            )
        elif not bool((self.lower_D < self.upper_D).all()):
            where = (~(self.lower_D < self.upper_D)).nonzero().flatten().tolist()
            wrong.append(f"each lower bound must be below its upper one; these are not: numbers {where}")
        if wrong:
            raise ValueError("; ".join(wrong))

    @classmethod
    def free(cls, num: int) -> "Box":
        """Without bounds, for so many numbers."""
        if not num >= 1:
            raise ValueError(f"num must be at least 1, got {num!r}")
        return cls([-math.inf] * num, [math.inf] * num)

    @property
    def num(self) -> int:
        """D."""
        return len(self.lower_D)

    @property
    def bounded(self) -> bool:
        """Whether every bound is finite."""
        return bool(torch.isfinite(self.lower_D).all() and torch.isfinite(self.upper_D).all())

    def clip(self, X_ND: Tensor) -> Tensor:
        """The nearest points inside."""
        return X_ND.clamp(self.lower_D, self.upper_D)

    def contains(self, X_ND: Tensor) -> Tensor:
        """Which of the points are inside, bounds included. (N,) of bool."""
        return (self.clip(X_ND) == X_ND).all(-1)

    def to_unit(self, X_ND: Tensor) -> Tensor:
        """The box moved and scaled to [0, 1]; for finite bounds."""
        return (X_ND - self.lower_D) / (self.upper_D - self.lower_D)

    def from_unit(self, U_ND: Tensor) -> Tensor:
        """The inverse of `to_unit`, kept inside whatever rounding does."""
        return self.clip(self.lower_D + U_ND * (self.upper_D - self.lower_D))

    def start(self, given: Tensor | Sequence[float] | None) -> Tensor:
        """A first point (D,): the given one, or the middle; 0 for a number without two bounds, moved inside.

        Raises:
            ValueError: the given one has another length, is not finite, or is outside.
        """
        if wrong := self.start_problems(given):
            raise ValueError("; ".join(wrong))
        if given is None:
            middle_D = (self.lower_D + self.upper_D) / 2
            return self.clip(torch.where(torch.isfinite(middle_D), middle_D, torch.zeros_like(middle_D)))
        return torch.as_tensor(given, dtype=torch.float64).detach().cpu().clone()

    def start_problems(self, given: Tensor | Sequence[float] | None) -> list[str]:
        """Why that cannot be a first point."""
        if given is None:
            return []
        try:
            x_D = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
        except ValueError as error:  # no numbers, or rows of several lengths
            return [str(error)]
        if x_D.shape != self.lower_D.shape:
            return [f"start must be {self.num} numbers, got the shape {tuple(x_D.shape)}"]
        if not bool(torch.isfinite(x_D).all()) or not bool(self.contains(x_D)):
            return [f"start must be finite and inside the box, got {x_D.tolist()}"]
        return []
