"""Fixed random matrices that carry labels and errors to hidden layers, made again from (seed, name) instead of stored.

Uniform in (-bound, bound). Their usual bound is that of He et al. (2015), arXiv:1502.01852, for n values: sqrt(6 / n).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from localplug import Unit, noise


def matrix(seed: int, number: int, name: str, shape: Sequence[int], bound: float, device: torch.device) -> Tensor:
    """Entries uniform in (-bound, bound), a function of the first three arguments. float32."""
    count = torch.Size(shape).numel()
    values = noise.uniform(noise.stream(seed, 0, number, name), 0, count, device)
    return values.mul_(2).sub_(1).mul_(bound).view(*shape)


class Feedback:
    """One matrix for each unit, from K numbers of an example to the shape of the unit's output.

    A convolution's feature map gets a value of its own at each place; a sequence gets the same values at every position.

    Args:
        scale: factor on the bound sqrt(6 / n), n the values of one output (C H W, or D); > 0.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self._cache: dict[tuple[int, int, tuple[int, ...], torch.device], Tensor] = {}

    def carried(self, e_BK: Tensor, output: Tensor, *, unit: Unit, seed: int) -> Tensor:
        """e_BK through the unit's matrix, shaped like the output."""
        width = output[0].numel() if unit.keeps_map else output.shape[-1]
        key = (seed, unit.index, (e_BK.shape[1], width), output.device)
        if key not in self._cache:
            bound = self.scale * (6 / width) ** 0.5
            self._cache[key] = matrix(seed, unit.index, "feedback", key[2], bound, output.device)
        carried = (e_BK @ self._cache[key]).to(output.dtype)
        if unit.keeps_map:
            return carried.view_as(output)
        between = (1,) * (output.dim() - 2)
        return carried.view(carried.shape[0], *between, width).expand_as(output)
