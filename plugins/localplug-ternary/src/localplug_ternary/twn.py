"""TWN: ternary weight networks. Reference: Li, Zhang, Liu, arXiv:1605.04711.

    Delta = 0.7 mean |w|,  t = sign(w) where |w| > Delta, else 0,  s = mean of |w| over |w| > Delta,  A = s t

s is the best scale for these codes (least squares), and 0.7 the paper's rule for the threshold. dL/dw = dL/dA.
"""

from typing import final

import torch
from torch import Tensor

from localplug import Quantizer, Ternary, grouped, straight_through, ternary


@final
class TWN(Quantizer):
    """The scale that fits best.

        t = sign(w) [|w| > 0.7 mean |w|],  s = <w, t> / <t, t>

    Args:
        group_size: inputs that share a scale; None for a whole row.

    Example:
        >>> import torch
        >>> made = TWN(group_size=None).quantize(torch.tensor([[1.0, 0.25, -0.5, 0.25]]))
        >>> made.codes.tolist(), made.scales.tolist()
        ([[1, 0, -1, 0]], [[0.75]])
    """

    def __init__(self, group_size: int | None) -> None:
        self.group_size = group_size

    def quantize(self, w_NK: Tensor) -> Ternary:
        with torch.no_grad():
            w_NGg = grouped(w_NK, self.group_size)
            is_kept_NGg = w_NGg.abs() > 0.7 * w_NGg.abs().mean(-1, keepdim=True)
            num_kept_NG = is_kept_NGg.sum(-1).clamp_min(1)  # an empty group keeps none, and has s = 0
            s_NG = (w_NGg.abs() * is_kept_NGg).sum(-1) / num_kept_NG
            return ternary(w_NGg.sign() * is_kept_NGg, s_NG)

    def latent(self, w_NK: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        return straight_through(w_NK, self.quantize(w_NK)), None

    def is_ternary(self, progress: float) -> bool:
        return True
