"""`localplug export ternary`."""

import importlib
import json
import logging

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from localplug.cli import main
from localplug.errors import LocalPlugError
from localplug_ternary import TernaryConfig, freeze_, ternarize_

gguf_room = importlib.import_module("localplug_ternary.export.gguf")


def saved(folder, group_size=256, tokenizer=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=260, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2
        )
        model = freeze_(ternarize_(LlamaForCausalLM(config), TernaryConfig(group_size=group_size, lam=0.1)))
    model.save_pretrained(folder)
    if tokenizer:
        ids = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        backend = Tokenizer(models.BPE(ids, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    return model.eval()


def test_plain_with_its_tokenizer(tmp_path):
    model = saved(tmp_path / "model")
    assert main(["export", "ternary", str(tmp_path / "model"), "--to", "plain", "--out", str(tmp_path / "out")]) == 0
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(9).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("ab")["input_ids"]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("type", [None, "TQ1_0", "Q2_0"])
def test_gguf(type, tmp_path):
    saved(tmp_path / "model")
    words = ["export", "ternary", str(tmp_path / "model"), "--to", "gguf", "--out", str(tmp_path / "out")]
    assert main([*words, *(["--type", type] if type else [])]) == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f"model-{type or 'TQ2_0'}.gguf"]


def test_what_does_not_fit_is_told_and_ends_with_2(tmp_path, caplog):
    saved(tmp_path / "small", group_size=64)
    saved(tmp_path / "silent", tokenizer=False)
    for name, words in (
        ("small", "a scale for each 64 inputs"),
        ("silent", "has no tokenizer"),
        ("nowhere", "nowhere"),
    ):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "localplug"):
            out = ["--to", "gguf", "--out", str(tmp_path / "out")]
            assert main(["export", "ternary", str(tmp_path / name), *out]) == 2
        assert words in caplog.text
    assert not (tmp_path / "out").exists()


def test_what_does_not_read_back_ends_with_1(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise LocalPlugError("it does not read back")

    saved(tmp_path / "model")
    monkeypatch.setattr(gguf_room, "_verify", fail)
    assert main(["export", "ternary", str(tmp_path / "model"), "--to", "gguf", "--out", str(tmp_path / "out")]) == 1
    assert "it does not read back" in caplog.text and not (tmp_path / "out").exists()


OUT = ["--out", "o"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["other"],
        ["ternary", "m", "--to", "onnx", *OUT],
        ["ternary", "m", "--to", "gguf"],
        ["ternary", "m", "--to", "plain", *OUT, "--type", "TQ2_0"],
    ],
)
def test_wrong_words(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["export", *words])
    assert caught.value.code == 2 and "usage: localplug export" in capsys.readouterr().err
