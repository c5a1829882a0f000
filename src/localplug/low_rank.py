"""Layers at weights keep W + sum_k f_k a_k b_k^T, without making the sum: what weights of low rank cost in the forward.

    linear:       y = keep x W^T + bias + ((x B^T) f) A
    embedding:    y = keep W[ids] + (A^T[ids] f) B
    convolution:  y = keep x * W + bias + A^T ((x * B) f)          B as R kernels, A mixing their R channels

A and B hold the a_k and the b_k as their rows: (R, m) and (R, n), W read as a matrix of m = shape[0] rows. The extra work is
R (1/m + 1/n) of the layer's own.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import kernels

EXACT = 4  # terms of a product A B^T that are added one by one: the same bits for any cutting, which a matrix product has not


@final
@dataclasses.dataclass
class Shift:
    """What a weight is read with: keep W + sum_k f_k a_k b_k^T."""

    rows: Tensor
    """a_k, shape (R, m)."""
    columns: Tensor
    """b_k, shape (R, n)."""
    waiting: tuple[float, ...] = ()
    """f_k of the first ones: of updates that the weight has not taken in yet. Those of the directions behind them are given
    for each evaluation."""
    keep: float = 1.0

    @staticmethod
    def along(factors: Sequence[tuple[Tensor, Tensor]]) -> "Shift":
        """Directions alone, each as (A, B) of shapes (m, r) and (n, r)."""
        if len(factors) == 1:
            return Shift(factors[0][0].T, factors[0][1].T)
        return Shift(torch.cat([a.T for a, _ in factors]), torch.cat([b.T for _, b in factors]))


def is_able(module: nn.Module) -> bool:
    """Whether a layer can do this: exactly one of torch's, with nothing put over its forward."""
    if type(module) not in (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d) or "forward" in module.__dict__:
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None  # with it, the forward writes the weight
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return True


def low_rank_forward(
    module: nn.Module, weight: Tensor, shift: Shift, factors: Tensor, *, is_stacked: bool = False
) -> Callable[[Tensor], Tensor]:
    """The layer's forward at the shifted weight; its bias is taken as it stands.

    Args:
        weight: W; the module's own is not read.
        factors: f, float32, shape (R,).
        is_stacked: whether torch.func.vmap is round it, for which the factors differ from slice to slice.
    """
    layer: Any = module

    def linear(x: Tensor) -> Tensor:
        keep = shift.keep
        y = nn.functional.linear(x, weight, layer.bias if keep == 1 else None)
        if keep != 1:
            y = y * keep if layer.bias is None else y * keep + layer.bias
        return _added(y, nn.functional.linear(x, _as(shift.columns, x)), shift.rows)

    def embedding(ids: Tensor) -> Tensor:
        y = nn.functional.embedding(ids, weight)
        return _added(
            y if shift.keep == 1 else y * shift.keep, nn.functional.embedding(ids, shift.rows.T), shift.columns
        )

    def convolution(x: Tensor) -> Tensor:
        keep = shift.keep
        y = layer._conv_forward(x, weight, layer.bias if keep == 1 else None)
        beyond = (1,) * (weight.dim() - 2)
        if keep != 1:
            y = y * keep if layer.bias is None else y * keep + layer.bias.view(-1, *beyond)
        apply: Any = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(beyond)]
        kernel = _as(shift.columns, x).view(-1, *weight.shape[1:])
        p = apply(x, kernel, None, layer.stride, layer.padding, layer.dilation)
        p = (p * factors.view(-1, *beyond)).to(p.dtype)
        return y + apply(p, _as(shift.rows, p).T.reshape(-1, len(shift.rows), *beyond))

    def _added(y: Tensor, p: Tensor, outer: Tensor) -> Tensor:
        """y + (p f) outer; y (..., m), p (..., R), outer (R, m)."""
        p = (p * factors.to(p.dtype) if p.element_size() >= 4 else p.float() * factors).to(y.dtype)
        outer = outer.to(y.dtype)
        if is_stacked:
            added = p @ outer
            try:
                return y.add_(added)
            except RuntimeError:  # x, and so y, is the same for all probes and lacks their dimension
                return y + added
        y.view(-1, y.shape[-1]).addmm_(p.reshape(-1, p.shape[-1]), outer)
        return y

    return linear if isinstance(module, nn.Linear) else embedding if isinstance(module, nn.Embedding) else convolution


def _as(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(like.dtype) if like.is_floating_point() else factor


def scaled_rows(a: Tensor, factor: float) -> Tensor:
    """factor * A^T, the rows that an update adds one by one, rounded once. Shape (r, m)."""
    return a.T * factor


def add_low_rank_(target: Tensor, a: Tensor, b: Tensor, factor: float, offset: int = 0) -> Tensor:
    """target += factor * (A B^T), of the product's elements from `offset` on, row by row.

    Up to rank 4 products are rounded and added one by one, so that any cutting gives the same bits; above, whole rows are a
    matrix product, whose order of summation is the library's own.

    Args:
        target: one-dimensional, contiguous, float32 or float64.
    """
    width = b.shape[0]
    if a.shape[1] <= EXACT:
        rows = scaled_rows(a, factor)
        for k in range(a.shape[1]):
            left, right = rows[k].contiguous(), b[:, k].contiguous()
            if kernels.usable(target):
                kernels.add_outer_(target, left, right, offset)
            else:
                _add_outer_(target, left, right, offset)
        return target
    a, b = a.to(target.dtype), b.to(target.dtype)
    end, position = offset + target.numel(), offset
    while position < end:  # what is left of a row, whole rows, and the beginning of another
        row, column = divmod(position, width)
        num_rows = 1 if column else max((end - position) // width, 1)
        last = min(position + num_rows * width - column, end)
        part = target[position - offset : last - offset].view(num_rows, -1)
        part.addmm_(a[row : row + num_rows], b[column : column + part.shape[1]].T, alpha=factor)
        position = last
    return target


def _add_outer_(target: Tensor, a: Tensor, b: Tensor, offset: int) -> None:
    """The same of one column, in torch operations: no fused multiply and add, whose rounding differs."""
    width, position, end = b.shape[0], offset, offset + target.numel()
    while position < end:
        row, column = divmod(position, width)
        num_rows = 1 if column else max((end - position) // width, 1)
        last = min(position + num_rows * width - column, end)
        part = target[position - offset : last - offset].view(num_rows, -1)
        part.add_(a[row : row + num_rows, None] * b[None, column : column + part.shape[1]])
        position = last


def is_low(a: Tensor, b: Tensor) -> bool:
    """Whether the factors are smaller than what they multiply to."""
    return a.numel() + b.numel() < a.shape[0] * b.shape[0]
