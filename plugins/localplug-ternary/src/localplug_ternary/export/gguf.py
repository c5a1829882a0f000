"""GGUF for llama.cpp: ternary layers in TQ2_0, TQ1_0 or Q2_0, their folded biases as biases of its llama architecture.

llama.cpp's llama reads a bias of each of the seven linear layers of a block, if the file has one; transformers' own reader of
GGUF drops them, and does not read Q2_0. A block of TQ2_0 and TQ1_0 holds 256 weights and one scale, so that groups of 128 or 64
do not fit; one of Q2_0 holds 64, so that all groups do.
"""

import copy
import importlib.util
import logging
import os
import pathlib
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from localplug import dequantize
from localplug.errors import LocalPlugError
from localplug_ternary.export import llama
from localplug_ternary.export.blocks import FORMATS, decode, encode, in_blocks
from localplug_ternary.export.plain import config_with_biases, filled
from localplug_ternary.export.source import Source, appearing, bar, meta_copy, read
from localplug_ternary.export.tensors import tensors as tensors_in
from localplug_ternary.export.verify import same, same_names, same_outputs
from localplug_ternary.export.vocabulary import vocabulary
from localplug_ternary.packed import unpack
from localplug_ternary.selection import refuse

logger = logging.getLogger("localplug")

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def gguf(model: PreTrainedModel, tokenizer: Any, out: str | os.PathLike[str], type: str = "TQ2_0") -> pathlib.Path:
    """Write a ternary Llama as GGUF, and compare what was written with it.

    What is not ternary keeps its dtype, but for norms, which become float32. Comparing needs the memory of the full-precision
    model. llama.cpp rounds activations to 8 bits, so that its own outputs differ a little.

    Args:
        model: latent at the end of its training, or packed. TQ2_0 and TQ1_0 hold groups of 256 inputs and whole rows, of
            layers whose inputs are a multiple of 256; Q2_0 holds all groups, of multiples of 64.
        tokenizer: a fast tokenizer of byte-level or sentencepiece pairs. None writes no vocabulary: llama.cpp then takes token
            ids alone.
        out: a new folder. It gets one file, such as model-TQ2_0.gguf.
        type: "TQ2_0", 2.0625 bits a weight, "TQ1_0", 1.6875, which is slower, or "Q2_0", 2.25, which llama.cpp reads since
            2026, and runs slower than TQ2_0 on x86.

    Returns: the file.

    Raises:
        ValueError: lists everything that stands against it; nothing was written then.
        localplug.LocalPlugError: the file does not hold what it should; nothing is left of it then.

    Example:
        >>> import tempfile
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> from localplug_ternary import TernaryConfig, export, ternarize_
        >>> sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = LlamaConfig(vocab_size=8, **sizes)
        >>> model = ternarize_(AutoModelForCausalLM.from_config(config), TernaryConfig(group_size=256))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export.gguf(model, None, folder + "/llama_cpp").name
        'model-TQ2_0.gguf'
    """
    source = read("export.gguf", model, out)
    fields, unfit = ({}, []) if tokenizer is None else vocabulary(tokenizer, source.model.get_input_embeddings())
    refuse("export.gguf", [*source.wrong, *_problems(source, type), *unfit])
    name = f"model-{type}.gguf"
    with appearing(out) as folder:
        _write(source, fields or {"tokenizer_model": "none"}, folder / name, type)
        _verify(source, folder / name, type)
    if any(layer.bias is not None for layer in source.layers.values()):
        logger.info("%s has biases: llama.cpp reads them, transformers' own reader of GGUF drops them", name)
    return pathlib.Path(out, name)


def _problems(source: Source, type: str) -> list[str]:
    wrong = []
    if importlib.util.find_spec("gguf") is None:
        wrong.append('the package gguf is missing: pip install "localplug-ternary[gguf]"')
    if type not in FORMATS:
        wrong.append(f"type must be {', '.join(FORMATS)}, got {type!r}")
    else:
        wrong += _misfits(source, type)
    wrong += llama.problems(source.model)
    unknown = [name for name in (*source.layers, *source.rest) if llama.gguf_name(name) is None]
    if unknown and source.model.config.model_type == "llama":
        wrong.append(f"llama.cpp's llama has no place for {len(unknown)} tensors, such as {unknown[0]!r}")
    if odd := [(name, t.dtype) for name, t in source.rest.items() if t.dtype not in _DTYPES]:
        wrong.append(
            f"{len(odd)} tensors, such as {odd[0][0]!r}, are {odd[0][1]}; float32, float16 and bfloat16 are written"
        )
    return wrong


def _misfits(source: Source, type: str) -> list[str]:
    """Groups and rows that are not whole blocks."""
    wrong, block = [], FORMATS[type].weights
    if broken := [(name, x) for name, x in source.layers.items() if (x.group_size or block) % block]:
        name, layer = broken[0]
        wrong.append(
            f"{len(broken)} layers, such as {name!r}, have a scale for each {layer.group_size} inputs, and {type} has one for "
            f"{block}: train with group_size=256 or None, write type Q2_0, or export it as plain"
        )
    if uneven := [(name, x.in_features) for name, x in source.layers.items() if x.in_features % block]:
        name, K = uneven[0]
        other = "write type Q2_0, whose blocks have 64, " if K % FORMATS["Q2_0"].weights == 0 else ""
        wrong.append(
            f"{len(uneven)} layers, such as {name!r} with {K} inputs, are no multiple of the {block} of a block; {other}leave "
            "them alone by modules_to_not_convert, or export it as plain"
        )
    return wrong


def _written_dtype(t: Tensor) -> torch.dtype:
    return torch.float32 if t.ndim == 1 else t.dtype  # llama.cpp adds and multiplies by vectors in float32


def _rest(source: Source) -> dict[str, Tensor]:
    """Tensors that are not ternary; a head that is the embedding is written once."""
    tied = source.model.config.tie_word_embeddings
    return {name: t for name, t in source.rest.items() if not (tied and name == "lm_head.weight")}


def _there(name: str) -> str:
    """Its name in the file. _problems() has asked whether it has one."""
    there = llama.gguf_name(name)
    assert there is not None, name
    return there


def _ordered(name: str, t_N: Tensor, config: Any) -> Tensor:
    order_N = llama.row_order(name, config, t_N.shape[0])
    return t_N if order_N is None else t_N[order_N.to(t_N.device)]


def _write(source: Source, fields: dict[str, Any], path: pathlib.Path, type: str) -> None:
    import gguf as library

    config = source.model.config
    writer = library.GGUFWriter(path, "llama")
    try:
        llama.write_header(writer, config, type)
        for field, value in fields.items():
            getattr(writer, f"add_{field}")(value)
        for name, t in _rest(source).items():
            ordered = _ordered(name, t, config).detach().cpu().to(_written_dtype(t)).contiguous()
            kind = _DTYPES[ordered.dtype]
            raw = ordered.view(torch.uint8) if kind == "BF16" else ordered
            writer.add_tensor(_there(name), raw.numpy(), raw_dtype=library.GGMLQuantizationType[kind])
        for name, layer in bar(source.layers.items(), f"encode {type}", len(source.layers)):
            codes_NK = _ordered(name, unpack(layer.codes), config)
            scales_NG = _ordered(name, layer.scales.detach(), config)
            there = _there(name)
            # As int8, whose shape the writer takes as it is told; it knows the blocks of uint8 of older types alone.
            raw, number = encode(codes_NK, scales_NG, type).view("int8"), cast(Any, FORMATS[type].number)
            writer.add_tensor(f"{there}.weight", raw, raw_shape=tuple(codes_NK.shape), raw_dtype=number)
            if layer.bias is not None:
                bias_N = _ordered(name, layer.bias.detach(), config).cpu().float().contiguous()
                writer.add_tensor(f"{there}.bias", bias_N.numpy())
        if (factors := llama.rope_factors(source.model)) is not None:
            writer.add_tensor("rope_freqs.weight", factors.float().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _verify(source: Source, path: pathlib.Path, type: str) -> None:
    """Read the file back, into the tensors of an ordinary model too."""
    read_back = tensors_in(path)
    model, tensors = source.model, {}
    expected = {_there(name) for name in _rest(source)}
    for name, layer in bar(source.layers.items(), "verify", len(source.layers)):
        there = _there(name)
        expected |= {f"{there}.weight", *([] if layer.bias is None else [f"{there}.bias"])}
    if (factors := llama.rope_factors(model)) is not None:
        expected.add("rope_freqs.weight")
        same("rope_freqs.weight", torch.from_numpy(read_back["rope_freqs.weight"][1].copy()), factors)
    same_names(set(read_back), expected)
    for name, t in _rest(source).items():
        raw = torch.from_numpy(read_back[_there(name)][1].copy())
        got = _unordered(name, raw.view(torch.bfloat16) if raw.dtype == torch.uint8 else raw, model.config)
        same(name, got, t.to(_written_dtype(t)))
        tensors[name] = got.to(t.dtype)
    for name, layer in source.layers.items():
        there = _there(name)
        kind, raw = read_back[f"{there}.weight"]
        if kind != type:
            raise LocalPlugError(
                f"export: {name!r} reads back as {kind}, not {type}; nothing was kept. Please report this"
            )
        codes_NK, scales_NB = (_unordered(name, t, model.config) for t in decode(raw, type))
        same(f"{name}.codes", codes_NK, unpack(layer.codes))
        same(f"{name}.scales", scales_NB, in_blocks(layer.scales.half(), scales_NB.shape[1]))
        tensors[f"{name}.weight"] = dequantize(codes_NK, scales_NB, model.dtype)
        if layer.bias is not None:
            bias_N = torch.from_numpy(read_back[f"{there}.bias"][1].copy())
            bias_N = _unordered(name, bias_N, model.config)
            same(f"{name}.bias", bias_N, layer.bias.float())
            tensors[f"{name}.bias"] = bias_N.to(model.dtype)
    config, _ = config_with_biases(source)
    if "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors = {name: t.to(model.device) for name, t in tensors.items()}
    same_outputs(model, filled(model, meta_copy(model, copy.deepcopy(config)), tensors), rounds_scales=True)


def _unordered(name: str, t_N: Tensor, config: Any) -> Tensor:
    order_N = llama.row_order(name, config, t_N.shape[0])
    return t_N if order_N is None else t_N[order_N.argsort()]
