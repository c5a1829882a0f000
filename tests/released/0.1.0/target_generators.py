"""released-target: a random target for each class and unit.

Unit i has the output y_i (D_i values of an example), and y* (K values) holds the label, one-hot:

    t_i = scale y* P_i            P_i (K, D_i) of normal numbers, made again from (seed, unit) instead of stored

Source: target projection (Lomnitz, Daniels, Zhang, Piacentino, 2022, arXiv:2208.08503), with
normal numbers in the place of uniform ones.

Shapes: B examples, K classes, D values of an output at one position.
"""

from typing import Any, final

import torch

import localplug


@localplug.hookimpl
def localplug_target_generators() -> dict[str, Any]:
    return {"released-target": ReleasedTarget}


@final
class ReleasedTarget(localplug.TargetGenerator):
    """A random target for each class and unit: t = scale y* P.

    A convolution has a target of its own at each place of its feature map; any other unit the same at every position.

    Args:
        scale: standard deviation of a target, in activation units, > 0.

    Raises:
        ValueError: scale is not positive.

    Example:
        >>> import torch
        >>> import localplug
        >>> layer = torch.nn.Linear(4, 7)
        >>> unit = localplug.Unit(0, "layer", layer, list(layer.parameters()))
        >>> ReleasedTarget().generate(torch.eye(3), torch.zeros(3, 7), unit=unit, seed=0).shape
        torch.Size([3, 7])
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"released-target: scale must be positive, got {scale!r}")
        self.scale = float(scale)

    def generate(
        self, targets_BK: torch.Tensor, output: torch.Tensor, *, unit: localplug.Unit, seed: int
    ) -> torch.Tensor:
        B, K = targets_BK.shape
        shape = output.shape[1:] if unit.keeps_map else (*[1] * (output.dim() - 2), output.shape[-1])
        D = torch.Size(shape).numel()
        stream = localplug.noise.stream(seed, 0, 0, f"released-target {unit.key}")
        P_KD = localplug.noise.normal(stream, 0, K * D, output.device).view(K, D)
        t_BD = self.scale * (targets_BK @ P_KD)
        return t_BD.to(output.dtype).view(B, *shape).expand_as(output)
