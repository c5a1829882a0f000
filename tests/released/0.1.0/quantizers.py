"""released-quantizer: weights above a threshold become a sign, and the scale is the best one for them.

w is a group of weights of a row, t in {-1, 0, 1} their codes, s the group's scale:

    t = sign(w) where |w| > threshold mean |w|, else 0
    s = mean of |w| over those that are kept                  the least-squares scale of these codes
    y = x (s t)^T + b,   dL/dw = dL/d(s t)                    straight through the rounding

Source: ternary weight networks (Li, Zhang, Liu, 2016, arXiv:1605.04711), with the threshold as an option.

Shapes: N outputs, K inputs, G groups of a row, g inputs of a group.
"""

from typing import Any, final

import torch

import localplug


@localplug.hookimpl
def localplug_quantizers() -> dict[str, Any]:
    return {"released-quantizer": ReleasedQuantizer}


@final
class ReleasedQuantizer(localplug.Quantizer):
    """Weights above a threshold become a sign: t = sign(w) [|w| > threshold mean |w|], s = <w, t> / <t, t>.

    Args:
        group_size: g, inputs that share a scale; None for a whole row.
        threshold: in units of mean |w|, in [0, 1).

    Raises:
        ValueError: threshold is outside its range.

    Example:
        >>> import torch
        >>> made = ReleasedQuantizer(group_size=None).quantize(torch.tensor([[1.0, 0.25, -0.5, 0.25]]))
        >>> made.codes.tolist(), made.scales.tolist()
        ([[1, 0, -1, 0]], [[0.75]])
    """

    def __init__(self, group_size: int | None, threshold: float = 0.7) -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"released-quantizer: threshold must be in [0, 1), got {threshold!r}")
        self.group_size, self.threshold = group_size, float(threshold)

    @torch.no_grad()
    def quantize(self, w_NK: torch.Tensor) -> localplug.Ternary:
        w_NGg = localplug.grouped(w_NK, self.group_size)  # in float32 at least
        is_kept_NGg = w_NGg.abs() > self.threshold * w_NGg.abs().mean(-1, keepdim=True)
        num_kept_NG = is_kept_NGg.sum(-1).clamp_min(1)  # a group of zeros keeps none, and has s = 0
        s_NG = (w_NGg.abs() * is_kept_NGg).sum(-1) / num_kept_NG
        return localplug.ternary(w_NGg.sign() * is_kept_NGg, s_NG)

    def latent(self, w_NK: torch.Tensor, progress: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        return localplug.straight_through(w_NK, self.quantize(w_NK)), None

    def is_ternary(self, progress: float) -> bool:
        return True
