"""ZO-signSGD: step along the sign of the estimated gradient (Liu, Chen, Chen, Hong, ICLR 2019).

theta <- theta - eta sign(g_hat)
"""

from collections.abc import Iterable
from typing import Any, final

import torch
from torch.optim import Optimizer


@final
class SignSGD(Optimizer):
    """theta <- (1 - lr * weight_decay) theta - lr * sign(grad); no state.

    Pair it with a method's update="trainer", so that .grad holds a zeroth-order estimate; then it is ZO-signSGD.

    Args:
        params: as for any torch optimizer.
        lr: step of every element, in parameter units, >= 0.
        weight_decay: decoupled, in units of 1 / lr, >= 0.

    Raises:
        ValueError: lr or weight_decay is negative.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        >>> w.grad = torch.tensor([0.1, -5.0])
        >>> SignSGD([w], lr=0.5).step()
        >>> w.tolist()
        [1.5, -2.5]

    Reference: Liu, Chen, Chen, Hong: signSGD via Zeroth-Order Oracle, ICLR 2019.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, weight_decay: float = 0.0) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr and weight_decay must not be negative, got lr={lr!r}, weight_decay={weight_decay!r}")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.sign().mul_(group["lr"]))
        return loss
