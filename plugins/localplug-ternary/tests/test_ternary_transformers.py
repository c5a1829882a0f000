"""from_pretrained, save_pretrained, Trainer: the quantizer that transformers knows."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)

from localplug_ternary import (
    PackedTernaryLinear,
    TernaryConfig,
    TernaryLinear,
    TernaryProgress,
    freeze_,
    save_pretrained,
    set_int8_activations_,
    set_progress_,
    ternarize_,
    train_scales_,
)

IDS = torch.arange(14).reshape(2, 7)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A full-precision Llama, with everything in it that is random."""
    path = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=False, pad_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def load(path, *args, **options):
    config = TernaryConfig(
        *args, **{"group_size": 64, "lam": 0.1 if "tequila" in args or not args else None, **options}
    )
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config)


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def count(model, kind):
    return sum(isinstance(m, kind) for m in model.modules())


@pytest.mark.parametrize("method", ["tequila", "absmean", "twn", "sherry", "annealed"])
def test_saved_models_reload_bit_by_bit_latent_and_packed(checkpoint, tmp_path, method):
    model = load(checkpoint, method)
    assert count(model, TernaryLinear) == 14
    set_progress_(model, 1.0 if method in ("sherry", "annealed") else 0.0)
    expected = logits(model)
    model.save_pretrained(tmp_path / "latent")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "latent")
    assert count(again, TernaryLinear) == 14 and torch.equal(logits(again), expected)
    assert all(p.requires_grad for p in again.parameters())
    freeze_(model)
    model.save_pretrained(tmp_path / "packed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert count(again, PackedTernaryLinear) == 14 and torch.equal(logits(again), expected)
    layer = again.model.layers[1].mlp.up_proj
    assert not any(p.requires_grad for p in layer.parameters())
    assert (layer.codes.dtype, layer.scales.dtype) == (torch.uint8, torch.float16)
    small, large = ((tmp_path / n / "model.safetensors").stat().st_size for n in ("packed", "latent"))
    assert small < 0.4 * large
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "twice")), expected)


def test_loading_and_converting_give_the_same_model(checkpoint):
    loaded = load(checkpoint)
    converted = ternarize_(AutoModelForCausalLM.from_pretrained(checkpoint), TernaryConfig(group_size=64, lam=0.1))
    assert torch.equal(logits(loaded), logits(converted))
    assert loaded.config.quantization_config.to_dict() == converted.config.quantization_config.to_dict()
    for name in ("is_quantized", "quantization_method"):
        assert getattr(loaded, name) == getattr(converted, name)
    packed = load(checkpoint, packed=True)
    assert torch.equal(logits(packed), logits(loaded)) and count(packed, PackedTernaryLinear) == 14


def test_what_config_json_says(checkpoint, tmp_path):
    model = ternarize_(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        TernaryConfig(group_size=64),
        filter_fn=lambda layer, name: "mlp" in name,
    )
    expected = logits(model)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "localplug_ternary" and saved["load_with"] == "import localplug_ternary.quantizer"
    assert saved["method"] == "tequila" and len(saved["converted"]) == 6
    again = AutoModelForCausalLM.from_pretrained(tmp_path)  # the filter itself is not saved, its outcome is
    assert count(again, TernaryLinear) == 6 and torch.equal(logits(again), expected)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata()["load_with"] == "import localplug_ternary.quantizer"


def test_in_bfloat16_scales_and_biases_stay_as_stored(checkpoint, tmp_path):
    model = freeze_(load(checkpoint))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    layer, original = again.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.q_proj
    assert again.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.equal(layer.scales, original.scales) and torch.equal(layer.bias, original.bias)
    assert logits(again).dtype == torch.bfloat16
    torch.testing.assert_close(logits(again).float(), logits(model), rtol=0.1, atol=0.02)


def test_a_saved_model_loads_as_base_model_and_under_another_head(checkpoint, tmp_path):
    model = freeze_(load(checkpoint))
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert count(base, PackedTernaryLinear) == 14
    assert torch.equal(base(IDS)[0], model.model(IDS)[0])
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert count(other, PackedTernaryLinear) == 14 and type(other.score) is torch.nn.Linear
    assert torch.equal(other.model(IDS)[0], model.model(IDS)[0])


@pytest.mark.parametrize("packed", [False, True])
def test_conv1d_checkpoints(tmp_path, packed):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=64, n_layer=1, n_head=2, n_positions=16)).eval()
    model.save_pretrained(tmp_path / "plain")
    loaded = load(tmp_path / "plain", "twn", packed=packed)
    expected = logits(ternarize_(model, TernaryConfig("twn", group_size=64)))
    assert torch.equal(logits(loaded), expected)
    loaded.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), expected)
    again.dequantize()
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=1e-6)
    again.save_pretrained(tmp_path / "dequantized")  # square ones would load the wrong way round without a complaint
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "dequantized")), expected, atol=1e-6)


def test_problems_are_listed_when_loading(checkpoint):
    with pytest.raises(
        ValueError, match="'model.layers.0.self_attn.q_proj' has 64 inputs, no multiple of group_size=256; 64 would"
    ):
        load(checkpoint, group_size=256)


def test_dequantized_models_are_plain_and_save(checkpoint, tmp_path):
    model = load(checkpoint)
    expected = logits(model)
    for form in (model, freeze_(load(checkpoint))):
        form.dequantize()
        assert not count(form, TernaryLinear | PackedTernaryLinear)
        assert torch.equal(logits(form), expected)
    form.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)  # folded biases and all: Llama has options for them
    assert torch.equal(logits(plain), expected)


def test_dequantizing_warns_of_biases_that_the_class_has_no_place_for(caplog, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=20, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1,
        )  # fmt: skip
        model = ternarize_(Qwen2ForCausalLM(config), TernaryConfig(group_size=64))
    monkeypatch.setattr(logging.getLogger("localplug"), "propagate", True)
    model.dequantize()
    assert "4 layers have a folded bias now that Qwen2ForCausalLM has no place for" in caplog.text  # o, gate, up, down


def test_a_loaded_model_is_switched_to_the_kernels_and_back(checkpoint, tmp_path):
    model = load(checkpoint, group_size=None, packed=True)
    exact = logits(model)
    set_int8_activations_(model).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.model.layers[0].mlp.up_proj.int8_activations
    torch.testing.assert_close(logits(again), exact, rtol=0.1, atol=0.02)
    assert torch.equal(logits(set_int8_activations_(again, False)), exact)
    with pytest.raises(ValueError, match="no packed layer"):
        set_int8_activations_(load(checkpoint))


def trainer(model, path, callbacks=(), **options):
    data = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)]
    arguments = dict(
        output_dir=str(path), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    return Trainer(
        model=model, args=TrainingArguments(**{**arguments, **options}), train_dataset=data, callbacks=list(callbacks)
    )


def test_the_trainer_trains_latent_models_and_refuses_packed_ones(checkpoint, tmp_path):
    model = load(checkpoint)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer(model, tmp_path).train()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(freeze_(model), tmp_path)
    trainer(train_scales_(model), tmp_path).train()


def test_the_callback_brings_sherry_and_annealed_to_their_end(checkpoint, tmp_path):
    for method in ("sherry", "annealed"):
        model = load(checkpoint, method)
        trainer(model, tmp_path, [TernaryProgress()], save_strategy="steps", save_steps=2).train()
        assert {m.progress for m in model.modules() if isinstance(m, TernaryLinear)} == {1.0}
        middle = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
        assert {m.progress for m in middle.modules() if isinstance(m, TernaryLinear)} == {2 / 3}
        expected = logits(model)
        assert torch.equal(logits(freeze_(model)), expected)


def test_resuming_gives_the_uninterrupted_run(checkpoint, tmp_path):
    whole = load(checkpoint, "sherry")
    trainer(whole, tmp_path / "a", [TernaryProgress()], save_strategy="steps", save_steps=2).train()
    part = load(checkpoint, "sherry")
    trainer(part, tmp_path / "a", [TernaryProgress()]).train(
        resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2")
    )
    assert torch.equal(logits(part), logits(whole))


def test_the_model_card_says_what_to_import(checkpoint, tmp_path):
    model = freeze_(load(checkpoint))
    save_pretrained(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace("PATH", str(tmp_path))
    script = f"{code}\nimport torch\nprint(model(torch.arange(14).reshape(2, 7)).logits.double().sum().item())"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert float(found.split()[-1]) == logits(model).double().sum().item()
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(ValueError, match="not ternary"):
        save_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint), tmp_path)


def test_importing_twice_is_no_error():
    import importlib

    import localplug_ternary.quantizer as room

    importlib.reload(room)
    importlib.reload(room)


def test_the_package_itself_imports_neither_torch_nor_transformers():
    script = "import sys, localplug_ternary; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.strip() == "set()"


def test_the_command(checkpoint, tmp_path, caplog):
    from localplug_ternary.command import main

    assert main([str(checkpoint), str(tmp_path), "--group-size", "row", "--method", "absmean", "--packed"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert count(model, PackedTernaryLinear) == 14 and model.config.quantization_config.group_size is None
    assert main([str(checkpoint), str(tmp_path), "--group-size", "256"]) == 2
    assert main([str(checkpoint), str(tmp_path), "--method", "nothing"]) == 2
