"""TernaryLinear: a layer that trains latent weights and computes with ternary ones."""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Quantizer
from localplug_ternary.merging import keep_adapters_beside


@final
class TernaryLinear(nn.Linear):
    """A Linear whose weight is latent: it is made ternary in each forward pass.

        y = x A(w)^T + C(w) + b

    Its parameters are those of the Linear it replaces, under the same names, so that checkpoints of either load into the other.

    Args:
        in_features, out_features, bias, device, dtype: as for Linear.
        method: what A and C are.
        is_transposed: its checkpoints have (inputs, outputs), as those of transformers' Conv1D; only for loading.

    Example:
        >>> import torch
        >>> from localplug_ternary.tequila import Tequila
        >>> layer = TernaryLinear(8, 4, method=Tequila(group_size=None))
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: Quantizer,
        is_transposed: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.method, self.is_transposed = method, is_transposed
        self.progress = 0.0
        """How much of the training is done; localplug_ternary.set_progress_ sets it in all layers."""

    def forward(self, input: Tensor) -> Tensor:
        A_NK, C_N = self.method.latent(self.weight, self.progress)
        return F.linear(input, A_NK, whole_bias(self.bias, C_N, A_NK.dtype))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {type(self.method).__name__.lower()}, group_size={self.method.group_size}"


keep_adapters_beside(TernaryLinear)


def whole_bias(b_N: Tensor | None, C_N: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """C + b, one rounding to `dtype`; None for both being None."""
    both_N = b_N if C_N is None else C_N if b_N is None else C_N + b_N
    return both_N if both_N is None or dtype is None else both_N.to(dtype)


def linear_weight(module: nn.Module) -> Tensor:
    """The weight of a Linear or Conv1D as (outputs, inputs)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(module, nn.Linear) else weight.T
