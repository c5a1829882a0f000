"""The covariance of an infinitely wide network with random weights and ReLU: a kernel for Gaussian processes.

    K_0(x, x')     = s_b + s_w <x, x'> / D
    K_l+1(x, x')   = s_b + s_w / 2 pi sqrt(K_l(x, x) K_l(x', x')) (sin u + (pi - u) cos u),   cos u = K_l(x, x') / sqrt(...)

Cho, Saul: Kernel Methods for Deep Learning, 2009; Lee and others, arXiv:1711.00165; as a surrogate in Bayesian optimization: Li
and others, arXiv:2305.20028, from which the defaults are. Letters: N and M points, D numbers.
"""

import math

from torch import Tensor


def infinite_width_kernel(
    X_ND: Tensor, Z_MD: Tensor, depth: int = 3, weight_variance: float = 10.0, bias_variance: float = 1.3
) -> Tensor:
    """The kernel between two sets of points. (N, M).

    Args:
        depth: number of hidden layers, >= 1.
        weight_variance: s_w, > 0; of a weight it is s_w over the fan-in.
        bias_variance: s_b, >= 0.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch
        >>> infinite_width_kernel(torch.zeros(1, 2), torch.zeros(1, 2), depth=1, weight_variance=2.0, bias_variance=1.0).item()
        2.0
    """
    wrong = [] if depth >= 1 else [f"depth must be at least 1, got {depth!r}"]
    if not 0 < weight_variance < math.inf:
        wrong.append(f"weight_variance must be positive and finite, got {weight_variance!r}")
    if not 0 <= bias_variance < math.inf:
        wrong.append(f"bias_variance must not be negative, and finite, got {bias_variance!r}")
    if wrong:
        raise ValueError("; ".join(wrong))
    num = X_ND.shape[-1]
    K_NM = bias_variance + weight_variance * X_ND @ Z_MD.mT / num
    K_N1 = bias_variance + weight_variance * X_ND.square().sum(-1, keepdim=True) / num
    K_1M = (bias_variance + weight_variance * Z_MD.square().sum(-1, keepdim=True) / num).mT
    for _ in range(depth):
        lengths_NM = (K_N1 * K_1M).sqrt()
        cosine_NM = (K_NM / lengths_NM.clamp_min(1e-300)).clamp(-1 + 1e-12, 1 - 1e-12)  # acos has no slope at the ends
        u_NM = cosine_NM.acos()
        K_NM = bias_variance + weight_variance / (2 * math.pi) * lengths_NM * (
            u_NM.sin() + (math.pi - u_NM) * cosine_NM
        )
        K_N1, K_1M = (bias_variance + weight_variance / 2 * K for K in (K_N1, K_1M))
    return K_NM
