"""transformers' own BitNet format: two bits a weight, for models of which each layer has one scale.

    y = x_8 t^T / (a w) + (C + b)        x_8 = x a rounded to 8 bits, a = 127 / max|x| of a token, w = 1 / s

Byte j of a column holds the codes, plus 1, of rows j, j + N / 4, j + 2 N / 4 and j + 3 N / 4, two bits each, the first lowest.
Scales for groups or rows have no place; nor has a model in 16 bits, whose w is too coarse for the s it stands for. What fits: a
model that was ternary with one scale a layer before (weights of BitNet, made ternary by twn, keep their codes and scale).
Transformers computes such layers slowly on a CPU, and compiles them at the first call.
"""

import importlib.util
import os
import pathlib

import torch
from torch import Tensor, nn
from transformers import BitNetQuantConfig, PreTrainedModel

from localplug_ternary.export.plain import config_with_biases, filled, lost_biases
from localplug_ternary.export.source import Source, appearing, meta_copy, read
from localplug_ternary.export.verify import same, same_names, same_outputs
from localplug_ternary.packed import unpack
from localplug_ternary.selection import refuse

_OFF_BY_ACTIVATIONS = 0.1  # of the outputs' norm, for 8 bits an activation; a wrong scale or order is off by far more


def bitnet(model: PreTrainedModel, out: str | os.PathLike[str]) -> pathlib.Path:
    """Write a ternary model in transformers' BitNet format, and compare what was written with it.

    Args:
        model: latent at the end of its training, or packed; in float32, with the same scale all over each layer.
        out: a new folder. It loads without localplug, and needs accelerate for that.

    Returns: the folder.

    Raises:
        ValueError: lists everything that stands against it; nothing was written then.
        localplug.LocalPlugError: the file does not hold what it should; nothing is left of it then.
    """
    from transformers.integrations.bitnet import replace_with_bitnet_linear  # which imports torch's compiler

    source = read("export.bitnet", model, out)
    config, lost = config_with_biases(source)
    refuse("export.bitnet", [*source.wrong, *_problems(source), *lost_biases(source, lost)])
    others = [
        name for name, m in source.model.named_modules() if isinstance(m, nn.Linear) and name not in source.layers
    ]
    config.quantization_config = BitNetQuantConfig(modules_to_not_convert=others)
    with appearing(out) as folder:
        made = replace_with_bitnet_linear(meta_copy(source.model, config), others, config.quantization_config)
        tensors = dict(source.rest)
        for name, layer in source.layers.items():
            tensors[f"{name}.weight"] = pack(unpack(layer.codes))
            tensors[f"{name}.weight_scale"] = _inverse(layer.scales)
            if layer.bias is not None:
                tensors[f"{name}.bias"] = layer.bias.detach()
        filled(source.model, made, tensors).save_pretrained(folder)
        _verify(source, folder)
    return pathlib.Path(out)


def pack(codes_NK: Tensor) -> Tensor:
    """uint8, (N / 4, K), of codes in {-1, 0, 1}.

    Example:
        >>> import torch
        >>> pack(torch.tensor([[1], [0], [-1], [0]])).tolist() == [[2 + (1 << 2) + (0 << 4) + (1 << 6)]]
        True
    """
    u_4JK = (codes_NK + 1).to(torch.uint8).reshape(4, -1, codes_NK.shape[1])
    return u_4JK[0] | u_4JK[1] << 2 | u_4JK[2] << 4 | u_4JK[3] << 6


def _inverse(scales_NG: Tensor) -> Tensor:
    return 1 / scales_NG.detach().half().flatten()[:1].float()


def _problems(source: Source) -> list[str]:
    wrong = []
    if importlib.util.find_spec("accelerate") is None:
        wrong.append("transformers loads this format with accelerate: pip install accelerate")
    if source.model.dtype != torch.float32:
        wrong.append(f"in {source.model.dtype} 1 / s would be rounded; say model.to(torch.float32) first")
    several = [name for name, x in source.layers.items() if x.scales.detach().half().unique().numel() > 1]
    if several:
        wrong.append(
            f"{len(several)} layers, such as {several[0]!r}, have scales that differ, and the format has one for each layer; "
            "export the model as plain or gguf"
        )
    for name, layer in source.layers.items():
        if layer.is_transposed:
            wrong.append(f"{name!r} is a Conv1D, which the format does not know")
        if layer.out_features % 4:
            wrong.append(f"{name!r} has {layer.out_features} outputs; they must be a multiple of 4")
        if not bool(layer.scales.detach().half().any()):
            wrong.append(f"{name!r} has the scale 0, which has no inverse")
    return wrong


def _verify(source: Source, folder: pathlib.Path) -> None:
    from transformers.integrations.bitnet import BitLinear

    model = source.model
    how = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    written = type(model).from_pretrained(folder, **how)
    same_names({n for n, m in written.named_modules() if isinstance(m, BitLinear)}, set(source.layers))
    tensors = written.state_dict()
    for name, t in source.rest.items():
        same(name, tensors[name], t)
    for name, layer in source.layers.items():
        u_JK = tensors[f"{name}.weight"]
        same(f"{name}.codes", torch.cat([u_JK >> 2 * i & 3 for i in range(4)]).to(torch.int8) - 1, unpack(layer.codes))
        same(f"{name}.scales", (1 / tensors[f"{name}.weight_scale"]).half(), layer.scales.half().flatten()[:1])
        if layer.bias is not None:
            same(f"{name}.bias", tensors[f"{name}.bias"], layer.bias)
    with torch.compiler.set_stance("force_eager"):
        same_outputs(model, written, rounds_scales=True, bound=_OFF_BY_ACTIVATIONS)
