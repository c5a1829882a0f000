"""Whatever goes through all layers shows how far it is, once it takes longer than a second."""

import importlib

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from localplug_ternary import TernaryConfig, export, freeze_, reconstruct_, report, ternarize_


@pytest.fixture
def bars(monkeypatch):
    """(what it says, how many items went through, of how many) of each bar."""
    shown = []

    def tqdm(items, *, desc, delay, total=None, **options):
        items = list(items)
        assert delay == 1.0 and not options["leave"]
        shown.append((desc, len(items), total))
        return items

    for room in ("convert", "measure", "reconstruct", "export.source"):
        monkeypatch.setattr(importlib.import_module(f"localplug_ternary.{room}"), "tqdm", tqdm)
    return shown


def llama():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
        )


def test_converting_and_measuring(bars):
    model = ternarize_(llama(), TernaryConfig(group_size=64))
    assert bars == [("ternarize", 14, 14)]
    freeze_(model)
    assert bars[1:] == [("pack", 14, 14)]
    report(model)
    assert [name for name, *_ in bars[2:]] == ["measure"]


def test_reconstructing(bars):
    ids = torch.arange(8).view(2, 4)
    reconstruct_(llama(), TernaryConfig(group_size=64), [{"input_ids": ids}, {"input_ids": ids}], steps=1)
    assert bars == [("record", 2, None), ("reconstruct", 2, None)]


def test_exporting(bars, tmp_path):
    model = ternarize_(llama(), TernaryConfig(group_size=64))
    del bars[:]
    export.plain(model, tmp_path / "plain")
    assert [name for name, *_ in bars] == ["read", "dequantize"]
    del bars[:]
    export.gguf(model, None, tmp_path / "gguf", "Q2_0")
    assert [name for name, *_ in bars] == ["read", "encode Q2_0", "verify"] and bars[1][1:] == (14, 14)
