"""An ordinary Hugging Face model of the same outputs, that loads without localplug.

    y = x A^T + (C + b)        A = s t in the model's dtype; C + b becomes a Linear's ordinary bias

The class must have a place for the biases: a Llama has, with attention_bias and mlp_bias in its configuration.
"""

import copy
import os
import pathlib
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from localplug_ternary import quantizer
from localplug_ternary.export.source import Source, appearing, bar, meta_copy, own_buffers, read, set_buffers
from localplug_ternary.export.verify import same, same_names, same_outputs
from localplug_ternary.selection import refuse

_BIAS_OPTIONS = ("attention_bias", "mlp_bias")


def plain(model: PreTrainedModel, out: str | os.PathLike[str]) -> pathlib.Path:
    """Write a ternary model as an ordinary one, of full size, and compare what was written with it.

    Writing needs the memory of the full-precision model, once for it and once more to read it back.

    Args:
        model: latent at the end of its training, or packed.
        out: a new folder. It gets the weights, config.json and generation_config.json; no tokenizer.

    Returns: the folder.

    Raises:
        ValueError: lists everything that stands against it; nothing was written then.
        localplug.LocalPlugError: the file does not hold what it should; nothing is left of it then.

    Example:
        >>> import tempfile
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> from localplug_ternary import TernaryConfig, export, ternarize_
        >>> sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> config = LlamaConfig(vocab_size=8, **sizes)
        >>> model = ternarize_(AutoModelForCausalLM.from_config(config), TernaryConfig(group_size=64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export.plain(model, folder + "/plain")
        ...     AutoModelForCausalLM.from_pretrained(written).model.layers[0].mlp.up_proj
        Linear(in_features=64, out_features=64, bias=True)
    """
    source = read("export.plain", model, out)
    config, lost = config_with_biases(source)
    wrong = [*source.wrong, *lost_biases(source, lost)]
    refuse("export.plain", wrong)
    with appearing(out) as folder:
        dense(source, config).save_pretrained(folder)
        _verify(source, config, folder)
    return pathlib.Path(out)


def config_with_biases(source: Source) -> tuple[Any, list[str]]:
    """The configuration of the ordinary model, and names of biases that it has no place for even so."""
    config = copy.deepcopy(source.model.config)
    parts: list[Any] = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    for part in parts:
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    config.dtype = source.model.dtype
    lost = _lost(source, config)
    for option in _BIAS_OPTIONS:
        if lost and getattr(config, option, None) is False:
            setattr(config, option, True)
            left = _lost(source, config)
            if len(left) == len(lost):
                setattr(config, option, False)
            lost = left
    return config, lost


def _lost(source: Source, config: Any) -> list[str]:
    known = meta_copy(source.model, config).state_dict().keys()
    biases = [f"{name}.bias" for name, layer in source.layers.items() if layer.bias is not None]
    return [name for name in biases if name not in known]


def lost_biases(source: Source, lost: list[str]) -> list[str]:
    """The problem in words."""
    if not lost:
        return []
    return [
        f"{type(source.model).__name__} has no place for the folded biases of {len(lost)} layers, such as {lost[0]!r}; "
        "methods other than tequila make none, and a Llama has a place for all"
    ]


def dense(source: Source, config: Any) -> PreTrainedModel:
    """The ordinary model. What is not ternary shares its memory with the source."""
    made = meta_copy(source.model, config)
    tensors = dict(source.rest)
    for name, layer in bar(source.layers.items(), "dequantize", len(source.layers)):
        linear = quantizer.plain(layer, source.model.dtype)
        tensors |= {f"{name}.{key}": t for key, t in linear.state_dict().items()}
    return filled(source.model, made, tensors)


def filled(model: PreTrainedModel, made: PreTrainedModel, tensors: dict[str, Tensor]) -> PreTrainedModel:
    """Give a model without memory its tensors; biases that none of them is are zero."""
    for name, t in made.state_dict().items():
        if name.endswith(".bias") and name not in tensors:
            tensors[name] = torch.zeros(t.shape, dtype=model.dtype, device=model.device)
    made.load_state_dict(tensors, assign=True)
    set_buffers(made, own_buffers(model))
    made.tie_weights()
    made.generation_config = copy.deepcopy(model.generation_config)
    return made


def _verify(source: Source, config: Any, folder: pathlib.Path) -> None:
    how = {"dtype": source.model.dtype, "attn_implementation": source.model.config._attn_implementation}
    written = type(source.model).from_pretrained(folder, **how)
    tensors = written.state_dict()
    expected = meta_copy(source.model, config).state_dict()
    same_names(set(tensors), set(expected))
    for name, t in source.rest.items():
        same(name, tensors[name], t.to(tensors[name].dtype))
    for name, layer in source.layers.items():
        linear = quantizer.plain(layer, source.model.dtype)
        for key, t in linear.state_dict().items():
            same(f"{name}.{key}", tensors[f"{name}.{key}"], t)
    same_outputs(source.model, written, rounds_scales=False)
