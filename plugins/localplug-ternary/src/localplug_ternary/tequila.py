"""Tequila: ternary weights whose dead zone still learns. Reference: arXiv:2509.23809 (ICLR 2026).

For each group of g inputs of a row of the latent weight w:

    s = mean |w|,  Delta = s / 2,  t = 1 where w >= Delta, -1 where w <= -Delta, else 0,  A = s t
    D = {t = 0}, the dead zone;  C_j = lambda sum_{i in D_j} w_ji          one number for each output j, over its whole row
    y = x A^T + C + b

    dL/dw_ji = sum_n g_nj x_ni + [ji in D] lambda sum_n g_nj               with g = dL/dy

The first term is the straight-through estimator; alone, it lets a weight in the dead zone drift and get stuck. The second is
the true gradient of C. C depends on no input: in training it is a sum over a row, not a second matrix product, and a packed
layer carries it in its bias.
"""

from typing import ClassVar, final

import torch
from torch import Tensor

from localplug import Quantizer, Ternary, grouped, straight_through, ternary, wide


@final
class Tequila(Quantizer):
    """Dead-zone weights become a bias of their output.

        y = x A^T + C + b,  A = s t,  C_j = lambda sum of w_ji over the dead zone of row j

    Args:
        group_size: g, inputs that share a scale; None for a whole row.
        lam: lambda, >= 0. C is small at first (0.0001 of the outputs' size); it acts by its gradient.

    Example:
        >>> import torch
        >>> made = Tequila(group_size=None, lam=0.5).quantize(torch.tensor([[1.0, 0.25, -0.75, 0.0]]))
        >>> made.codes.tolist(), made.scales.tolist(), made.bias.tolist()
        ([[1, 1, -1, 0]], [[0.5]], [0.0])
    """

    has_bias: ClassVar[bool] = True

    def __init__(self, group_size: int | None, lam: float = 1e-3) -> None:
        self.group_size, self.lam = group_size, lam

    def quantize(self, w_NK: Tensor) -> Ternary:
        with torch.no_grad():
            w_NGg = grouped(w_NK, self.group_size)
            s_NG = w_NGg.abs().mean(-1)
            Delta_NG1 = s_NG.unsqueeze(-1) / 2
            # Two comparisons: an empty group has s = 0, where both hold, and their difference is the wanted 0.
            t_NGg = (w_NGg >= Delta_NG1).to(torch.int8) - (w_NGg <= -Delta_NG1).to(torch.int8)
            C_N = self.lam * (w_NGg * (t_NGg == 0)).sum((-2, -1))
            return ternary(t_NGg, s_NG, C_N)

    def latent(self, w_NK: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        made = self.quantize(w_NK)
        # The same sum once more, in the same order, where a gradient is recorded.
        w_NGg = wide(w_NK).reshape(*made.scales.shape, -1)
        t_NGg = made.codes.reshape(w_NGg.shape)
        C_N = self.lam * (w_NGg * (t_NGg == 0)).sum((-2, -1))
        return straight_through(w_NK, made), C_N

    def is_ternary(self, progress: float) -> bool:
        return True
