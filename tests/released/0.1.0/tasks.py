"""released-task: on which side of a line a point lies (new here)."""

from typing import Any, final

import torch
from torch import Tensor, nn

import localplug

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_tasks() -> dict[str, Any]:
    return {"released-task": ReleasedTask}


@final
class ReleasedTask(localplug.Task):
    """Points in a plane, and whether their coordinates have a positive sum.

    Args:
        num_examples: of each part.

    Example:
        >>> len(ReleasedTask(num_examples=8).parts(0).train)
        8
    """

    def __init__(self, num_examples: int = 64) -> None:
        self.num_examples = num_examples

    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def parts(self, seed: int) -> localplug.Parts:
        draw = torch.Generator().manual_seed(seed)
        return localplug.Parts(*(self._part(draw) for _ in range(3)))

    def _part(self, draw: torch.Generator) -> localplug.Part:
        x_N2: Tensor = torch.randn(self.num_examples, 2, generator=draw)
        return localplug.Tensors(x_N2, (x_N2.sum(1) > 0).long())
