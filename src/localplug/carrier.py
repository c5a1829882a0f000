"""The carrier: one small parameter's gradient shows the coefficients to whoever looks at gradients.

Its norm is the root mean square of the coefficients, which estimates the norm of the gradient, since E|g|^2 = |grad|^2
for standard normal directions. Gradient norms in logs, clipping and loss scaling then work as they always do, and what
they do to the carrier is done to the coefficients.
"""

import math
from typing import final

import torch
from torch import Tensor, nn

from localplug.errors import Unsupported
from localplug.shards import local_part, whole


@final
class Carrier:
    """Gathers the coefficients of micro-batches, in sight of the trainer.

    Args:
        parameters: of the model; the smallest one with room carries.
        num_coefficients: of one worker, at least 1.
        num_slopes: how many of them, the first ones, are shown; the others are scaled as those are together.
        num_workers: whose coefficients follow each other.

    Raises:
        Unsupported: no parameter has an element for each slope.
    """

    def __init__(
        self, parameters: list[nn.Parameter], num_coefficients: int, num_slopes: int | None = None, num_workers: int = 1
    ) -> None:
        shown = num_coefficients if num_slopes is None else num_slopes
        self.slopes = [w * num_coefficients + i for w in range(num_workers) for i in range(shown)]
        """Which of all coefficients are slopes."""
        able = [p for p in parameters if p.numel() >= len(self.slopes)]
        if not able:
            raise Unsupported(
                f"no trainable parameter has {len(self.slopes)} elements, one for each direction; use fewer directions"
            )
        self.parameter = min(able, key=lambda p: p.numel())
        self._coefficients: Tensor | None = None
        self._written: Tensor | None = None

    def gather(self, coefficients: Tensor) -> None:
        """Add the coefficients of one micro-batch, float32, and show the sum."""
        gradient = self.parameter.grad
        if self._written is not None and (gradient is None or not whole(gradient).any()):
            self._coefficients = None  # zero_grad() came between: what was gathered before is not wanted any more
        self._coefficients = coefficients if self._coefficients is None else self._coefficients + coefficients
        slopes = self._coefficients[self.slopes]
        shown = torch.zeros_like(self.parameter, memory_format=torch.contiguous_format)
        local, first = local_part(shown)
        mine = (slopes / math.sqrt(len(slopes)))[first : first + local.numel()]  # of a shard what lies in it
        local.view(-1)[: len(mine)] = mine.to(local)
        self.parameter.grad = shown
        self._written = shown.clone()

    def take(self) -> Tensor | None:
        """The coefficients, scaled as the carrier was since; None if nothing was gathered. Clears the gradient."""
        coefficients, written, gradient = self._coefficients, self._written, self.parameter.grad
        self._coefficients = self._written = self.parameter.grad = None
        if coefficients is None or written is None or gradient is None:
            return coefficients
        gradient, written = whole(gradient), whole(written)
        if torch.equal(gradient, written):
            return coefficients
        q = len(self.slopes)
        now, before = (gradient.reshape(-1)[:q].float(), written.reshape(-1)[:q].float())
        together = now.norm() / before.norm() if before.any() else torch.ones(())
        ratios = together.to(coefficients).repeat(len(coefficients))
        # clipping by value is by element
        ratios[self.slopes] = torch.where(before != 0, now / before, torch.ones_like(now)).to(coefficients)
        return coefficients * ratios
