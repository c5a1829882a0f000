"""PackedTernaryLinear: two bits a weight. What a byte holds is fixed here; kernels and exporters read the same bytes.

Byte j of a row holds inputs 4j to 4j + 3, input 4j + i in the bits 2i and 2i + 1, as its code + 1 (0, 1 or 2).
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import dequantize
from localplug.quantizers import faults
from localplug_ternary import kernels
from localplug_ternary.latent import TernaryLinear, whole_bias


def pack(codes_NK: Tensor) -> Tensor:
    """uint8, (N, K / 4), of codes in {-1, 0, 1}.

    Example:
        >>> import torch
        >>> pack(torch.tensor([[1, 0, -1, 0]])).tolist() == [[2 + (1 << 2) + (0 << 4) + (1 << 6)]]
        True
    """
    u_NJ4 = (codes_NK + 1).to(torch.uint8).reshape(codes_NK.shape[0], -1, 4)
    return u_NJ4[..., 0] | u_NJ4[..., 1] << 2 | u_NJ4[..., 2] << 4 | u_NJ4[..., 3] << 6


def unpack(bytes_NJ: Tensor) -> Tensor:
    """int8 codes, (N, K)."""
    codes_NJ4 = torch.stack([bytes_NJ >> 2 * i & 3 for i in range(4)], dim=-1)
    return codes_NJ4.flatten(1).to(torch.int8) - 1


@final
class PackedTernaryLinear(nn.Module):
    """A Linear of packed ternary weights; nothing in it trains but, if asked for, its scales and its bias.

        y = x (s t)^T + (C + b)

    The forward pass unpacks the weight and drops it again; so does the backward pass, which needs it for inputs that train,
    such as those of adapters below.

    Args:
        in_features: K, a multiple of 4 and of group_size.
        out_features: N.
        bias: whether C or b exist.
        group_size: g, inputs that share a scale; None for a whole row.
        trains_scales: scales and bias are parameters that train, in float32.
        int8_activations: at inference on a CPU, use the compiled kernel where there is one. It rounds each token's
            activations to 8 bits.
        is_transposed: it stands for a Conv1D of transformers, which it becomes again when it is dequantized.
        device: of the tensors.

    Casting the model (`.to(torch.bfloat16)`) leaves the scales and the bias as they are stored. Outputs have the inputs' dtype.

    Example:
        >>> import torch
        >>> from localplug_ternary.latent import TernaryLinear
        >>> from localplug_ternary.tequila import Tequila
        >>> latent = TernaryLinear(8, 4, method=Tequila(group_size=None))
        >>> packed = PackedTernaryLinear.of(latent)
        >>> torch.equal(packed(torch.ones(2, 8)), latent(torch.ones(2, 8)))
        True
    """

    codes: Tensor
    """uint8, (N, K / 4)."""
    scales: nn.Parameter
    """float16, (N, K / g); float32 where they train."""
    bias: nn.Parameter | None
    """C + b, float32, (N,)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        group_size: int | None = None,
        trains_scales: bool = False,
        int8_activations: bool = False,
        is_transposed: bool = False,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.int8_activations, self.is_transposed = int8_activations, is_transposed
        num_groups = in_features // (group_size or in_features)
        codes = torch.full((out_features, in_features // 4), 0b01010101, dtype=torch.uint8, device=device)  # all zeros
        self.register_buffer("codes", codes)
        self.scales = nn.Parameter(
            torch.zeros(out_features, num_groups, dtype=torch.float16, device=device), requires_grad=False
        )
        zeros = torch.zeros(out_features, dtype=torch.float32, device=device)
        self.register_parameter("bias", nn.Parameter(zeros, requires_grad=False) if bias else None)
        if trains_scales:
            self.train_scales_()
        self.code_shift: Callable[[Tensor], object] | None = None
        """Changes the codes in place, as float32, whenever they are unpacked; nothing outside an evaluation of TernarySigns."""

    @classmethod
    def of(cls, latent: TernaryLinear, **options: Any) -> "PackedTernaryLinear":
        """What a latent layer has become.

        Raises:
            ValueError: its scales have no float16, or its method answers with something else than codes and scales.
        """
        made = latent.method.quantize(latent.weight)
        if wrong := faults(latent.method, made, latent.weight.shape):  # a plugin's may
            raise ValueError(f"its method {type(latent.method).__name__} breaks its contract: {'; '.join(wrong)}")
        bias_N = whole_bias(None if latent.bias is None else latent.bias.detach(), made.bias, torch.float32)
        w_NGg = latent.weight.detach().reshape(*made.scales.shape, -1)
        if not bool(made.scales.isfinite().all()):
            raise ValueError("weights are too large for float16 scales (or not finite)")
        if bool(((made.scales == 0) & (w_NGg != 0).any(-1)).any()):
            raise ValueError("weights are too small for float16 scales (all below 3e-8 in a group)")
        packed = cls(
            latent.in_features,
            latent.out_features,
            bias_N is not None,
            latent.method.group_size,
            is_transposed=latent.is_transposed,
            device=latent.weight.device,
            **options,
        )
        with torch.no_grad():
            packed.codes.copy_(pack(made.codes))
            packed.scales.copy_(made.scales)
            if packed.bias is not None and bias_N is not None:
                packed.bias.copy_(bias_N)
        packed.train(latent.training)
        return packed

    def problems(self) -> list[str]:
        """What is wrong with tensors that came from a file; a packed weight of ours has none of it."""
        if self.codes.is_meta:
            return []
        if self.codes.dtype != torch.uint8:
            return [f"codes must be bytes (uint8), they are {self.codes.dtype}"]
        wrong = []
        if bool((self.codes & self.codes >> 1 & 0b01010101).any()):
            wrong.append("codes must be 0, 1 or 2, some are 3")
        for name, values in (("scales", self.scales), ("bias", self.bias)):
            if values is not None and not (values.is_floating_point() and bool(values.isfinite().all())):
                wrong.append(f"{name} must be finite floating-point numbers")
        return wrong

    @property
    def trains_scales(self) -> bool:
        return self.scales.requires_grad

    def train_scales_(self, trains: bool = True) -> None:
        """Make scales and bias parameters that train, in float32, or again ones that do not, in float16."""
        dtype = torch.float32 if trains else torch.float16
        self.scales = nn.Parameter(self.scales.detach().to(dtype), requires_grad=trains)
        if self.bias is not None:
            self.bias = nn.Parameter(self.bias.detach(), requires_grad=trains)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """A, (N, K)."""
        codes_NK = unpack(self.codes)
        if self.code_shift is None:
            return dequantize(codes_NK, self.scales, dtype)
        t_NK = codes_NK.to(torch.float32)
        self.code_shift(t_NK)
        return dequantize(t_NK, self.scales, torch.float32).to(dtype)

    @property
    def weight(self) -> Tensor:
        """A in float32, made anew at each read, for code that reads a Linear's weight; writing to it changes nothing."""
        return self.dequantized(torch.float32).detach()

    def forward(self, input: Tensor) -> Tensor:
        scales = self.scales
        records = torch.is_grad_enabled() and self.code_shift is None
        learns = records and (input.requires_grad or scales.requires_grad)
        if self.int8_activations and not learns and not scales.requires_grad and self._has_kernel_for(input):
            group = self.group_size or self.in_features
            if torch.compiler.is_compiling():
                y: Tensor = torch.ops.localplug_ternary.linear(input, self.codes, scales, self.bias, group)
                return y
            return kernels.linear(input, kernels.prepared_of(self.codes, scales, self.bias, group))
        bias_N = whole_bias(self.bias, None, input.dtype)
        if not learns:
            return F.linear(input, self.dequantized(input.dtype), bias_N)
        made: Tensor = _Unpacking.apply(input, scales, self.codes, bias_N)
        return made

    def _has_kernel_for(self, input: Tensor) -> bool:
        if torch.jit.is_tracing():  # type: ignore[attr-defined]  # which would keep what the kernel wrote, not the call
            return False
        return input.device.type == "cpu" and self.group_size in (None, 128, 256) and _there_are_kernels()

    def _apply(self, fn: Any, recurse: bool = True) -> "PackedTernaryLinear":
        kept = [(name, p.detach()) for name, p in self.named_parameters(recurse=False)]
        super()._apply(fn, recurse)
        for name, before in kept:
            after = getattr(self, name)
            if after.dtype != before.dtype:
                after.data = before.to(after.device)  # the same Parameter: an optimizer may hold it
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"group_size={self.group_size}{', trains scales' if self.trains_scales else ''}"
        )


@torch.compiler.assume_constant_result
def _there_are_kernels() -> bool:
    """Whether there is something better than unpacking the weights."""
    return kernels.available() != "dequantize"


@final
class _Unpacking(torch.autograd.Function):
    """x (s t)^T + b, which keeps bytes and scales for the backward pass, not the weight."""

    @staticmethod
    def forward(x: Tensor, s_NG: Tensor, bytes_NJ: Tensor, b_N: Tensor | None) -> Tensor:
        return F.linear(x, dequantize(unpack(bytes_NJ), s_NG, x.dtype), b_N)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, s_NG, bytes_NJ, _ = inputs
        ctx.save_for_backward(x if s_NG.requires_grad else None, s_NG, bytes_NJ)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (dy,) = gradients
        x, s_NG, bytes_NJ = ctx.saved_tensors
        dx = ds_NG = db_N = None
        t_NK = unpack(bytes_NJ)
        if ctx.needs_input_grad[0]:
            dx = dy @ dequantize(t_NK, s_NG, dy.dtype)
        if ctx.needs_input_grad[1]:
            dA_NK = dy.flatten(0, -2).T @ x.to(dy.dtype).flatten(0, -2)  # of another dtype under autocast
            ds_NG = (dA_NK * t_NK).reshape(*s_NG.shape, -1).to(s_NG.dtype).sum(-1)
        if ctx.needs_input_grad[3]:
            db_N = dy.flatten(0, -2).sum(0)
        return dx, ds_NG, None, db_N
