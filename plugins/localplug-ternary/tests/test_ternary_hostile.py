"""Packed checkpoints by somebody else: one that does not hold what a packed model has is refused when it is loaded."""

import json
import logging

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from localplug_ternary import TernaryConfig, freeze_, ternarize_

LAYER = "model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "model"
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    freeze_(ternarize_(LlamaForCausalLM(config), TernaryConfig(group_size=64))).save_pretrained(folder)
    return folder, safetensors.torch.load_file(folder / "model.safetensors"), (folder / "config.json").read_text()


@pytest.fixture
def load(saved):
    """load(tensors, options): the saved model after these tensors and options were put in the place of its own."""
    folder, tensors, text = saved

    def load(changed=None, options=None):
        config = json.loads(text)
        config["quantization_config"].update(options or {})
        (folder / "config.json").write_text(json.dumps(config))
        safetensors.torch.save_file({**tensors, **(changed or {})}, folder / "model.safetensors", {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder)

    return load


@pytest.mark.parametrize(
    "tensor, changed, said",
    [
        ("codes", lambda t: t | 0b11000000, "codes must be 0, 1 or 2, some are 3"),
        ("codes", lambda t: t.to(torch.int16), "codes must be bytes"),
        ("scales", lambda t: t * float("nan"), "scales must be finite"),
        ("scales", lambda t: t + float("inf"), "scales must be finite"),
        ("scales", lambda t: t.to(torch.int32), "scales must be finite"),
        ("bias", lambda t: t * float("nan"), "bias must be finite"),
    ],
)
def test_tensors_that_no_packed_layer_has_are_refused_by_name(load, saved, tensor, changed, said):
    assert load().get_submodule(LAYER).problems() == []
    name = f"{LAYER}.{tensor}"
    with pytest.raises(ValueError, match=f"'{LAYER}' is damaged: {said}"):
        load({name: changed(saved[1][name]).contiguous()})


@pytest.mark.parametrize("tensor", ["codes", "scales"])
def test_tensors_of_another_shape_are_refused(load, saved, tensor, caplog):
    caplog.set_level(logging.CRITICAL, "transformers")
    with pytest.raises(RuntimeError, match="mismatched"):
        load({f"{LAYER}.{tensor}": torch.cat([saved[1][f"{LAYER}.{tensor}"]] * 2).contiguous()})


@pytest.mark.parametrize(
    "options",
    [{"group_size": "x"}, {"group_size": [64]}, {"method": ["a"]}, {"method": "os:system"}, {"modules_to_not_convert": 3},
     {"modules_to_not_convert": [1]}, {"converted": 5}, {"converted": [3]}, {"converted": "lm_head"}, {"lam": float("nan")},
     {"lam": 10**400}, {"progress": None}, {"trainable": {}}, {"unheard_of": 1}, {"options": {"a": [1]}}],
    ids=str,
)  # fmt: skip
def test_options_that_no_configuration_has_are_refused(load, options):
    with pytest.raises(ValueError, match="TernaryConfig: "):
        load(options=options)
