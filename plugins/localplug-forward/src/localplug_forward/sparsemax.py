"""Sparsemax and its loss: Martins and Astudillo, From Softmax to Sparsemax, ICML 2016, arXiv:1602.02068.

    sparsemax(z) = argmin over the simplex of ||p - z||^2 = max(z - tau(z), 0),  tau such that it sums to 1
    k(z) = max {k : 1 + k z_(k) > sum_{j <= k} z_(j)},   tau(z) = (sum_{j <= k(z)} z_(j) - 1) / k(z)      z_(1) >= z_(2) >= ...
    L(z; y) = -z_y + 1/2 sum_{j: p_j > 0} (z_j^2 - tau^2) + 1/2,      dL/dz = sparsemax(z) - y*

Shapes: B examples, K classes.
"""

import torch
from torch import Tensor


def sparsemax(z_BK: Tensor) -> Tensor:
    """The Euclidean projection of each row onto the probability simplex, (B, K).

    Example:
        >>> sparsemax(torch.tensor([[1.0, 0.5, -3.0]]))
        tensor([[0.7500, 0.2500, 0.0000]])
    """
    sorted_BK = z_BK.sort(dim=1, descending=True).values
    excess_BK = sorted_BK.cumsum(1) - 1
    k_K = torch.arange(1, z_BK.shape[1] + 1, device=z_BK.device, dtype=z_BK.dtype)
    k_B1 = (k_K * sorted_BK > excess_BK).sum(1, keepdim=True)
    tau_B1 = excess_BK.gather(1, k_B1 - 1) / k_B1
    return (z_BK - tau_B1).clamp(min=0)


def sparsemax_loss(z_BK: Tensor, labels_B: Tensor) -> Tensor:
    """L(z; y), averaged over examples. Scalar, >= 0, and 0 exactly where sparsemax(z) is the label.

    Written as z.p - |p|^2 / 2 + 1/2 - z_y, which is the same; p = sparsemax(z) maximises it, and so is held constant.
    """
    p_BK = sparsemax(z_BK.detach())
    z_y_B = z_BK.gather(1, labels_B[:, None]).squeeze(1)
    return ((z_BK * p_BK).sum(1) - p_BK.square().sum(1) / 2 + 0.5 - z_y_B).mean()
