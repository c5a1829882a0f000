"""What an infinitely wide network of one hidden ReLU layer, without biases, is to its inputs: two kernels.

    f(x) = sqrt(2/W) sum_w r_w relu(a_w x),   a_w and r_w standard normal

    readout   K(x, x') = |x| |x'| k1(u)                        r alone is trained, the first layer stays random
    ntk       T(x, x') = |x| |x'| (k1(u) + u k0(u))            both layers are trained by small steps

    u = x x' / (|x| |x'|),   k0(u) = (pi - arccos u) / pi,   k1(u) = (sqrt(1 - u^2) + u (pi - arccos u)) / pi

Trained to zero squared error from a random start, such a network is on average the kernel's regression (Jacot, Gabriel,
Hongler, 2018, arXiv:1806.07572; k0 and k1: Cho, Saul, 2009).

Letters: N, M inputs, D features, W width.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Kernel = Literal["readout", "ntk"]
KERNELS = ("readout", "ntk")


def of_angle(u: Tensor, kernel: Kernel) -> Tensor:
    """The kernel of two inputs of length 1.

    Args:
        u: their cosines, in [-1, 1], of any shape.
        kernel: "readout" or "ntk".

    Raises:
        ValueError: there is no such kernel.

    Example:
        >>> import torch
        >>> of_angle(torch.tensor([1.0, 0.0]), "ntk")
        tensor([2.0000, 0.3183])
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    u = u.clamp(-1, 1)
    share = (math.pi - torch.arccos(u)) / math.pi  # k0
    k1 = (1 - u.square()).sqrt() / math.pi + u * share
    return k1 + u * share if kernel == "ntk" else k1


def gram(x_ND: Tensor, x_MD: Tensor, kernel: Kernel) -> Tensor:
    """The kernel of every pair, (N, M); 0 where an input is 0.

    Example:
        >>> import torch
        >>> gram(torch.eye(2), torch.tensor([[3.0, 0.0]]), "readout")
        tensor([[3.0000],
                [0.9549]])
    """
    lengths_NM = x_ND.norm(dim=1)[:, None] * x_MD.norm(dim=1)
    u_NM = x_ND @ x_MD.T / lengths_NM.clamp(min=torch.finfo(x_ND.dtype).tiny)
    return lengths_NM * of_angle(u_NM, kernel)
