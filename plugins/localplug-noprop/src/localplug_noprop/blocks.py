"""The paper's block (NoProp, arXiv:2503.24322, figure 1): logits over the K classes from a noisy label z and the input x.

    x -> embed (convolutions) --\
    z -> linear, ReLU, linear ---+-> concatenated -> linear, ReLU, linear -> logits
    t -> sines, linear, ReLU ---/    (continuous time only)

Any other module whose forward is (z, x) -> logits, or (z, x, t) -> logits in continuous time, takes its place.
Shapes: B examples, D features of z, K classes.
"""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

_FREQUENCIES = 8


@final
class Block(nn.Module):
    """Logits (B, K) from z (B, D), the input x, and the time t (B,) if `takes_time`.

    Args:
        embed: makes (B, embedded) of x; see `convolutions`.
        embedded: how many features that gives, >= 1.
        z_dim: D.
        num_classes: K.
        width: of the hidden layers, >= 1.
        takes_time: whether it is called with t, as networks in continuous time do.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> block = Block(nn.Linear(6, 16), embedded=16, z_dim=3, num_classes=3, width=16)
        >>> block(torch.zeros(2, 3), torch.zeros(2, 6)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        embed: nn.Module,
        *,
        embedded: int,
        z_dim: int,
        num_classes: int,
        width: int = 128,
        takes_time: bool = False,
    ) -> None:
        sizes = {"embedded": embedded, "z_dim": z_dim, "num_classes": num_classes, "width": width}
        if wrong := [f"{name} must be at least 1, got {size!r}" for name, size in sizes.items() if not size >= 1]:
            raise ValueError("Block: " + "; ".join(wrong))
        super().__init__()
        self.embed = embed
        self.of_z = nn.Sequential(nn.Linear(z_dim, width), nn.ReLU(), nn.Linear(width, width))
        self.of_t = nn.Sequential(nn.Linear(2 * _FREQUENCIES, width), nn.ReLU()) if takes_time else None
        parts = embedded + width * (2 if takes_time else 1)
        self.of_all = nn.Sequential(nn.Linear(parts, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, z_BD: Tensor, x: Tensor, t_B: Tensor | None = None) -> Tensor:
        return self.fuse(z_BD, self.embed(x), t_B)

    def fuse(self, z_BD: Tensor, embedded_BE: Tensor, t_B: Tensor | None = None) -> Tensor:
        """What is left to do where `embed` has seen x already: a prediction in continuous time does so once."""
        parts = [embedded_BE, self.of_z(z_BD)]
        if self.of_t is not None:
            if t_B is None:
                raise TypeError("this block takes the time t: Block(takes_time=True) is for continuous time")
            k = 2 * math.pi * torch.arange(1, _FREQUENCIES + 1, device=t_B.device, dtype=t_B.dtype)
            angles = t_B[:, None] * k / 2
            parts.append(self.of_t(torch.cat([angles.sin(), angles.cos()], 1)))
        return self.of_all(torch.cat(parts, 1))


def convolutions(
    image: tuple[int, int, int] = (1, 28, 28),
    *,
    channels: Sequence[int] = (16, 32),
    width: int = 128,
    batch_norm: bool = False,
) -> nn.Sequential:
    """An `embed` for images: 3x3 convolutions, each followed by ReLU and a 2x2 maximum, then a linear layer; (B, width).

    Args:
        image: (channels, height, width) of x.
        channels: output channels of each convolution.
        width: features that it gives.
        batch_norm: whether batch normalisation follows each convolution. (In the paper only in discrete time.)

    Raises:
        ValueError: so many halvings leave nothing of the image.

    Example:
        >>> convolutions((1, 8, 8), channels=(2, 4), width=5)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 5])
    """
    before, height, breadth = image
    layers: list[nn.Module] = []
    for num in channels:
        layers.append(nn.Conv2d(before, num, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(num))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        before, height, breadth = num, height // 2, breadth // 2
    if not height * breadth:
        raise ValueError(
            f"{len(channels)} halvings leave nothing of an image of {image[1]} x {image[2]}; use fewer channels"
        )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * breadth, width), nn.ReLU())
