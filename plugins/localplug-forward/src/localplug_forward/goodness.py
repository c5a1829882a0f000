"""What a layer's activity is worth, and what enters the next layer when that is taken out of it.

Shapes: B examples, D numbers of one example's flattened activity.
"""

from typing import Literal

import torch
from torch import Tensor

Goodness = Literal["sum", "mean"]


def goodness(h: Tensor, how: Goodness = "sum") -> Tensor:
    """G (B,): the sum, or the mean, of the squares of each example's activity h (B, ...).

    Example:
        >>> goodness(torch.tensor([[1.0, 3.0]]))
        tensor([10.])
    """
    squares_BD = widened(h.flatten(1)).square()
    return squares_BD.sum(1) if how == "sum" else squares_BD.mean(1)


def rms_normalised(z: Tensor, eps: float = 1e-8) -> Tensor:
    """z / (sqrt(mean z^2) + eps), the mean over all numbers of an example: its goodness can be read off no more.

    Example:
        >>> rms_normalised(torch.tensor([[3.0, 3.0]]))
        tensor([[1., 1.]])
    """
    z_BD = widened(z.flatten(1))
    return (z_BD / (z_BD.square().mean(1, keepdim=True).sqrt() + eps)).view_as(z).to(z.dtype)


def cosine(y: Tensor, p_D: Tensor) -> Tensor:
    """g (B,): the cosine between |y|, each example's flattened activity without signs, and the direction p."""
    y_BD = widened(y.flatten(1).abs())
    return torch.nn.functional.cosine_similarity(y_BD, p_D.to(y_BD.dtype)[None], dim=1)


def widened(x: Tensor) -> Tensor:
    """In float32 at least: the squares of a wide layer add up to more than float16 holds."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
