"""TRL's trainers, unmodified: their losses are not the model's own, and the first backward call shows which leaf they use."""

import copy

import pytest
import torch
import transformers

import oracle
from localplug_transformers import LocalPlugCallback
from problems import tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # trl 1.16's own

WORDS = ["<pad>", "<eos>", "<unk>", "ask", "say", *(f"w{i}" for i in range(59))]
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}ask {{ m.content }} {% else %}say "
    "{% generation %}{{ m.content }} <eos> {% endgeneration %}{% endif %}{% endfor %}"
)


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    made.chat_template = CHAT
    return made


def _text(i, length):
    return " ".join(WORDS[5 + (i + 5 * k) % 59] for k in range(length))


def _rows(kind):
    from datasets import Dataset

    def row(i):
        if kind == "text":
            return dict(text=_text(i, 6 + i % 5))
        if kind == "prompt":
            return dict(prompt=_text(i, 4), completion=" " + _text(7 * i, 5 + i % 3))
        if kind == "chat":
            said = [("user", 3), ("assistant", 4), ("user", 2), ("assistant", 3)]
            return dict(messages=[dict(role=who, content=_text(i + 3 * k, n)) for k, (who, n) in enumerate(said)])
        if kind == "judged":
            return dict(prompt=_text(i, 4), completion=" " + _text(7 * i, 5), label=bool(i % 2))
        if kind == "open":
            return dict(prompt=_text(i, 4))
        return dict(prompt=_text(i, 4), chosen=" " + _text(7 * i, 5), rejected=" " + _text(11 * i + 1, 4 + i % 3))

    return Dataset.from_list([row(i) for i in range(16)])


GIVEN = dict(
    per_device_train_batch_size=4, lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[],
    use_cpu=True, bf16=False, disable_tqdm=True, max_grad_norm=0.0, activation_checkpointing=False, optim="sgd",
    dataloader_pin_memory=False, weight_decay=0.0,
)  # fmt: skip


def _made(kind, model, folder, callbacks, options, **changes):
    import trl

    trainers = {
        "SFT": (trl.SFTTrainer, trl.SFTConfig),
        "DPO": (trl.DPOTrainer, trl.DPOConfig),
        "Reward": (trl.RewardTrainer, trl.RewardConfig),
        "KTO": (trl.KTOTrainer, trl.KTOConfig),
        "GRPO": (trl.GRPOTrainer, trl.GRPOConfig),
    }
    trainer, config = trainers[kind]
    args = config(output_dir=str(folder), **{**GIVEN, **changes})
    made = trainer(model, args=args, processing_class=_tokenizer(), callbacks=list(callbacks), **options)
    made.remove_callback(transformers.PrinterCallback)
    return made


def _model(kind="SFT"):
    if kind != "Reward":
        return tiny_llama(initializer_range=0.2)
    torch.manual_seed(0)
    return transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=64, num_labels=1, pad_token_id=0, initializer_range=0.2,
        )
    )  # fmt: skip


def _lora(kind):
    from peft import LoraConfig

    task = "SEQ_CLS" if kind == "Reward" else "CAUSAL_LM"
    return LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type=task, init_lora_weights=False)


FUSED, LOGITS = ("log_probs",), ("logits",)
CASES = {
    # case: (trainer, its data, its switches, LoRA, the leaves that its loss is built on)
    "sft": ("SFT", "text", {}, False, FUSED),
    "sft packed": ("SFT", "text", dict(packing=True, max_length=24), False, FUSED),
    "sft packed by wrapping": (
        "SFT", "text", dict(packing=True, max_length=24, packing_strategy="wrapped"), False, FUSED,
    ),
    "sft lora": ("SFT", "text", {}, True, FUSED),
    "sft dft": ("SFT", "text", dict(loss_type="dft"), False, FUSED),
    "sft label smoothing": ("SFT", "text", dict(label_smoothing_factor=0.2), False, LOGITS),
    "sft completion only": ("SFT", "prompt", dict(completion_only_loss=True), False, FUSED),
    "sft assistant only": ("SFT", "chat", dict(assistant_only_loss=True), False, FUSED),
    "sft assistant only lora": ("SFT", "chat", dict(assistant_only_loss=True), True, FUSED),
    **{
        f"dpo {loss}": ("DPO", "preference", dict(loss_type=[loss], beta=0.5), False, FUSED)
        for loss in ("sigmoid", "ipo", "robust", "nca_pair", "apo_zero", "discopop", "sigmoid_norm")
    },
    "dpo lora": ("DPO", "preference", dict(beta=0.5), True, FUSED),  # its reference is the model without the adapter
    "kto": ("KTO", "judged", {}, False, FUSED),
    "grpo": ("GRPO", "open", dict(num_generations=4, max_completion_length=6), False, FUSED),  # generates, then trains
    "grpo lora": ("GRPO", "open", dict(num_generations=4, max_completion_length=6), True, FUSED),
    "reward": ("Reward", "preference", {}, False, LOGITS),
    "reward lora": ("Reward", "preference", {}, True, LOGITS),
}  # fmt: skip


def _trained(case, folder, callbacks, **changes):
    """What the training adds to the weights, by name; and the trainer."""
    kind, data, switches, lora, _ = CASES[case]
    torch.manual_seed(0)  # LoRA's weights
    options = dict(train_dataset=_rows(data), peft_config=_lora(kind) if lora else None)
    model = _model(kind)
    if kind == "GRPO":
        options["reward_funcs"] = lambda completions, **_: [float(text.count("1")) for text in completions]
    if kind in ("DPO", "KTO") and not lora:
        options["ref_model"] = copy.deepcopy(model)
    trainer = _made(kind, model, folder, callbacks, options, **{**switches, **changes})
    moved, _ = oracle.change(trainer.model, trainer.train)
    return moved, trainer


def _one_step(case, folder, callbacks, **changes):
    return _trained(case, folder, callbacks, max_steps=1, learning_rate=oracle.LR, **changes)


def _by_backpropagation(case, folder, **changes):
    """The names that train, and (seed, slope, z) of a direction that sees the gradient."""
    moved, trainer = _one_step(case, folder, [], **changes)
    names = oracle.trained(trainer.model)
    return names, *oracle.visible_direction(trainer.model, -oracle.flat(moved, names) / oracle.LR)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_one_step_is_backpropagations_slope_along_the_direction(case, accumulation, tmp_path):
    changes = dict(gradient_accumulation_steps=accumulation)
    names, seed, slope, z = _by_backpropagation(case, tmp_path, **changes)
    callback = LocalPlugCallback("mezo", eps=3e-4, seed=seed, outputs=CASES[case][4])
    moved, trainer = _one_step(case, tmp_path, [callback], **changes)
    measured, rest = oracle.along(oracle.flat(moved, names), z)
    assert measured == pytest.approx(slope, rel=2e-3)
    assert rest < 1e-6
    assert callback.engine.run.num_forwards == 2 * accumulation
    assert CASES[case][3] == any("lora_" in n for n in names)
    assert not any(moved[n].any() for n in moved if n not in names)
    assert not trainer.optimizer.state and all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_leaf_is_found_by_the_first_backward(case, tmp_path):
    """Where the model has a loss of its own, which TRL does not use, the first estimate is repeated; nothing else is."""
    callback = LocalPlugCallback("mezo", eps=1e-3)
    moved, trainer = _trained(case, tmp_path, [callback], max_steps=3, learning_rate=1e-3)
    assert callback.engine.run.num_forwards == 6 + 2 * (CASES[case][4] is FUSED)
    trained = oracle.trained(trainer.model)
    assert all(moved[n].any() for n in trained) and not any(moved[n].any() for n in moved if n not in trained)
    assert not trainer.optimizer.state and all(p.grad is None for p in trainer.model.parameters())


def test_until_the_leaf_is_known_the_estimate_is_of_first_order_in_eps(tmp_path):
    """The first backward sees the loss at theta - eps z instead of in the middle: outputs=("log_probs",) spares that."""
    names, seed, slope, z = _by_backpropagation("dpo sigmoid", tmp_path)
    errors = []
    for eps in (4e-4, 2e-4, 1e-4):
        moved, _ = _one_step("dpo sigmoid", tmp_path, [LocalPlugCallback("mezo", eps=eps, seed=seed)])
        errors.append(abs(oracle.along(oracle.flat(moved, names), z)[0] / slope - 1))
    assert 2e-3 < errors[2] < errors[1] < errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1) and errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_the_comparison_notices_a_wrong_sign_and_another_direction(tmp_path, monkeypatch):
    from localplug_zo import updates

    names, seed, slope, z = _by_backpropagation("dpo sigmoid", tmp_path)
    update = updates.sgd_update

    def other_sign(run, directions, coefficients, groups):
        update(run, directions, [-c for c in coefficients], groups)

    def other_direction(run, directions, coefficients, groups):
        run.step += 1
        update(run, directions, coefficients, groups)
        run.step -= 1

    seen = []
    for wrong in (other_sign, other_direction):
        monkeypatch.setattr(updates, "sgd_update", wrong)
        callback = LocalPlugCallback("mezo", eps=3e-4, seed=seed, outputs=FUSED)
        moved, _ = _one_step("dpo sigmoid", tmp_path, [callback])
        seen.append(oracle.along(oracle.flat(moved, names), z))
    assert seen[0][0] == pytest.approx(-slope, rel=2e-3) and seen[0][1] < 1e-6
    assert abs(seen[1][0]) < 0.5 * abs(slope) and seen[1][1] > 0.9
