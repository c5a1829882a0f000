"""Which layers of a model become ternary, and what stands against it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from localplug_ternary.config import TernaryConfig
from localplug_ternary.dense import DenseLinear
from localplug_ternary.latent import TernaryLinear, linear_weight
from localplug_ternary.packed import PackedTernaryLinear

Filter = Callable[[nn.Module, str], bool]


def selected(model: nn.Module, config: TernaryConfig, filter_fn: Filter | None = None) -> dict[str, nn.Module]:
    """{name: layer} of the layers to convert.

    Subclasses of Linear stay: others read their weights round their forward, as MultiheadAttention does with out_proj.
    """
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, DenseLinear, Conv1D)}
    if config.converted is not None:
        prefix = f"{getattr(model, 'base_model_prefix', '')}."
        # A saved model may be loaded as its base model, or with another head on top.
        wanted = {n for name in config.converted for n in (name, name.removeprefix(prefix), prefix + name)}
        return {name: m for name, m in layers.items() if name in wanted}
    left = left_alone(model)
    # What transformers keeps in float32 has a reader that looks at its dtype, as T5's does at wo.
    patterns = [*(config.modules_to_not_convert or []), *(getattr(model, "_keep_in_fp32_modules", None) or [])]
    return {
        name: m
        for name, m in layers.items()
        if name not in left and should_convert_module(name, patterns) and (filter_fn is None or filter_fn(m, name))
    }


def left_alone(model: nn.Module) -> set[str]:
    """Names of the head: the output embeddings, whatever shares its weight with an embedding, and what comes last."""
    found = {name.rpartition(".")[0] for name in _tied_names(model)}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    give_head: Any = getattr(model, "get_output_embeddings", None)
    head = give_head() if give_head is not None else None
    for name, module in model.named_modules():
        if module is head or id(getattr(module, "weight", None)) in embeddings:
            found.add(name)
    if parameters := list(model.named_parameters()):
        found.add(parameters[-1][0].rpartition(".")[0])
    return found


def _tied_names(model: nn.Module) -> Iterable[str]:
    """Names of parameters that transformers ties, or will tie once a model on the meta device is loaded."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return {*tied.keys(), *tied.values()}


def problems(model: nn.Module, layers: dict[str, nn.Module], config: TernaryConfig) -> list[str]:
    """Everything that stands against converting these layers; empty for nothing."""
    wrong = []
    if there := [n for n, m in model.named_modules() if isinstance(m, TernaryLinear | PackedTernaryLinear)]:
        wrong.append(f"{len(there)} layers are ternary already, such as {there[0]!r}")
    if adapters := [n for n, m in model.named_modules() if hasattr(m, "lora_A")]:
        wrong.append(f"{adapters[0]!r} has adapters; convert the model first, and add adapters then")
    if not layers and not there:
        wrong.append("there is no Linear to convert besides the head")
    wrong += _misfits(layers, config)
    shared: dict[int, list[str]] = {}
    for name, module in layers.items():
        shared.setdefault(id(module.weight), []).append(name)
    wrong += [f"{' and '.join(map(repr, n))} share one weight; leave them alone" for n in shared.values() if len(n) > 1]
    return wrong


def _misfits(layers: dict[str, nn.Module], config: TernaryConfig) -> Iterable[str]:
    multiple = config.make_method().group_multiple
    for name, module in layers.items():
        weight_NK = linear_weight(module)
        K = weight_NK.shape[1]
        if config.group_size is not None and K % config.group_size:
            fitting = [str(g) for g in (256, 128, 64) if K % g == 0]
            hint = (
                f"{' or '.join(fitting)} would divide them, or None" if fitting else "group_size=None takes whole rows"
            )
            yield f"{name!r} has {K} inputs, no multiple of group_size={config.group_size}; {hint}"
        if K % max(multiple, 4):
            yield f"{name!r} has {K} inputs; they must be a multiple of 4"
        if not weight_NK.is_floating_point():
            yield f"{name!r} has weights of {weight_NK.dtype}, no floating point"
        elif not weight_NK.is_meta and not bool(torch.isfinite(weight_NK).all()):
            yield f"{name!r} has weights that are not finite"


def refuse(what: str, wrong: list[str], error: Any = ValueError) -> None:
    """Raise all problems at once, if there are any; long lists are cut."""
    if wrong:
        shown = wrong[:8] + ([f"and {len(wrong) - 8} more"] if len(wrong) > 8 else [])
        raise error(f"{what}: nothing was changed, because " + "; ".join(shown))
