"""LoRA over packed and latent layers, by peft."""

import copy

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import localplug
from localplug_ternary import (
    PackedTernaryLinear,
    TernaryConfig,
    TernaryLinear,
    freeze_,
    load_lora,
    ternarize_,
    with_lora,
)
from localplug_ternary.adapters import LoraTernary

IDS = torch.arange(14).reshape(2, 7)


def ternary_llama(packed):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=False,
        )  # fmt: skip
        model = ternarize_(LlamaForCausalLM(config), TernaryConfig(group_size=64, lam=0.1))
    return freeze_(model) if packed else model


def config(**options):
    return with_lora(LoraConfig(**{"target_modules": ["q_proj", "up_proj"], "r": 4, "lora_alpha": 8, **options}))


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("packed", [True, False])
def test_an_adapter_trains_saves_and_loads(tmp_path, packed):
    base = ternary_llama(packed)
    before = logits(base)
    stored = {k: v.clone() for k, v in base.state_dict().items()}
    model = get_peft_model(base, config())
    layers = [m for m in model.modules() if isinstance(m, LoraTernary)]
    assert len(layers) == 2 and all(
        isinstance(m.base_layer, PackedTernaryLinear if packed else TernaryLinear) for m in layers
    )
    assert torch.equal(logits(model), before)  # B starts at zero
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)]
    Trainer(model=model, args=arguments, train_dataset=data).train()
    after = logits(model)
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path / "adapter")
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    again = load_lora(ternary_llama(packed), tmp_path / "adapter")
    assert torch.equal(logits(again), after)
    assert not any(p.requires_grad for p in again.parameters())
    trainable = load_lora(ternary_llama(packed), tmp_path / "adapter", is_trainable=True)
    assert any(p.requires_grad for p in trainable.parameters())
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), before)
    assert all(torch.equal(v, stored[k]) for k, v in unloaded.state_dict().items())


def test_what_the_adapter_computes():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(ternary_llama(True), config(init_lora_weights=False))
    layer = next(m for m in model.modules() if isinstance(m, LoraTernary))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 2.0 * x @ A.T @ B.T)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("packed", [True, False])
def test_merging_is_refused_and_changes_nothing(packed):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(ternary_llama(packed), config(init_lora_weights=False))
    before = logits(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(localplug.Unsupported, match="rounded to ternary again"):
            merge()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", [LoraConfig, LoHaConfig])
def test_adapters_that_peft_makes_by_itself_are_not_merged_into_latent_layers(kind):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        own = {"init_lora_weights": False} if kind is LoraConfig else {"init_weights": False}
        model = get_peft_model(ternary_llama(False), kind(target_modules=["q_proj", "lm_head"], r=4, **own))
    inner = model.base_model.model
    layer = inner.model.layers[0].self_attn.q_proj
    assert not isinstance(layer, LoraTernary) and isinstance(layer.base_layer, TernaryLinear)
    before, weight = logits(model), layer.base_layer.weight.clone()
    for merge in (model.merge_and_unload, model.merge_adapter, layer.merge):
        with pytest.raises(localplug.Unsupported, match="rounded to ternary again"):
            merge()
    assert torch.equal(logits(model), before) and torch.equal(layer.base_layer.weight, weight)
    with pytest.raises(localplug.Unsupported):
        copy.deepcopy(layer).merge()
    inner.lm_head.merge()  # an ordinary layer beside it merges as ever
    assert inner.lm_head.merged


def test_what_needs_the_weights_is_refused_at_the_door():
    with pytest.raises(ValueError, match=r"init_lora_weights='pissa' takes.*use_dora is not there"):
        with_lora(LoraConfig(init_lora_weights="pissa", use_dora=True))


def test_converting_a_model_that_has_adapters_is_refused():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 64)), LoraConfig(target_modules=["0"]))
    with pytest.raises(ValueError, match="has adapters; convert the model first"):
        ternarize_(model, TernaryConfig(group_size=64))
    adapted = get_peft_model(ternary_llama(False), config())
    with pytest.raises(ValueError, match="has an adapter that was trained on the latent weights"):
        freeze_(adapted)
    adapted.base_model.model.model.layers[0].mlp.down_proj.weight  # noqa: B018  # still latent, all of them


def test_adapters_over_packed_layers_train_without_backpropagation():
    model = get_peft_model(ternary_llama(True), config())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    codes = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.codes.clone()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with localplug.attach(model.train(), "mezo", optimizer, eps=1e-3):
        for _ in range(3):
            model(input_ids=IDS, labels=IDS).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if p.requires_grad)
    assert torch.equal(model.get_base_model().model.layers[0].mlp.up_proj.base_layer.codes, codes)
