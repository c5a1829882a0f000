"""released-selector: every other weight, in turn (as red-black Gauss-Seidel takes the points of a grid, about 1950)."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

import localplug
from localplug import Run, Selector

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_selectors() -> dict[str, Any]:
    return {"released-selector": ReleasedSelector}


@final
class ReleasedSelector(Selector):
    """Elements whose number is even, then those whose number is odd.

    Args:
        every: steps between two turns, >= 1.

    Example:
        >>> ReleasedSelector(every=5).describe()
        'released-selector, in turn every 5 steps'
    """

    changes = True

    def __init__(self, every: int = 4) -> None:
        self.every = every

    def describe(self) -> str:
        return f"released-selector, in turn every {self.every} steps"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        numbers = torch.arange(offset, offset + values.numel(), device=values.device)
        return (numbers + step // self.every) % 2 == 0

    def num_elements(self, index: int) -> int:
        return self._run.parameters[index][1].numel() // 2
