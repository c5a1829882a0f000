"""What every ternary method shares: groups along a row, codes and scales, the straight-through estimator.

Letters: w the latent weight of one layer (N outputs, K inputs), t in {-1, 0, 1} its codes, s one scale for each group of
g inputs of a row (G = K / g groups), A = s t the ternary weight, C what a method adds to the bias of each output:

    y = x A^T + C + b

Scales are rounded to float16 before they are used, in training as in the packed layer, so that both compute with the same
numbers; what a method decides by comparing with s is decided before the rounding.
"""

import abc
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor


class Ternary(NamedTuple):
    """A layer's weight, quantized."""

    codes: Tensor
    """t, int8, (N, K)."""
    scales: Tensor
    """s, float16, (N, G)."""
    bias: Tensor | None
    """C, (N,), in float32 at least; None where the method has none."""


class TernaryMethod(abc.ABC):
    """How latent weights become ternary, and what training computes with until then."""

    has_bias: ClassVar[bool] = False
    """Whether C exists."""
    is_scheduled: ClassVar[bool] = False
    """Whether training computes with more than A, depending on how far it is."""
    group_multiple: ClassVar[int] = 1
    """What the inputs of a layer must be a multiple of."""
    group_size: int | None
    """g; None for one group a row."""

    @abc.abstractmethod
    def quantize(self, w_NK: Tensor) -> Ternary:
        """Codes, scales and C. No gradient is recorded."""

    @abc.abstractmethod
    def latent(self, w_NK: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
        """The weight and C that training computes with; their gradients reach w.

        Args:
            progress: how much of the training is done, in [0, 1].
        """

    @abc.abstractmethod
    def is_ternary(self, progress: float) -> bool:
        """Whether training computes with A itself there, so that the packed layer gives the same outputs."""


def wide(w: Tensor) -> Tensor:
    """In float32 at least: a mean of 256 magnitudes in bfloat16 has two digits."""
    return w if w.dtype in (torch.float32, torch.float64) else w.float()


def grouped(w_NK: Tensor, group_size: int | None) -> Tensor:
    """(N, G, g), without a gradient."""
    w_NK = wide(w_NK.detach())
    return w_NK.reshape(w_NK.shape[0], -1, group_size or w_NK.shape[1])


def ternary(codes_NGg: Tensor, scales_NG: Tensor, bias_N: Tensor | None = None) -> Ternary:
    """Codes in int8, scales in float16."""
    return Ternary(codes_NGg.to(torch.int8).flatten(1), scales_NG.to(torch.float16), bias_N)


def dequantize(codes_NK: Tensor, scales_NG: Tensor, dtype: torch.dtype) -> Tensor:
    """A = s t, one rounding."""
    codes_NGg = codes_NK.reshape(*scales_NG.shape, -1)
    return (codes_NGg.to(dtype) * scales_NG.to(dtype).unsqueeze(-1)).flatten(1)


def straight_through(w_NK: Tensor, made: Ternary) -> Tensor:
    """A, whose gradient is taken for that of w. Exactly A: w + (A - w) would be off by a rounding."""
    A_NK = dequantize(made.codes, made.scales, w_NK.dtype)
    return _StraightThrough.apply(w_NK, A_NK)


@final
class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, A: Tensor) -> Tensor:
        return A.view_as(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0]
