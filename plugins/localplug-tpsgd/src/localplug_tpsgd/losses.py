"""Local losses of tpSGD (arXiv:2208.08503): how far a unit's output y is from its local target t.

    l2:  J = 1/2 sum_d (y_d - t_d)^2      dJ/dy = y - t            (the paper's factor 2 is absorbed in the step size)
    l1:  J = sum_d |y_d - t_d|            dJ/dy = sign(y - t)

Reduction: summed over the features of one position (channels of a convolution, hidden units of a layer), averaged over
the positions (height and width, time steps) and over the examples. The step of a weight then depends on neither the
batch size nor the size of the map.
"""

import torch
from torch import Tensor


def positions(output: Tensor) -> int:
    """How many positions J is averaged over: everything but the features, which are dimension 1 of a map with more than
    three dimensions, and the last one otherwise."""
    features = output.shape[1] if output.dim() > 3 else output.shape[-1]
    return output.numel() // max(features, 1)


def l2(output: Tensor, target: Tensor) -> Tensor:
    """1/2 sum_d (y_d - t_d)^2, averaged over positions and examples. Scalar.

    Args:
        output, target: (B, D), (B, T, D) or (B, C, H, W), in activation units.

    Example:
        >>> import torch
        >>> float(l2(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])))
        2.0
    """
    return 0.5 * (output - target).square().sum() / positions(output)


def l1(output: Tensor, target: Tensor) -> Tensor:
    """sum_d |y_d - t_d|, averaged over positions and examples. Scalar.

    Args:
        output, target: (B, D), (B, T, D) or (B, C, H, W), in activation units.

    Example:
        >>> import torch
        >>> float(l1(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]])))
        2.0
    """
    return torch.abs(output - target).sum() / positions(output)


def delta_l2(output: Tensor, target: Tensor) -> Tensor:
    """dJ/dy of `l2` in closed form, shaped like the output."""
    return (output - target) / positions(output)


def delta_l1(output: Tensor, target: Tensor) -> Tensor:
    """dJ/dy of `l1` in closed form, shaped like the output."""
    return torch.sign(output - target) / positions(output)
