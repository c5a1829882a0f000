"""How a Llama of transformers is laid out in GGUF: names, the order of rows of queries and keys, and what the header says.

transformers rotates input i of a head together with input i + d / 2 (d the head's size), llama.cpp with its neighbour: row
2 i + h of a head there is row h d / 2 + i here, of weights, scales and biases alike.
"""

import pathlib
import re
from typing import Any

import torch
from torch import Tensor

from localplug_ternary.export.blocks import FORMATS

_IN_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(name: str) -> str | None:
    """Of a layer, or of a tensor with ".weight" or ".bias"; None where llama.cpp has no place for it.

    Example:
        >>> gguf_name("model.layers.3.mlp.up_proj.bias")
        'blk.3.ffn_up.bias'
    """
    stem, dot, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, dot, kind = name, "", ""
    if (found := _LAYER.fullmatch(stem)) and found[2] in _IN_LAYER:
        return f"blk.{found[1]}.{_IN_LAYER[found[2]]}{dot}{kind}"
    return f"{_OUTSIDE[stem]}{dot}{kind}" if stem in _OUTSIDE else None


def row_order(name: str, config: Any, num_rows: int) -> Tensor | None:
    """For each row in GGUF, which row it is here; None where the order is the same."""
    if not (found := re.search(r"self_attn\.([qk])_proj", name)):
        return None
    heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
    return torch.arange(num_rows).reshape(heads, 2, -1).transpose(1, 2).flatten()


def problems(model: Any) -> list[str]:
    """What keeps a model from being one that llama.cpp calls llama."""
    config = model.config
    if config.model_type != "llama" or type(model).__name__ != "LlamaForCausalLM":
        return [
            f"GGUF is written for LlamaForCausalLM alone, and this is {type(model).__name__} of {config.model_type!r}: "
            "llama.cpp reads no folded biases in other architectures; export it as plain"
        ]
    wrong = []
    if config.hidden_act != "silu":
        wrong.append(f"llama.cpp's llama has the activation silu, the model {config.hidden_act!r}")
    if (kind := config.rope_parameters["rope_type"]) not in ("default", "linear", "llama3"):
        wrong.append(f"rotary embeddings of type {kind!r} are not written; default, linear and llama3 are")
    return wrong


def rope_factors(model: Any) -> Tensor | None:
    """What the frequencies of rotary embeddings are divided by, (d / 2,); None for nothing."""
    embedding = type(model.model.rotary_emb)(model.config)  # in float32, whatever the model was cast to
    base, _ = embedding.compute_default_rope_parameters(model.config)
    factors: Tensor = base / embedding.inv_freq
    return None if bool((factors == 1).all()) else factors


def write_header(writer: Any, config: Any, type: str) -> None:
    """What llama.cpp must know besides tensors and vocabulary."""
    import gguf

    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    writer.add_name(pathlib.PurePath(config.name_or_path).name or "ternary llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(FORMATS[type].file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
