"""What a ternary quantizer is, and what every one needs: groups along a row, codes and scales, the straight-through estimator.

Letters: w the latent weight of one layer (N outputs, K inputs), t in {-1, 0, 1} its codes, s one scale for each group of
g inputs of a row (G = K / g groups), A = s t the ternary weight, C what a quantizer adds to the bias of each output:

    y = x A^T + C + b

Scales are rounded to float16 before they are used, in training as in the packed layer, so that both compute with the same
numbers; what a quantizer decides by comparing with s is decided before the rounding.
"""

import abc
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor


class Ternary(NamedTuple):
    """A layer's weight, quantized: codes t, scales s and the bias C."""

    codes: Tensor
    """t, int8, (N, K)."""
    scales: Tensor
    """s, float16, (N, G)."""
    bias: Tensor | None
    """C, (N,), in float32 at least; None where the quantizer has none."""


class Quantizer(abc.ABC):
    """How latent weights become ternary, and what training computes with until then.

        y = x A^T + C + b,   A = s t

    A plugin gives its class by the hook `localplug_quantizers`; `localplug.quantizer(name, group_size=128)` makes it, and so
    does localplug-ternary's `TernaryConfig(name, group_size=128)`. The class takes `group_size` and options of its own by
    keyword, options that JSON has: numbers, strings, booleans or None. One object serves all layers of a model, and is copied
    and pickled with them: it holds its options and no tensors, and draws no random numbers.

    Example:
        >>> import torch
        >>> from localplug import Quantizer, Ternary, grouped, straight_through, ternary
        >>> class Sign(Quantizer):
        ...     '''s = mean |w|, t = sign(w).'''
        ...     def __init__(self, group_size: int | None) -> None:
        ...         self.group_size = group_size
        ...     def quantize(self, w_NK: torch.Tensor) -> Ternary:
        ...         w_NGg = grouped(w_NK, self.group_size)
        ...         return ternary(w_NGg.sign(), w_NGg.abs().mean(-1))
        ...     def latent(self, w_NK: torch.Tensor, progress: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        ...         return straight_through(w_NK, self.quantize(w_NK)), None
        ...     def is_ternary(self, progress: float) -> bool:
        ...         return True
        >>> Sign(group_size=None).quantize(torch.tensor([[1.0, -0.5]])).codes.tolist()
        [[1, -1]]
    """

    has_bias: ClassVar[bool] = False
    """Whether C exists."""
    is_scheduled: ClassVar[bool] = False
    """Whether training computes with more than A, depending on how far it is."""
    group_multiple: ClassVar[int] = 1
    """What the inputs of a layer must be a multiple of."""
    group_size: int | None
    """g, inputs that share a scale; None for one group a row. Set by `__init__`."""

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
    """In float32 at least: a mean of 256 magnitudes in bfloat16 has two digits.

    Example:
        >>> import torch
        >>> wide(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return w if w.dtype in (torch.float32, torch.float64) else w.float()


def grouped(w_NK: Tensor, group_size: int | None) -> Tensor:
    """The weight by groups, (N, G, g), in float32 at least and without a gradient.

    Args:
        group_size: g, a divisor of K; None for one group a row.

    Example:
        >>> import torch
        >>> grouped(torch.ones(4, 64), 16).shape, grouped(torch.ones(4, 64), None).shape
        (torch.Size([4, 4, 16]), torch.Size([4, 1, 64]))
    """
    w_NK = wide(w_NK.detach())
    return w_NK.reshape(w_NK.shape[0], -1, group_size or w_NK.shape[1])


def ternary(codes_NGg: Tensor, scales_NG: Tensor, bias_N: Tensor | None = None) -> Ternary:
    """A Ternary with its codes in int8 and its scales in float16.

    Args:
        codes_NGg: numbers in {-1, 0, 1}, of any dtype, by groups as `grouped` makes them.
        scales_NG: of any floating-point dtype.
        bias_N: C, in float32 at least.

    Example:
        >>> import torch
        >>> ternary(torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]]), torch.tensor([[0.5, 2.0]])).codes.tolist()
        [[1, 0, -1, 1]]
    """
    return Ternary(codes_NGg.to(torch.int8).flatten(1), scales_NG.to(torch.float16), bias_N)


def dequantize(codes_NK: Tensor, scales_NG: Tensor, dtype: torch.dtype) -> Tensor:
    """A = s t, (N, K), with one rounding.

    Example:
        >>> import torch
        >>> dequantize(torch.tensor([[1, 0, -1, 1]]), torch.tensor([[0.5, 2.0]]), torch.float32).tolist()
        [[0.5, 0.0, -2.0, 2.0]]
    """
    codes_NGg = codes_NK.reshape(*scales_NG.shape, -1)
    return (codes_NGg.to(dtype) * scales_NG.to(dtype).unsqueeze(-1)).flatten(1)


def straight_through(w_NK: Tensor, made: Ternary) -> Tensor:
    """A, whose gradient is taken for that of w. Exactly A: w + (A - w) would be off by a rounding.

    Example:
        >>> import torch
        >>> w = torch.tensor([[0.9, -0.1]], requires_grad=True)
        >>> straight_through(w, ternary(torch.tensor([[[1, 0]]]), torch.tensor([[0.5]]))).sum().backward()
        >>> w.grad.tolist()
        [[1.0, 1.0]]
    """
    A_NK = dequantize(made.codes, made.scales, w_NK.dtype)
    # torch.compile takes no function with a forward derivative of its own, and makes one operation of this sum
    if torch.compiler.is_compiling():
        return A_NK + (w_NK - w_NK.detach())
    return _StraightThrough.apply(w_NK, A_NK)


def faults(quantizer: Quantizer, made: Ternary, shape: Sequence[int]) -> list[str]:
    """Everything that a quantizer's answer breaks of its contract, so that it cannot be packed; empty for nothing.

    Args:
        made: what `quantizer.quantize` gave.
        shape: (N, K) of the weight that it was given.
    """
    N, K = shape
    g = quantizer.group_size or K
    found = []
    if made.codes.dtype != torch.int8 or tuple(made.codes.shape) != (N, K):
        found.append(f"codes must be int8, {(N, K)}; they are {_said(made.codes)}")
    elif made.codes.numel() and (int(made.codes.min()) < -1 or int(made.codes.max()) > 1):
        found.append(f"codes must be -1, 0 or 1; they go from {int(made.codes.min())} to {int(made.codes.max())}")
    if made.scales.dtype != torch.float16 or tuple(made.scales.shape) != (N, K // g):
        found.append(f"scales must be float16, {(N, K // g)}; they are {_said(made.scales)}")
    elif bool((made.scales < 0).any()):
        found.append("scales must not be negative; turn the signs of the codes")
    if (made.bias is not None) != quantizer.has_bias:
        found.append(f"has_bias is {quantizer.has_bias}, and C is {'None' if made.bias is None else 'given'}")
    elif made.bias is not None and (made.bias.dtype in (torch.float16, torch.bfloat16) or made.bias.shape != (N,)):
        found.append(f"C must have float32 at least, {(N,)}; it is {_said(made.bias)}")
    return found


def _said(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}, {tuple(tensor.shape)}"


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
