"""The product of a packed ternary weight with int8 activations.

    xs = max_k |x_k| / 127,  q = round(x / xs)                                  activations of one token, half to even
    d_g = sum over group g of (code - 1) q                                      exact, int32
    y = (sum_g d_g s_g) xs + bias                                               float32

All bodies but "dequantize" compute the same q and the same d_g, and add in the same order. "dequantize" computes x W^T + bias
with a floating-point W, without rounding activations.
"""

from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn import functional as F

from localplug_ternary.kernels import library
from localplug_ternary.kernels.layout import Prepared, dequantize

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TINY = 1e-30  # of csrc/quantize.h


def linear(x: Tensor, prepared: Prepared) -> Tensor:
    """y = x W^T + bias with int8 activations, exact integer sums and float32 scaling.

    The error of y_n by the rounding of activations is at most xs / 2 sum_k |w_nk|, xs being max |x| / 127 of the token. A token
    that holds a NaN or an infinity gives NaN in all its outputs; one whose largest value is below 1e-30 counts as 0. Gradients
    reach x as if its activations had not been rounded.

    Args:
        x: float32, bfloat16 or float16 (..., K), on the device of the weight.
        prepared: of prepare.

    Raises:
        ValueError: x has another dtype, device or number of features.

    Example:
        >>> import torch
        >>> from localplug_ternary import kernels
        >>> codes = torch.tensor([[0b10010010]], dtype=torch.uint8)  # +1 -1 0 +1
        >>> weight = kernels.prepare(codes, torch.tensor([[0.5]]), None, group=None)
        >>> kernels.linear(torch.tensor([127.0, 1.0, 3.0, 2.0]), weight).tolist()
        [64.0]
    """
    if x.dtype not in DTYPES or x.shape[-1:] != (prepared.in_features,) or x.device != prepared.codes.device:
        raise ValueError(
            f"linear: x must be float32, bfloat16 or float16 (..., {prepared.in_features}) on {prepared.codes.device}, "
            f"got {x.dtype} {tuple(x.shape)} on {x.device}"
        )
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Product.apply(x, prepared))
    return _product(x, prepared)


def _product(x: Tensor, prepared: Prepared) -> Tensor:
    if prepared.body in library.COMPILED:
        known = (x if x.dtype in library.KINDS else x.float()).contiguous()
        y = known.new_empty((*x.shape[:-1], prepared.out_features))
        library.call(prepared.body, prepared.codes, prepared.scales, prepared.bias, known, y)
        return y if y.dtype == x.dtype else y.to(x.dtype)
    if prepared.body == "int_mm":
        y_MN = _int_mm(x.detach().reshape(-1, prepared.in_features).float(), prepared)
        return y_MN.to(x.dtype).view(*x.shape[:-1], prepared.out_features)
    bias = None if prepared.bias is None else prepared.bias.to(x.dtype)
    return F.linear(x, dequantize(prepared, x.dtype), bias)


def _int_mm(x_MK: Tensor, prepared: Prepared) -> Tensor:
    maximum_M1 = x_MK.abs().amax(-1, keepdim=True)
    is_zero_M1 = maximum_M1 < TINY
    inverse_M1 = torch.full_like(maximum_M1, 127).div(maximum_M1)  # 127 / maximum would be rounded twice
    q_MK = (x_MK * inverse_M1.masked_fill(is_zero_M1, 0)).round().nan_to_num().to(torch.int8)
    xs_M1 = (maximum_M1 / 127).masked_fill(is_zero_M1, 0).masked_fill(~maximum_M1.isfinite(), torch.nan)
    y_MN = x_MK.new_zeros(x_MK.shape[0], prepared.out_features)
    for q_Mg, w_Ng, s_N in zip(
        q_MK.split(prepared.group, 1), prepared.codes, prepared.scales.float().unbind(1), strict=True
    ):
        y_MN += torch._int_mm(q_Mg.contiguous(), w_Ng.t()).float() * s_N
    y_MN *= xs_M1
    return y_MN if prepared.bias is None else y_MN.add_(prepared.bias)


@final
class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, prepared: Prepared) -> Tensor:
        ctx.prepared = prepared
        return _product(x, prepared)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy @ dequantize(ctx.prepared, dy.dtype), None
