"""Annealed: soft codes that harden, after Hestia. Reference: arXiv:2601.20745.

    p(c) = softmax over c in {-1, 0, 1} of -(w / s - c)^2 / T,   s = mean |w|,   soft(w) = s (p(1) - p(-1))
    y = x ((1 - rho) w + rho soft(w))^T + b                                         gradients are those of this formula

The pressure rho rises from 0 to 1 over the first fifth of the training. Then the temperature T falls geometrically, until at
four fifths soft(w) gives way to the ternary weight A = s round(w / s) and the straight-through estimator. s gets no gradient.

What is left out: Hestia lowers T in each tensor at a pace of its own, set by the trace of that tensor's Hessian.
"""

from typing import ClassVar, final

import torch
from torch import Tensor

from localplug import Quantizer, Ternary, grouped, straight_through, ternary, wide

RAMP_ENDS, HARD_FROM = 0.2, 0.8  # of the training


@final
class Annealed(Quantizer):
    """From full precision to ternary without a jump.

        y = x ((1 - rho) w + rho soft_T(w))^T,  rho: 0 -> 1, then T: temperature -> final_temperature, then y = x A^T

    Args:
        group_size: inputs that share a scale; None for a whole row.
        temperature: T until the pressure is full, in squared units of w / s; > 0.
        final_temperature: T just before the codes are hard; > 0, at most `temperature`.

    Example:
        >>> import torch
        >>> w = torch.tensor([[1.0, 0.25, -0.75, 0.0]])
        >>> method = Annealed(group_size=None)
        >>> torch.equal(method.latent(w, 0.0)[0], w), method.latent(w, 1.0)[0].tolist()
        (True, [[0.5, 0.0, -0.5, 0.0]])
    """

    is_scheduled: ClassVar[bool] = True

    def __init__(self, group_size: int | None, temperature: float = 1.0, final_temperature: float = 0.01) -> None:
        self.group_size = group_size
        self.temperature, self.final_temperature = temperature, final_temperature

    def quantize(self, w_NK: Tensor) -> Ternary:
        with torch.no_grad():
            w_NGg = grouped(w_NK, self.group_size)
            s_NG = w_NGg.abs().mean(-1)
            return ternary(w_NGg.sign() * (w_NGg.abs() > s_NG.unsqueeze(-1) / 2), s_NG)

    def latent(self, w_NK: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        if progress >= HARD_FROM:
            return straight_through(w_NK, self.quantize(w_NK)), None
        rho = min(progress / RAMP_ENDS, 1.0)
        if rho == 0:
            return w_NK, None
        soft_NK = self.soft(w_NK, self.temperature_at(progress))
        return (soft_NK if rho == 1 else torch.lerp(w_NK, soft_NK, rho)), None

    def temperature_at(self, progress: float) -> float:
        """T, at `progress` in [0, 1] of the training."""
        fallen = min(max(progress - RAMP_ENDS, 0.0) / (HARD_FROM - RAMP_ENDS), 1.0)
        return float(self.temperature * (self.final_temperature / self.temperature) ** fallen)

    def soft(self, w_NK: Tensor, T: float) -> Tensor:
        """soft(w), in the dtype of w."""
        w_NGg = wide(w_NK).reshape(w_NK.shape[0], -1, self.group_size or w_NK.shape[1])
        s_NG1 = w_NGg.detach().abs().mean(-1, keepdim=True)
        z_NGg = w_NGg / s_NG1.clamp_min(1e-30)
        # exp(-(z - c)^2 / T) by that of c = 0: one number each, not three. Beyond exp(80) the code is settled.
        up_NGg, down_NGg = (((c * 2 * z_NGg - 1) / T).clamp_max(80).exp() for c in (1, -1))
        code_NGg = (up_NGg - down_NGg) / (1 + up_NGg + down_NGg)
        s_NG1 = s_NG1.to(torch.float16).to(w_NGg.dtype)  # as it will be stored
        return (s_NG1 * code_NGg).flatten(1).to(w_NK.dtype)

    def is_ternary(self, progress: float) -> bool:
        return progress >= HARD_FROM
