"""released-update-rule: steps along a running mean of the gradient.

With the gradient g_t, or an estimate of it, and the parameters theta:

    m_t    = beta m_{t-1} + (1 - beta) g_t                   m_0 = 0
    theta <- (1 - lr weight_decay) theta - lr m_t

Source: heavy-ball momentum (Polyak, 1964) in the form of a mean.
"""

from collections.abc import Iterable
from typing import Any, final

import torch

import localplug

localplug_contract = "1.0"


@localplug.hookimpl
def localplug_update_rules() -> dict[str, Any]:
    return {"released-update-rule": ReleasedUpdateRule}


@final
class ReleasedUpdateRule(torch.optim.Optimizer):
    """Steps along a running mean of the gradient.

        m <- beta m + (1 - beta) g,   theta <- (1 - lr weight_decay) theta - lr m

    Args:
        params: as for any torch optimizer.
        lr: in parameter units for each unit of the gradient, >= 0.
        beta: share of the mean that is kept in a step, in [0, 1).
        weight_decay: decoupled, in units of 1 / lr, >= 0.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> w.grad = torch.tensor([2.0])
        >>> ReleasedUpdateRule([w], lr=0.1, beta=0.5).step()
        >>> round(w.item(), 4)
        0.9
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, beta: float = 0.9, weight_decay: float = 0.0) -> None:
        wrong = []
        if not lr >= 0:
            wrong.append(f"lr must be at least 0, got {lr!r}")
        if not 0 <= beta < 1:
            wrong.append(f"beta must be in [0, 1), got {beta!r}")
        if not weight_decay >= 0:
            wrong.append(f"weight_decay must be at least 0, got {weight_decay!r}")
        if wrong:
            raise ValueError("released-update-rule: " + "; ".join(wrong))
        super().__init__(params, {"lr": lr, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is None:
                    continue
                state = self.state[theta]
                if not state:
                    state["m"] = torch.zeros_like(theta)
                state["m"].lerp_(theta.grad, 1 - group["beta"])
                theta.mul_(1 - group["lr"] * group["weight_decay"]).sub_(state["m"], alpha=group["lr"])
        return loss
