"""The kernels as operators of torch, localplug_ternary::linear and ::dense: torch.compile keeps a model one graph round them.

Outside a compiled graph the functions themselves are called, which takes less time. Neither has gradients.
"""

import torch
from torch import Tensor

from localplug_ternary.kernels.dense import dense
from localplug_ternary.kernels.kept import prepared_of
from localplug_ternary.kernels.product import linear

_HERE = "localplug_ternary"
OPERATORS = (f"{_HERE}::linear", f"{_HERE}::dense")

torch.library.define(f"{_HERE}::linear", "(Tensor x, Tensor codes, Tensor scales, Tensor? bias, int group) -> Tensor")
torch.library.define(f"{_HERE}::dense", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@torch.library.impl(f"{_HERE}::linear", "CPU")
def _linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, group: int) -> Tensor:
    return linear(x, prepared_of(codes, scales, bias, group))


@torch.library.impl(f"{_HERE}::dense", "CPU")
def _dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return dense(x, weight, bias)


@torch.library.register_fake(f"{_HERE}::linear")
def _(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, group: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], codes.shape[0])


@torch.library.register_fake(f"{_HERE}::dense")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
