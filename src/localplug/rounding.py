"""Stochastic rounding to half precision: what is lost in one step is taken in another, and the mean is kept.

A float32 x between two neighbours a (towards zero) and b becomes b with probability (x - a) / (b - a). For bfloat16, whose
bits are the upper half of a float32's, that is the lower half as a fraction of 65,536; the die is 16 bits of noise.
"""

import torch
from torch import Tensor

from localplug import kernels, noise


@torch.no_grad()
def round_(target: Tensor, value: Tensor, key: int, offset: int) -> Tensor:
    """target <- value, rounded up or down with the probabilities that keep the mean; to nearest where up is not finite.

    Args:
        target: bfloat16 or float16, one-dimensional, contiguous.
        value: float32, shaped like it.
        key, offset: of the stream of noise that decides; see localplug.noise.
    """
    if target.dtype == torch.bfloat16 and kernels.usable(value):
        kernels.round_bfloat16_(target, value, key, offset)
        return target
    u = noise.uniform(key, offset, target.numel(), target.device)
    nearest = value.to(target.dtype)
    bits = nearest.view(torch.int16)
    # sign and magnitude: one less in the bits is one step towards zero, for either sign
    towards_zero = torch.where(nearest.float().abs() > value.abs(), bits - 1, bits)
    away = towards_zero + 1
    low, high = towards_zero.view(target.dtype).float(), away.view(target.dtype).float()
    chosen = torch.where(u < (value - low) / (high - low), away, towards_zero).view(target.dtype)
    return target.copy_(torch.where(torch.isfinite(high) & torch.isfinite(value), chosen, nearest))
