"""Schedule-free AdamW, by schedulefree: steps from a running mean of the weights in the place of a schedule.

    y_t     = (1 - beta1) z_t + beta1 x_t                       where gradients are taken; what the model holds while it trains
    z_{t+1} = z_t - lr (g(y_t) / (sqrt(v_t) + eps) + weight_decay y_t)
    x_{t+1} = (1 - c) x_t + c z_{t+1},  c = 1 / (t + 1)         the mean, which is what is evaluated

Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky: The Road Less Scheduled, 2024, arXiv:2405.15682.
"""

from collections.abc import Iterable
from typing import Any, final

import schedulefree  # type: ignore[import-untyped]


@final
class ScheduleFree(schedulefree.AdamWScheduleFree):
    """z <- z - lr (g / (sqrt(v) + eps) + weight_decay y), x the running mean of z, gradients at y between them.

    No schedule, but still a learning rate. It begins in training mode, where the model holds y; `eval()` puts x there and
    `train()` brings y back: call them round every evaluation and before saving. transformers' Trainer does so by itself.
    Two more numbers for each weight than plain SGD. The library divides the gradient in place.

    Args:
        params: as for any torch optimizer.
        lr: > 0, in parameter units, as AdamW's.
        betas: (beta1, beta2): how near y is to x, in (0, 1), and the decay of the second moment, in [0, 1).
        eps: > 0, in units of the gradient; at least 1e-7 for weights of float16, which has no smaller numbers.
        weight_decay: in units of 1 / lr, at y, >= 0.
        warmup_steps: of a linear warm-up, >= 0.

    Raises:
        ValueError: one of them is out of range; says all that are.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        >>> rule = ScheduleFree([w], lr=0.5)
        >>> w.grad = torch.tensor([0.1, -5.0])
        >>> rule.step()
        >>> rule.eval()
        >>> [round(x, 3) for x in w.tolist()]
        [1.5, -2.5]

    Reference: Defazio et al., 2024, arXiv:2405.15682.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
    ) -> None:
        wrong = [] if lr > 0 else [f"lr must be positive, got {lr!r}"]
        if not (0 < betas[0] < 1 and 0 <= betas[1] < 1):
            wrong.append(f"betas must be in (0, 1) and [0, 1), got {betas!r}")
        if not eps > 0:
            wrong.append(f"eps must be positive, got {eps!r}")
        if not weight_decay >= 0 or not warmup_steps >= 0:
            wrong.append(
                f"weight_decay and warmup_steps must not be negative, got {weight_decay!r} and {warmup_steps!r}"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, warmup_steps=warmup_steps)
        self.train()
