"""Layers at weights W + sum_k f_k A_k B_k^T, without making the sum: what a direction of rank r costs in the forward.

    linear:       y = x W^T + b + sum_k f_k (x B_k) A_k^T
    embedding:    y = W[ids] + sum_k f_k A_k[ids] B_k^T
    convolution:  y = x * W + b + sum_k f_k A_k (x * B_k)          B_k as r kernels, A_k mixing their r channels

A and B are (m, r) and (n, r), W read as a matrix of m = shape[0] rows. The extra work is r (1/m + 1/n) of the layer's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from localplug import kernels

EXACT = 4  # terms of a product A B^T that are added one by one: the same bits for any cutting, which a matrix product has not

Factors = Sequence[tuple[Tensor, Tensor, float | Tensor]]
"""(A, B, f) of each term. f is a tensor only under torch.func.vmap, where it differs from slice to slice."""


def is_able(module: nn.Module) -> bool:
    """Whether a layer can do this: exactly one of torch's, with nothing put over its forward."""
    if type(module) not in (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d) or "forward" in module.__dict__:
        return False
    if isinstance(module, nn.Embedding):
        return module.max_norm is None  # with it, the forward writes the weight
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return True


def low_rank_forward(module: nn.Module, factors: Factors) -> Callable[[Tensor], Tensor]:
    """The layer's forward at the perturbed weight; its bias is taken as it stands."""
    layer: Any = module

    def linear(x: Tensor) -> Tensor:
        y = nn.functional.linear(x, layer.weight, layer.bias)
        for a, b, f in factors:
            p = nn.functional.linear(x, _as(b, x).T)
            y = _outer_added(y, p, a, f)
        return y

    def embedding(ids: Tensor) -> Tensor:
        y = type(layer).forward(layer, ids)
        for a, b, f in factors:
            y = _outer_added(y, nn.functional.embedding(ids, _as(a, y)), b, f)
        return y

    def convolution(x: Tensor) -> Tensor:
        y = type(layer).forward(layer, x)
        apply = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[layer.weight.dim() - 2]
        for a, b, f in factors:
            kernels = _as(b, x).T.reshape(b.shape[1], *layer.weight.shape[1:])
            p = apply(x, kernels, None, layer.stride, layer.padding, layer.dilation)
            mixed = apply(p, _as(a, p).view(*a.shape, *[1] * (layer.weight.dim() - 2)))
            y = y + mixed * f if isinstance(f, Tensor) else y.add_(mixed, alpha=f)
        return y

    return linear if isinstance(module, nn.Linear) else embedding if isinstance(module, nn.Embedding) else convolution


def _as(factor: Tensor, like: Tensor) -> Tensor:
    return factor.to(like.dtype) if like.is_floating_point() else factor


def _outer_added(y: Tensor, p: Tensor, columns: Tensor, f: float | Tensor) -> Tensor:
    """y + f p columns^T, written into y where that can be; y (..., n), p (..., r), columns (n, r)."""
    p, columns = p.to(y.dtype), columns.to(y.dtype)
    if isinstance(f, Tensor):
        p = p * f.to(y.dtype)
        return y.addcmul(p, columns[:, 0]) if columns.shape[1] == 1 else y + p @ columns.T
    flat, rows = y.view(-1, y.shape[-1]), p.reshape(-1, p.shape[-1])
    if rows.shape[1] == 1:
        flat.addr_(rows[:, 0], columns[:, 0], alpha=f)
    else:
        flat.addmm_(rows, columns.T, alpha=f)
    return y


def add_low_rank_(target: Tensor, a: Tensor, b: Tensor, factor: float, offset: int = 0) -> Tensor:
    """target += factor * (A B^T), of the product's elements from `offset` on, row by row.

    Up to rank 4 products are rounded and added one by one, so that any cutting gives the same bits; above, whole rows are a
    matrix product, whose order of summation is the library's own.

    Args:
        target: one-dimensional, contiguous, float32 or float64.
    """
    width = b.shape[0]
    if a.shape[1] <= EXACT:
        for k in range(a.shape[1]):
            left, right = a[:, k].contiguous(), b[:, k].contiguous()
            if kernels.usable(target):
                kernels.add_outer_(target, left, right, factor, offset)
            else:
                _add_outer_(target, left * factor, right, offset)
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
