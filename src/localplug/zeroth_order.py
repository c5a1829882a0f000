"""The whole-model mechanism: from the losses at perturbed weights to a slope, and from the slope to an update.

Directions are in localplug.directions, evaluating at perturbed weights is in localplug.perturbation.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from localplug.contract import Estimate, Groups, Run
from localplug.directions import Directions


@final
class Projection(Estimate):
    """Directional slopes of the tracked leaves: coefficient j is the sum over leaves of <d loss / d leaf, slope_j>.

    For a leaf that is the loss itself this is (L(w + eps z) - L(w - eps z)) / (2 eps), times whatever scale the trainer
    put on the loss; for a loss built on other leaves it is the chain rule, exact to second order in eps.

    Args:
        values: the leaves' values, one tensor a leaf.
        slopes: slopes[j][k] = d leaf_k / d direction_j.
    """

    def __init__(self, values: list[Tensor], slopes: list[list[Tensor]]) -> None:
        self.values, self.slopes = values, slopes

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> Tensor:
        device = self.slopes[0][0].device
        return torch.stack(
            [
                sum(
                    ((gradient.float() * slope).sum().to(device) for gradient, slope in zip(leaf_gradients, row, strict=True)
                     if gradient is not None),
                    torch.zeros((), device=device),
                )
                for row in self.slopes
            ]
        )  # fmt: skip


def sgd_update(run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
    """w <- (1 - lr * weight_decay) w - lr * (1/q) sum_j c_j z_j, streamed; lr and weight_decay by parameter group."""
    q, small = len(coefficients), set(directions.small())
    together: dict[tuple[float, float], list[int]] = {}

    def terms(lr: float) -> list[tuple[int, float]]:
        return [(j, -lr * c / q) for j, c in enumerate(coefficients)]

    for index, (_, parameter) in enumerate(run.parameters):
        group = groups[parameter]
        lr, weight_decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
        if index in small:
            together.setdefault((lr, weight_decay), []).append(index)
        else:
            directions.update_(parameter.data, index, terms(lr), decay=lr * weight_decay)
    for (lr, weight_decay), indices in together.items():
        directions.update_small_(indices, terms(lr), decay=lr * weight_decay)


def write_gradients(run: Run, directions: Directions, coefficients: Sequence[float]) -> None:
    """p.grad <- (1/q) sum_j c_j z_j for every parameter, for whichever optimizer steps next. One gradient copy of memory."""
    q = len(coefficients)
    for index, (_, parameter) in enumerate(run.parameters):
        gradient = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        parameter.grad = directions.add_(gradient, index, [(j, c / q) for j, c in enumerate(coefficients)])
