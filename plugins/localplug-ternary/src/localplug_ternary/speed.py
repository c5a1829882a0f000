"""speed_up_: what makes decoding on a CPU faster without another number in it, but for the order of sums."""

from collections import Counter
from collections.abc import Iterable

from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from localplug_ternary import attention
from localplug_ternary.dense import LEAST_WEIGHTS, DenseLinear
from localplug_ternary.kernels import huge_pages


def speed_up_(model: nn.Module, on: bool = True) -> nn.Module:
    """Let a model decode faster on a CPU, or as before, in place.

    Three things change, and outputs by no more than another order of sums does:

    - A Linear that is not ternary, such as the head, becomes a `DenseLinear`: its forward pass of one token, without gradients,
      runs in the compiled kernel. It is the same module with the same parameters, also tied ones, hooks and state.
    - Its weight moves into huge pages, if Linux has some to give: where it lies, or, of a mapped file, as a copy.
    - Of a transformers model, sdpa's attention of one token reads the keys and values of grouped queries once.

    It is no part of a checkpoint: call it again after loading. It leaves activations as they are; `set_int8_activations_` lets
    the ternary layers use their kernel, which most of the time of a token is for.

    Args:
        model: packed or not, any model with Linear layers. Layers of subclasses of Linear stay as they are.
        on: False undoes it, but for the pages.

    Returns: the model.

    Example:
        >>> import torch
        >>> from localplug_ternary import speed_up_
        >>> net = speed_up_(torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()))
        >>> isinstance(net[0], torch.nn.Linear), list(net.state_dict())
        (True, ['0.weight', '0.bias'])
    """
    kinds = (nn.Linear, DenseLinear) if on else (DenseLinear, nn.Linear)
    layers = [layer for layer in model.modules() if type(layer) is kinds[0]]
    owners = Counter(p.data_ptr() for p in model.parameters())  # each parameter once
    for layer in tqdm(layers, desc="speed up", unit="layer", delay=1.0, leave=False):
        layer.__class__ = kinds[1]
        if on and layer.weight.numel() >= LEAST_WEIGHTS:
            _into_huge_pages(layer.weight, is_shared=owners[layer.weight.data_ptr()] > 1)
    names = ("sdpa", attention.NAME) if on else (attention.NAME, "sdpa")
    for outer in _outermost(model):
        configs = {id(m.config): m.config for m in outer.modules() if isinstance(m, PreTrainedModel)}
        if all(config._attn_implementation == names[0] for config in configs.values()):
            outer.set_attn_implementation(names[1])
    return model


def _into_huge_pages(weight: nn.Parameter, is_shared: bool) -> None:
    """Where it lies, or else as a copy, unless another parameter is the same memory."""
    if not huge_pages.collapse(weight) and not is_shared:
        weight.data = huge_pages.copied(weight.data)


def _outermost(model: nn.Module) -> Iterable[PreTrainedModel]:
    """Models of transformers that are in no other one."""
    if isinstance(model, PreTrainedModel):
        yield model
    else:
        for child in model.children():
            yield from _outermost(child)
