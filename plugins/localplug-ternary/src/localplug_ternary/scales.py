"""Train the scales and biases of a packed model, and nothing else: 1/g + 1/K numbers for each weight.

    y = x (s t)^T + C         with t fixed in its two bits; s (N, K / g) and C (N,) train, in float32

Nothing of the size of the weights exists: no latent weights, no gradient, no optimizer state of theirs. It suits zeroth-order
methods above all, which need forward passes alone. Trained scales fit every format that a packed model has; they are rounded
to float16 when they are written to one that has no more.
"""

from torch import nn

from localplug_ternary.config import config_of
from localplug_ternary.packed import PackedTernaryLinear
from localplug_ternary.selection import refuse


def train_scales_(model: nn.Module, trains: bool = True) -> nn.Module:
    """Make scales and biases of all packed layers the only parameters that train, in place.

    Args:
        trains: False rounds them back to float16, and leaves nothing that trains.

    Returns: the model.

    Raises:
        ValueError: the model has no packed layer.

    Example:
        >>> import torch
        >>> from localplug_ternary import TernaryConfig, ternarize_
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> net = train_scales_(ternarize_(net, TernaryConfig(group_size=64, packed=True)))
        >>> {name: tuple(p.shape) for name, p in net.named_parameters() if p.requires_grad}
        {'0.scales': (32, 1), '0.bias': (32,)}
    """
    layers = [m for m in model.modules() if isinstance(m, PackedTernaryLinear)]
    refuse("train_scales_", [] if layers else ["there is no packed layer; freeze_ makes them"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in layers:
        layer.train_scales_(trains)
    if (config := config_of(model)) is not None:
        config.trainable = "scales" if trains else None
    return model
