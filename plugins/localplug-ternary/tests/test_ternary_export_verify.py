"""What is written wrongly is found, and nothing is left of it."""

import importlib
import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from localplug.errors import LocalPlugError
from localplug_ternary import PackedTernaryLinear, TernaryConfig, export, freeze_, ternarize_
from localplug_ternary.export.verify import same, same_outputs

gguf_room = importlib.import_module("localplug_ternary.export.gguf")


def tiny(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=24, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2, **options
        )
        return ternarize_(LlamaForCausalLM(config).eval(), TernaryConfig(lam=0.1))


@pytest.mark.parametrize("name", ["up_proj.weight", "up_proj.bias", "norm.weight", "embed_tokens.weight"])
def test_a_bit_that_changes_in_the_plain_file_is_found(name, tmp_path, monkeypatch):
    save = PreTrainedModel.save_pretrained

    def save_wrongly(self, folder, *rest, **options):
        save(self, folder, *rest, **options)
        path = pathlib.Path(folder) / "model.safetensors"
        tensors = load_file(path)
        key = next(k for k in tensors if k.endswith(name))
        tensors[key].view(torch.int32).flatten()[3] ^= 1
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_wrongly)
    with pytest.raises(LocalPlugError, match=rf"{name}' does not read back as it was; nothing was kept"):
        export.plain(tiny(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("place", "what"), [(0, "codes"), (64, "scales")])
def test_a_byte_that_changes_in_a_block_is_found(place, what, tmp_path, monkeypatch):
    encode = gguf_room.encode

    def encode_wrongly(*given):
        raw = encode(*given)
        raw[5, place] ^= 1
        return raw

    monkeypatch.setattr(gguf_room, "encode", encode_wrongly)
    with pytest.raises(LocalPlugError, match=rf"q_proj\.{what}' does not read back"):
        export.gguf(tiny(), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_is_missing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_room, "_write", _without_norm(gguf_room._write))
    with pytest.raises(LocalPlugError, match=r"missing .*: output_norm\.weight"):
        export.gguf(tiny(), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def _without_norm(write):
    def wrongly(source, *rest):
        kept = dict(source.rest)
        norm = source.rest.pop("model.norm.weight")
        try:
            write(source, *rest)
        finally:
            source.rest.clear()
            source.rest.update(kept)
        assert norm is kept["model.norm.weight"]

    return wrongly


def test_any_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_room, "_verify", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export.gguf(tiny(), None, tmp_path / "deep" / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["deep"]


def test_outputs_that_differ_are_found():
    source, other = freeze_(tiny()), freeze_(tiny())
    same_outputs(source, other, rounds_scales=False)
    layer = other.model.layers[0].mlp.up_proj
    assert isinstance(layer, PackedTernaryLinear)
    with torch.no_grad():
        layer.bias.add_(0.1)
    with pytest.raises(LocalPlugError, match="outputs are off by"):
        same_outputs(source, other, rounds_scales=False)
    with torch.no_grad():
        layer.bias.fill_(float("nan"))
    with pytest.raises(LocalPlugError, match="outputs are off by nan"):
        same_outputs(source, other, rounds_scales=False)


def test_bits_are_compared_not_values():
    same("x", torch.tensor([0.0, float("nan")]), torch.tensor([0.0, float("nan")]))
    for got, expected in (([0.0], [-0.0]), ([0.0], [0.0, 0.0])):
        with pytest.raises(LocalPlugError):
            same("x", torch.tensor(got), torch.tensor(expected))
    with pytest.raises(LocalPlugError):
        same("x", torch.zeros(1), torch.zeros(1).half())
