"""GGUF: its bytes, its tensors, its header, that others read it, and what is refused."""

import importlib.util
import struct

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from localplug_ternary import PackedTernaryLinear, TernaryConfig, export, freeze_, ternarize_, train_scales_
from localplug_ternary.export.blocks import FORMATS, decode, encode
from localplug_ternary.export.tensors import tensors

IDS = torch.arange(14).reshape(2, 7)
SIZES = {
    "vocab_size": 40, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5,
}  # fmt: skip
LAYERS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def full(kind=LlamaForCausalLM, config=LlamaConfig, dtype=torch.float32, **sizes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config(**{**SIZES, **sizes})).to(dtype).eval()


def tiny(method="tequila", group_size=256, model=None, **options):
    lam = {"lam": 0.1} if method == "tequila" else {}
    return ternarize_(model or full(**options), TernaryConfig(method, group_size, **lam))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def read(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def in_order_of_llama_cpp(t, name):
    """Rows of queries and keys: the two halves of each head interleaved."""
    if name.endswith(("q_proj", "k_proj")):
        heads = 4 if name.endswith("q_proj") else 2
        t = t.reshape(heads, 2, t.shape[0] // heads // 2, *t.shape[1:]).swapaxes(1, 2).reshape(t.shape)
    return t


def random_codes(N, K):
    return torch.randint(-1, 2, (N, K), generator=torch.Generator().manual_seed(0)).to(torch.int8)


def test_the_bytes_of_tq2_0():
    codes, scales = random_codes(3, 512), torch.tensor([[0.5, 0.25], [1.0, 2.0], [3.0, 4.0]]).half()
    raw = encode(codes, scales, "TQ2_0")
    assert raw.shape == (3, 2 * 66) and raw.dtype == numpy.uint8
    # A block: 64 bytes of codes + 1, then the scale. Byte 32 h + j has weights 128 h + j + 32 i in its bits 2 i, 2 i + 1.
    for n in range(3):
        for b in range(2):
            block = raw[n, 66 * b : 66 * (b + 1)]
            assert block[64:].view(numpy.float16)[0] == scales[n, b].item()
            found = [(block[32 * (k // 128) + k % 32] >> 2 * (k % 128 // 32) & 3) - 1.0 for k in range(256)]
            assert found == codes[n, 256 * b : 256 * (b + 1)].tolist()


def test_the_bytes_of_tq1_0():
    codes, scales = random_codes(2, 256), torch.tensor([[0.5], [0.75]]).half()
    raw = encode(codes, scales, "TQ1_0")
    assert raw.shape == (2, 54)
    # 32 bytes of 5 weights 32 apart, 16 bytes of 5 weights 16 apart, 4 bytes of 4 weights 4 apart. A byte q holds digits of
    # base 3, the first weight's first: digit i is the whole part of 3 (3^i q mod 256) / 256.
    where = [(j, i, j + 32 * i) for j in range(32) for i in range(5)]
    where += [(32 + j, i, 160 + j + 16 * i) for j in range(16) for i in range(5)]
    where += [(48 + j, i, 240 + j + 4 * i) for j in range(4) for i in range(4)]
    assert sorted(k for _, _, k in where) == list(range(256))
    for n in range(2):
        for byte, i, k in where:
            assert 3 * (int(raw[n, byte]) * 3**i % 256) // 256 - 1 == codes[n, k]
        assert raw[n, 52:].view(numpy.float16)[0] == scales[n, 0].item()


def test_the_bytes_of_q2_0():
    codes, scales = random_codes(3, 256), torch.tensor([[0.5, 0.25], [1.0, 2.0], [3.0, 4.0]]).half()  # groups of 128
    raw = encode(codes, scales, "Q2_0")
    assert raw.shape == (3, 4 * 18) and raw.dtype == numpy.uint8
    # A block: the scale, then 16 bytes. Byte j has weights 4 j + i in its bits 2 i, 2 i + 1, as code + 1.
    for n in range(3):
        for b in range(4):
            block = raw[n, 18 * b : 18 * (b + 1)]
            assert block[:2].view(numpy.float16)[0] == scales[n, b // 2].item()
            found = [(block[2 + k // 4] >> 2 * (k % 4) & 3) - 1.0 for k in range(64)]
            assert found == codes[n, 64 * b : 64 * (b + 1)].tolist()


@pytest.mark.parametrize("type", ["TQ2_0", "TQ1_0", "Q2_0"])
def test_blocks_of_zeros_and_scales_of_any_size_keep_their_bits(type):
    codes = random_codes(4, 512)
    codes[1, :256] = 0
    scales = torch.tensor([[6e-8, 65504.0], [0.3, -0.1], [0.0, 1 / 3], [7e-5, 1e-6]]).half()
    back = decode(encode(codes, scales, type), type)
    blocks = 512 // FORMATS[type].weights
    assert torch.equal(back[0], codes) and torch.equal(back[1], scales.repeat_interleave(blocks // 2, 1))
    rows = decode(encode(codes, scales[:, :1], type), type)  # a scale for each row
    assert torch.equal(rows[1], scales[:, :1].expand(4, blocks))


@pytest.mark.parametrize("group_size", [256, None])
@pytest.mark.parametrize("type", ["TQ2_0", "TQ1_0"])
def test_tensors_are_the_packed_layers_bit_by_bit(type, group_size, tmp_path):
    model = freeze_(tiny(group_size=group_size))
    path = export.gguf(model, None, tmp_path / "out", type)
    assert path == tmp_path / "out" / f"model-{type}.gguf" and [path] == list(path.parent.iterdir())
    tensors = read(path)
    assert len(tensors) == 3 + 2 * (2 + 2 * 7)
    for i, block in enumerate(model.model.layers):
        for name, there in LAYERS.items():
            layer, found = block.get_submodule(name), tensors[f"blk.{i}.{there}.weight"]
            assert found.tensor_type.name == type and found.shape.tolist() == [layer.in_features, layer.out_features]
            expected = in_order_of_llama_cpp(layer.dequantized(torch.float32), name)
            assert torch.equal(torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type)), expected)
            bias = tensors[f"blk.{i}.{there}.bias"]
            assert bias.tensor_type.name == "F32" and layer.bias.any()
            assert torch.equal(torch.from_numpy(bias.data.copy()), in_order_of_llama_cpp(layer.bias, name))
        for name, there in {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}.items():
            weight = block.get_submodule(name).weight
            assert torch.equal(torch.from_numpy(tensors[f"blk.{i}.{there}.weight"].data.copy()), weight)
    for name, weight in {"token_embd": model.model.embed_tokens.weight, "output": model.lm_head.weight}.items():
        assert torch.equal(torch.from_numpy(tensors[f"{name}.weight"].data.copy()), weight)


@pytest.mark.parametrize("group_size", [64, 128, 256, None])
def test_q2_0_holds_every_group(group_size, tmp_path):
    model = freeze_(tiny(group_size=group_size))
    path = export.gguf(model, None, tmp_path / "out", "Q2_0")
    assert path.name == "model-Q2_0.gguf"
    found = tensors(path)
    assert len(found) == 3 + 2 * (2 + 2 * 7)
    for i, block in enumerate(model.model.layers):
        for name, there in LAYERS.items():
            layer, (kind, raw) = block.get_submodule(name), found[f"blk.{i}.{there}.weight"]
            N, K = layer.out_features, layer.in_features
            assert kind == "Q2_0" and raw.shape == (N, K // 64 * 18)
            blocks = raw.reshape(N, K // 64, 18)
            scales = numpy.ascontiguousarray(blocks[..., :2]).view(numpy.float16).astype(numpy.float32)
            codes = numpy.stack([blocks[..., 2:] >> 2 * j & 3 for j in range(4)], -1).reshape(N, K // 64, 64)
            weights = torch.from_numpy(((codes.astype(numpy.float32) - 1) * scales).reshape(N, K))
            assert torch.equal(weights, in_order_of_llama_cpp(layer.dequantized(torch.float32), name))
            kind, bias = found[f"blk.{i}.{there}.bias"]
            assert kind == "F32" and torch.equal(torch.from_numpy(bias.copy()), in_order_of_llama_cpp(layer.bias, name))


def test_the_file_of_q2_0_has_the_numbers_of_llama_cpp(tmp_path):
    """Which the gguf package does not know yet: its reader gets as far as the type of the first ternary tensor."""
    path = export.gguf(tiny(group_size=64), None, tmp_path / "out", "Q2_0")
    whole = path.read_bytes()
    head = b"blk.0.attn_q.weight" + struct.pack("<IQQI", 2, 256, 256, 42)
    assert head in whole
    assert b"general.file_type" + struct.pack("<II", 4, 41) in whole
    if "Q2_0" not in gguf.GGMLQuantizationType.__members__:
        with pytest.raises(ValueError, match=r"42\)? is not a valid GGMLQuantizationType"):
            gguf.GGUFReader(path)


@pytest.mark.parametrize("type", ["TQ2_0", "TQ1_0"])
def test_our_reader_reads_as_the_package_does(type, tmp_path):
    path = export.gguf(tiny(dtype=torch.bfloat16), None, tmp_path / "out", type)
    ours, theirs = tensors(path), read(path)
    assert ours.keys() == theirs.keys()
    for name, (kind, array) in ours.items():
        assert kind == theirs[name].tensor_type.name and numpy.array_equal(array, theirs[name].data)
    assert {kind for kind, _ in ours.values()} == {"F32", "BF16", type}


@pytest.mark.parametrize("type", ["TQ2_0", "TQ1_0"])
def test_the_reader_of_transformers_gets_the_same_model(type, tmp_path):
    model = tiny("absmean")
    path = export.gguf(model, None, tmp_path / "out", type)
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert torch.equal(logits(again), logits(model))


def test_the_reader_of_transformers_drops_biases_and_we_say_so(tmp_path, caplog):
    model = tiny()
    with caplog.at_level("INFO", "localplug"):
        path = export.gguf(model, None, tmp_path / "out")
    assert "transformers' own reader of GGUF drops them" in caplog.text
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert again.model.layers[0].mlp.up_proj.bias is None
    assert not torch.allclose(logits(again), logits(model), rtol=1e-3, atol=1e-4)


def test_trained_scales_are_rounded_to_float16(tmp_path):
    model = train_scales_(freeze_(tiny("absmean")))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, PackedTernaryLinear):
                layer.scales.mul_(1.3)
    path = export.gguf(model, None, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert model.model.layers[0].mlp.up_proj.scales.dtype == torch.float32  # the source trains on
    assert not torch.equal(logits(again), logits(model))
    assert torch.equal(logits(again), logits(train_scales_(model, False)))


def test_a_tied_head_is_written_once_and_dtypes_are_kept(tmp_path):
    model = tiny(dtype=torch.bfloat16, tie_word_embeddings=True)
    tensors = read(export.gguf(model, None, tmp_path / "out"))
    assert "output.weight" not in tensors
    found = tensors["token_embd.weight"]
    assert found.tensor_type.name == "BF16" and found.shape.tolist() == [256, 40]
    back = torch.from_numpy(found.data.copy()).view(torch.bfloat16)
    assert torch.equal(back, model.model.embed_tokens.weight)
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


def test_layers_that_are_not_ternary_are_written_as_they_are(tmp_path):
    model = ternarize_(full(), TernaryConfig("twn", modules_to_not_convert=["q_proj"]))
    path = export.gguf(model, None, tmp_path / "out")
    found = read(path)["blk.0.attn_q.weight"]
    weight = model.model.layers[0].self_attn.q_proj.weight.detach()
    assert found.tensor_type.name == "F32"
    assert torch.equal(torch.from_numpy(found.data.copy()), in_order_of_llama_cpp(weight, "q_proj"))
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    assert torch.equal(logits(again), logits(model))


def test_the_header(tmp_path):
    path = export.gguf(tiny(head_dim=128, max_position_embeddings=77), None, tmp_path / "out", "TQ1_0")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    expected = {
        "general.architecture": "llama", "general.file_type": 36, "general.quantization_version": 2,
        "llama.block_count": 2, "llama.context_length": 77, "llama.embedding_length": 256, "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 128,
        "llama.attention.value_length": 128, "llama.rope.dimension_count": 128, "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 40, "tokenizer.ggml.model": "none",
    }  # fmt: skip
    assert {name: fields[name] for name in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_rotary_embeddings_of_llama_3(tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    found = read(export.gguf(tiny(rope_parameters=rope), None, tmp_path / "out"))["rope_freqs.weight"]
    wavelength = 2 * numpy.pi * 500000.0 ** (numpy.arange(0, 64, 2) / 64)
    smooth = (64 / wavelength - 1) / (4 - 1)
    between = 1 / ((1 - smooth) / 8 + smooth)
    expected = numpy.where(wavelength < 64 / 4, 1.0, numpy.where(wavelength > 64, 8.0, between))
    assert len({round(x, 3) for x in expected.tolist()}) > 3  # all three cases
    numpy.testing.assert_allclose(found.data, expected, rtol=1e-4)
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    found = read(export.gguf(tiny(rope_parameters=linear), None, tmp_path / "two"))["rope_freqs.weight"]
    numpy.testing.assert_allclose(found.data, numpy.full(32, 4.0), rtol=1e-6)


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    model = tiny(group_size=64, hidden_act="gelu", hidden_size=192, head_dim=48)
    with pytest.raises(ValueError) as caught:
        export.gguf(model, object(), tmp_path / "out")
    for words in (
        "14 layers, such as 'model.layers.0.self_attn.q_proj', have a scale for each 64 inputs",
        "such as 'model.layers.0.self_attn.q_proj' with 192 inputs, are no multiple of the 256 of a block; write type Q2_0",
        "activation silu, the model 'gelu'",
        "object is no fast tokenizer",
    ):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_type_and_rows_that_q2_0_does_not_hold_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"type must be TQ2_0, TQ1_0, Q2_0, got 'Q4_0'"):
        export.gguf(tiny(), None, tmp_path / "out", "Q4_0")
    odd = tiny(group_size=None, hidden_size=96, head_dim=24)
    with pytest.raises(
        ValueError, match=r"'model\.layers\.0\.self_attn\.q_proj' with 96 inputs.* the 64 of a block; leave"
    ):
        export.gguf(odd, None, tmp_path / "out", "Q2_0")
    assert not list(tmp_path.iterdir())


def test_groups_of_128_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"each 128 inputs, and TQ2_0 has one for 256: train with group_size=256 or None, write type Q2_0",
    ):
        export.gguf(tiny(group_size=128), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_does_not_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"Qwen2ForCausalLM of 'qwen2': llama\.cpp reads no folded biases"):
        export.gguf(tiny(model=full(Qwen2ForCausalLM, Qwen2Config)), None, tmp_path / "out")
    with pytest.raises(ValueError, match="activation silu, the model 'gelu'"):
        export.gguf(tiny(hidden_act="gelu"), None, tmp_path / "out")
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 64}
    with pytest.raises(ValueError, match="rotary embeddings of type 'yarn'"):
        export.gguf(tiny(rope_parameters=yarn), None, tmp_path / "out")
    with pytest.raises(ValueError, match=r"7 .*, are torch\.float64;"):
        export.gguf(tiny(dtype=torch.float64), None, tmp_path / "out")
    odd = tiny()
    odd.model.layers[0].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no place for 2 tensors, such as 'model\.layers\.0\.mlp\.extra\.weight'"):
        export.gguf(odd, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    model, there = tiny(), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else there(name, *rest))
    with pytest.raises(ValueError, match=r'pip install "localplug-ternary\[gguf\]"'):
        export.gguf(model, None, tmp_path / "out")
