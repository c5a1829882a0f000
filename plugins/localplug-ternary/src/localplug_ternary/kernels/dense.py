"""The product of few tokens with a floating-point weight as it lies in memory, such as that of a head that stays unquantized.

    y = x W^T + bias        sums in float32, rounded once to the dtype of x

One token reads every weight once, so that its product takes as long as the memory needs. torch's own needs longer.
"""

import functools

import torch
from torch import Tensor

from localplug_ternary.kernels import library

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of csrc/dense.h
BODIES = {"avx2": 1, "portable": 0}  # of csrc/dense.c, fastest first


@functools.cache
def dense_bodies() -> tuple[str, ...]:
    """Names of the bodies that this machine can run, fastest first; none without a compiled library."""
    compiled = library.library()
    return tuple(name for name, number in BODIES.items() if compiled and compiled.dense_supports(number))


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, body: str | None = None) -> Tensor:
    """y = x W^T + bias, without gradients.

    Every body gives the same bits, and so does every number of threads and of tokens. With e = 2^-24, y before its one rounding
    is off by at most (K / 64 + 9) e sum_k |w_nk x_k|, of float32 by one e more.

    Args:
        x: float32, bfloat16 or float16 (..., K), on a CPU.
        weight: (N, K) of the same dtype, its rows contiguous.
        bias: of the same dtype, (N,), or None.
        body: one of dense_bodies(); by default the fastest.

    Raises:
        ValueError: shapes, dtypes, devices or the body do not fit; lists all of them.

    Example:
        >>> import torch
        >>> from localplug_ternary import kernels
        >>> if kernels.dense_bodies():
        ...     assert kernels.dense(torch.ones(1, 3), torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[6.0]]
    """
    bodies = dense_bodies()
    if wrong := _problems(x, weight, bias, body, bodies):
        raise ValueError("dense: " + "; ".join(wrong))
    return product(x, weight, bias, BODIES[body or bodies[0]])


def product(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    """dense() of what is known to fit, by the body of this number."""
    compiled = library.library()
    assert compiled is not None
    N, K = weight.shape
    x_MK = x.detach().reshape(-1, K).float().contiguous()
    y = x_MK.new_empty(*x.shape[:-1], N)
    M = x_MK.shape[0]
    arguments = weight.data_ptr(), N, K, weight.stride(0), KINDS[weight.dtype], x_MK.data_ptr(), y.data_ptr(), M
    if M and N and compiled.dense_linear(number, *arguments, torch.get_num_threads()):
        raise MemoryError(f"no memory for {M} tokens of {K} features")
    if bias is not None:
        y += bias.detach()
    return y.to(x.dtype)


def _problems(x: Tensor, weight: Tensor, bias: Tensor | None, body: str | None, bodies: tuple[str, ...]) -> list[str]:
    wrong = []
    if not bodies:
        wrong.append("there is no compiled library; torch.nn.functional.linear does the same")
    elif body is not None and body not in bodies:
        wrong.append(f"body must be one of {', '.join(bodies)} here, got {body!r}")
    if weight.dim() != 2 or 0 in weight.shape or weight.dtype not in KINDS or weight.stride(1) != 1:
        wrong.append(
            "weight must be float32, bfloat16 or float16 (N, K) with contiguous rows, got "
            f"{weight.dtype} {tuple(weight.shape)} of strides {weight.stride()}"
        )
    elif x.dtype != weight.dtype or x.shape[-1:] != weight.shape[1:]:
        wrong.append(f"x must be {weight.dtype} (..., {weight.shape[1]}), got {x.dtype} {tuple(x.shape)}")
    if bias is not None and (bias.dtype != weight.dtype or bias.shape != weight.shape[:1]):
        wrong.append(f"bias must be {weight.dtype} ({weight.shape[0]},), got {bias.dtype} {tuple(bias.shape)}")
    if away := sorted({str(t.device) for t in (x, weight, bias) if t is not None and t.device.type != "cpu"}):
        wrong.append(f"x, weight and bias must be on a CPU, got {', '.join(away)}")
    return wrong
