"""Absmean: the quantizer of BitNet b1.58. Reference: arXiv:2402.17764.

    s = mean |w|,  t = clip(round(w / s), -1, 1),  A = s t,  y = x A^T + b,  dL/dw = dL/dA     (straight-through)

BitNet has one scale a tensor, and 8-bit activations; here s is that of a group of inputs of a row, and activations stay as
they are.
"""

from typing import final

import torch
from torch import Tensor

from localplug import Quantizer, Ternary, grouped, straight_through, ternary


@final
class Absmean(Quantizer):
    """Round to the mean magnitude.

        t = clip(round(w / mean |w|), -1, 1)

    Args:
        group_size: inputs that share a scale; None for a whole row.

    Example:
        >>> import torch
        >>> made = Absmean(group_size=None).quantize(torch.tensor([[1.0, 0.25, -0.75, 0.0]]))
        >>> made.codes.tolist(), made.scales.tolist()
        ([[1, 0, -1, 0]], [[0.5]])
    """

    def __init__(self, group_size: int | None) -> None:
        self.group_size = group_size

    def quantize(self, w_NK: Tensor) -> Ternary:
        with torch.no_grad():
            w_NGg = grouped(w_NK, self.group_size)
            s_NG = w_NGg.abs().mean(-1)
            # round(1/2) is 0 for round-half-to-even, so |w / s| rounds to 1 or more just where |w| > s / 2; no division by 0.
            t_NGg = w_NGg.sign() * (w_NGg.abs() > s_NG.unsqueeze(-1) / 2)
            return ternary(t_NGg, s_NG)

    def latent(self, w_NK: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        return straight_through(w_NK, self.quantize(w_NK)), None

    def is_ternary(self, progress: float) -> bool:
        return True
