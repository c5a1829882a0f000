"""Zeroth order on a packed model: scales and biases are all that trains."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import localplug
from localplug_ternary import PackedTernaryLinear, TernaryConfig, ternarize_, train_scales_
from localplug_transformers import LocalPlugCallback


def packed_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
    return ternarize_(model, TernaryConfig(group_size=64, packed=True, trainable="scales"))


def data():
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(1))
    return x, (x @ torch.randn(64, generator=torch.Generator().manual_seed(2)) > 0).long()


def test_scales_and_biases_are_the_only_parameters_that_train():
    model = packed_net()
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(trains) == {"0.scales", "0.bias", "2.scales", "2.bias"}
    assert all(p.dtype == torch.float32 for p in trains.values())
    assert sum(p.numel() for p in trains.values()) == 2 * (64 * 1 + 64)  # 1/g + 1/K of 64 * 64 weights, twice
    assert {n for n, p in train_scales_(model, False).named_parameters() if p.requires_grad} == set()


@pytest.mark.parametrize("by", ["mezo", "backpropagation"])
def test_they_train_a_model(by):
    model, (x, y) = packed_net(), data()
    codes = {n: m.codes.clone() for n, m in model.named_modules() if isinstance(m, PackedTernaryLinear)}
    head = model[4].weight.detach().clone()
    trains = [p for p in model.parameters() if p.requires_grad]
    mezo = by == "mezo"
    optimizer = torch.optim.SGD(trains, lr=0.02 if mezo else 0.5)

    def step():
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    if mezo:
        with localplug.attach(model, "mezo", optimizer, seed=0, eps=1e-3):
            losses = [step() for _ in range(250)]
    else:
        losses = [step() for _ in range(20)]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert all(torch.equal(m.codes, codes[n]) for n, m in model.named_modules() if n in codes)
    assert torch.equal(model[4].weight, head)


@pytest.mark.parametrize("method", ["forward-grad", "lozo", "zo-adam"])
def test_other_methods_without_a_backward_pass_take_them(method):
    model, (x, y) = packed_net(), data()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with localplug.attach(model, method, optimizer):
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {
        "0.scales",
        "0.bias",
        "2.scales",
        "2.bias",
    }


def test_the_trainer_with_mezo_saves_and_reloads(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, tie_word_embeddings=False,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    quantization = TernaryConfig(group_size=64, packed=True, trainable="scales")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=quantization)
    layer = model.model.layers[0].mlp.up_proj
    scales = layer.scales.detach().clone()
    ids = torch.arange(14).reshape(2, 7)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-4, report_to=[],
        save_strategy="steps", save_steps=3, use_cpu=True, disable_tqdm=True, optim="sgd",
    )  # fmt: skip
    rows = [{"input_ids": ids[i % 2], "labels": ids[i % 2]} for i in range(8)]
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[LocalPlugCallback("mezo", eps=1e-4)]).train()
    assert not torch.equal(layer.scales, scales)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-3")
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    assert all(n.rpartition(".")[2] in ("scales", "bias") for n, p in again.named_parameters() if p.requires_grad)
    assert sum(p.requires_grad for p in again.parameters()) == 14
