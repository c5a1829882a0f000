"""released-local-loss: far from the target it is linear, near it quadratic.

A unit's output y has D values at each position, and t is its local target. With h(d) = d^2 / 2 where |d| <= 1, |d| - 1/2
elsewhere:

    J = sum_d h(y_d - t_d)            averaged over positions and examples

Source: Huber, Robust Estimation of a Location Parameter, 1964.
"""

from typing import Any

import torch

import localplug


@localplug.hookimpl
def localplug_local_losses() -> dict[str, Any]:
    return {"released-local-loss": released_local_loss}


def released_local_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """sum_d h(y_d - t_d), averaged over positions and examples. Scalar.

    Args:
        output: of a unit, (B, D), (B, T, D), or (B, D, H, W) of a convolution.
        target: shaped like output.

    Example:
        >>> import torch
        >>> released_local_loss(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]])).item()
        2.0
    """
    features = output.shape[1] if output.dim() > 3 else output.shape[-1]
    J = torch.nn.functional.huber_loss(output.float(), target.float(), reduction="sum", delta=1.0)
    return J * features / output.numel()
