"""DenseLinear: a Linear that stays floating-point, and multiplies one token on a CPU as fast as its weight is read."""

from typing import final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from localplug_ternary import kernels

LEAST_WEIGHTS = 1 << 22  # fewer may stay in a cache, where torch's own product is as fast


@final
class DenseLinear(nn.Linear):
    """What a Linear becomes by `speed_up_`: parameters, hooks, state and gradients are a Linear's, one forward pass is not.

        y = x W^T + b        sums in float32, rounded once, as in torch's own product, but added in another order

    The compiled kernel computes one token without gradients on a CPU, of a large weight in the dtype of the token.
    All else is torch's own forward pass.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._fits(input):
            return F.linear(input, self.weight, self.bias)
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.localplug_ternary.dense(input, self.weight, self.bias)
            return y
        return kernels.dense(input, self.weight, self.bias)

    def _fits(self, input: Tensor) -> bool:
        weight, bias = self.weight, self.bias
        tensors = (input, weight) if bias is None else (input, weight, bias)
        return (
            weight.numel() >= LEAST_WEIGHTS
            and input.numel()
            == input.shape[-1]
            == weight.shape[1]  # one token; more share a weight well enough in torch's
            and weight.stride(1) == 1
            and weight.dtype in kernels.DENSE_DTYPES
            and all(t.dtype == weight.dtype and t.device.type == "cpu" for t in tensors)
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]
            and _there_is_a_fast_body()
            and (torch.compiler.is_compiling() or all(_is_memory(t) for t in tensors))
        )


def _is_memory(t: Tensor) -> bool:
    """Neither of a subclass nor of a transformation such as vmap, and without a tangent."""
    return (
        type(t) in (Tensor, nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and forward_ad._current_level < 0
    )


@torch.compiler.assume_constant_result
def _there_is_a_fast_body() -> bool:
    return kernels.dense_bodies()[:1] not in ((), ("portable",))
