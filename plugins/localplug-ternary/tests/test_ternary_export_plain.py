"""The ordinary model: what its weights and biases are, that it answers alike without localplug, and what is refused."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from localplug_ternary import (
    PackedTernaryLinear,
    TernaryConfig,
    export,
    freeze_,
    set_int8_activations_,
    set_progress_,
    ternarize_,
    train_scales_,
    with_lora,
)

IDS = torch.arange(14).reshape(2, 7)
SIZES = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def tiny(method="tequila", kind=LlamaForCausalLM, config=LlamaConfig, sizes=SIZES, dtype=torch.float32, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind._from_config(config(**sizes), dtype=dtype).eval()
    lam = {"lam": 0.1} if method == "tequila" else {}
    ternarize_(model, TernaryConfig(method, **{"group_size": 64, **lam, **options}))
    set_progress_(model, 1.0)
    return model


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def tensors(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("method", ["tequila", "absmean", "twn", "sherry", "annealed"])
@pytest.mark.parametrize("packed", [False, True])
def test_it_answers_alike_bit_by_bit(method, packed, tmp_path):
    model = tiny(method)
    expected = logits(model)
    if packed:
        freeze_(model)
    assert export.plain(model, tmp_path / "out") == tmp_path / "out"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(again), expected)
    assert {type(m) for m in again.modules() if hasattr(m, "in_features")} == {torch.nn.Linear}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["attention_bias"] == config["mlp_bias"] == (method == "tequila")
    assert (tmp_path / "out" / "generation_config.json").exists()


def test_weights_and_biases_are_those_of_the_equations(tmp_path):
    model = tiny(lam=0.25)
    w = model.model.layers[1].mlp.down_proj.weight.detach()
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"))
    groups = w.reshape(64, 2, 64)
    s = groups.abs().mean(-1, keepdim=True)
    t = (groups >= s / 2).float() - (groups <= -s / 2).float()
    layer = again.model.layers[1].mlp.down_proj
    assert torch.equal(layer.weight, (t * s.half().float()).reshape(64, 128))
    torch.testing.assert_close(layer.bias, 0.25 * (groups * (t == 0)).sum((1, 2)), rtol=1e-5, atol=1e-7)
    assert layer.bias.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_keeps_the_dtype(dtype, tmp_path):
    model = freeze_(tiny(dtype=dtype))
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"), dtype="auto")
    assert {t.dtype for t in again.state_dict().values()} == {dtype}
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert torch.equal(logits(again), logits(model))


def test_scales_that_train_are_kept_in_float32(tmp_path):
    model = train_scales_(freeze_(tiny()))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, PackedTernaryLinear):
                layer.scales.mul_(1.0001)  # half a step of float16
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"))
    assert torch.equal(logits(again), logits(model))
    train_scales_(model, False)
    assert not torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("tied", [False, True])
def test_layers_that_are_not_ternary_get_biases_of_zero(tied, tmp_path):
    model = tiny(modules_to_not_convert=["o_proj"], sizes={**SIZES, "tie_word_embeddings": tied})
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"))
    attention = again.model.layers[0].self_attn
    assert not attention.o_proj.bias.any() and attention.q_proj.bias.any()
    assert torch.equal(attention.o_proj.weight, model.model.layers[0].self_attn.o_proj.weight)
    assert torch.equal(logits(again), logits(model))
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_conv1d_of_gpt2(tmp_path):
    sizes = {"vocab_size": 40, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = freeze_(tiny(kind=GPT2LMHeadModel, config=GPT2Config, sizes=sizes))
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"))
    assert torch.equal(logits(again), logits(model))
    assert again.transformer.h[0].mlp.c_fc.weight.shape == (64, 256)


def test_the_source_stays_what_it_was(tmp_path):
    model = set_int8_activations_(freeze_(tiny())).train()
    model.model.layers[0].eval()
    training = [m.training for m in model.modules()]
    before, config = tensors(model), copy.deepcopy(model.config.to_dict())
    state = torch.get_rng_state()
    export.plain(model, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.config.to_dict() == config and [m.training for m in model.modules()] == training
    assert all(m.int8_activations for m in model.modules() if isinstance(m, PackedTernaryLinear))


def test_it_loads_where_localplug_is_not(tmp_path):
    model = tiny()
    export.plain(model, tmp_path / "out")
    code = (
        "import sys, torch; sys.modules['localplug'] = sys.modules['localplug_ternary'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'out')!r}).eval()\n"
        "with torch.no_grad(): y = model(torch.arange(14).reshape(2, 7)).logits\n"
        f"torch.save(y, {str(tmp_path / 'y.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=200)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), logits(model), rtol=1e-5, atol=1e-6)


def test_a_class_without_a_place_for_biases_is_refused(tmp_path):
    model = tiny(kind=Qwen2ForCausalLM, config=Qwen2Config)
    with pytest.raises(ValueError, match=r"no place for the folded biases of 8 layers, such as .*o_proj\.bias"):
        export.plain(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    model = tiny("twn", kind=Qwen2ForCausalLM, config=Qwen2Config)  # it folds none
    again = AutoModelForCausalLM.from_pretrained(export.plain(model, tmp_path / "out"))
    assert torch.equal(logits(again), logits(model))


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    model = tiny("annealed")
    set_progress_(model, 0.5)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e8)
    with pytest.raises(ValueError) as caught:
        export.plain(model, tmp_path / "there")
    for words in (
        "exists already",
        "14 layers, such as",
        "set_progress_",
        "'model.layers.0.mlp.up_proj': weights are too large",
    ):
        assert words in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] == ["there", "file"]


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Linear is no model of transformers"):
        export.plain(torch.nn.Linear(4, 4), tmp_path / "out")
    with torch.random.fork_rng():
        full = LlamaForCausalLM(LlamaConfig(**SIZES))
        adapted = get_peft_model(freeze_(tiny()), with_lora(LoraConfig(r=2, target_modules=["q_proj"])))
    with pytest.raises(ValueError, match="no ternary layer"):
        export.plain(full, tmp_path / "out")
    with pytest.raises(ValueError, match="unload adapters of peft"):
        export.plain(adapted, tmp_path / "out")
    with pytest.raises(ValueError, match=r"2 layers, such as '.*q_proj', have adapters"):
        export.plain(adapted.get_base_model(), tmp_path / "out")
    scaled = train_scales_(freeze_(tiny()))
    with torch.no_grad():
        scaled.model.layers[0].mlp.up_proj.scales[0] = 1e6
    with pytest.raises(ValueError, match=r"up_proj' has scales too large for float16"):
        export.plain(scaled, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_will_do(tmp_path):
    (tmp_path / "out").mkdir()
    export.plain(tiny("twn"), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
