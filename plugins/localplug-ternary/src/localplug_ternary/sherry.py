"""Sherry: one zero in every four weights, and a residual that fades. Reference: arXiv:2601.07892 (ACL 2026).

In each four consecutive inputs the three largest |w| are kept:

    t = sign(w) where kept, else 0,   s = sum over the kept |w| / (3/4 g),   A = s t
    y = x A^T + eps x w^T + b                                                       (the residual "Arenas")
    dL/dw = (1 + eps) dL/dA                                                         (straight-through)

eps grows from 0 to its largest value over the first tenth of the training and falls back to 0 as a cosine: at the end the
model is ternary. Both products are one, x (A + eps w)^T.
"""

import math
from typing import ClassVar, final

import torch
from torch import Tensor

from localplug import Quantizer, Ternary, grouped, straight_through, ternary

WARM_UP = 0.1  # of the training


@final
class Sherry(Quantizer):
    """Three of four.

        A = s t with one t = 0 in each four inputs;  training computes with A + eps w, eps -> 0

    Args:
        group_size: g, inputs that share a scale; None for a whole row.
        residual: the largest eps, >= 0; 0 trains without.

    Example:
        >>> import torch
        >>> made = Sherry(group_size=None).quantize(torch.tensor([[1.0, 0.25, -0.75, 0.25], [0.0, 0.0, 0.0, 0.0]]))
        >>> made.codes.tolist()[0], round(made.scales[0].item(), 3)
        ([1, 0, -1, 1], 0.667)
    """

    is_scheduled: ClassVar[bool] = True
    group_multiple: ClassVar[int] = 4

    def __init__(self, group_size: int | None, residual: float = 1.0) -> None:
        self.group_size, self.residual = group_size, residual

    def quantize(self, w_NK: Tensor) -> Ternary:
        with torch.no_grad():
            w_NGg = grouped(w_NK, self.group_size)
            w_NQ4 = w_NGg.reshape(w_NGg.shape[0], -1, 4)
            is_kept_NQ4 = torch.ones_like(w_NQ4, dtype=torch.bool)
            is_kept_NQ4.scatter_(-1, w_NQ4.abs().argmin(-1, keepdim=True), False)
            is_kept_NGg = is_kept_NQ4.reshape(w_NGg.shape)
            # A kept weight that is 0 has sign +1: the format has a sign for each of the three, and no further zero.
            t_NGg = torch.where(w_NGg < 0, -1, 1) * is_kept_NGg
            s_NG = (w_NGg.abs() * is_kept_NGg).sum(-1) / (w_NGg.shape[-1] * 3 / 4)
            return ternary(t_NGg, s_NG)

    def epsilon(self, progress: float) -> float:
        """eps, at `progress` in [0, 1] of the training."""
        if progress < WARM_UP:
            return self.residual * progress / WARM_UP
        return self.residual * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2

    def latent(self, w_NK: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        A_NK = straight_through(w_NK, self.quantize(w_NK))
        eps = self.epsilon(progress)
        return (A_NK + eps * w_NK if eps else A_NK), None

    def is_ternary(self, progress: float) -> bool:
        return self.epsilon(progress) == 0 and (progress > 0 or self.residual == 0)
