"""Distillation from the full-precision model, in an unmodified Trainer."""

import copy
import math

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from localplug_ternary import Distillation, TernaryConfig, ternarize_
from localplug_transformers import LocalPlugCallback

IDS = torch.randint(1, 40, (8, 7), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": 40, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "pad_token_id": 0,
}  # fmt: skip


def pair(kind=LlamaForCausalLM, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = kind(LlamaConfig(**SIZES, initializer_range=0.3, **options))
    return teacher, ternarize_(copy.deepcopy(teacher), TernaryConfig("tequila", 64))


def arguments(folder, **options):
    return TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=30, learning_rate=3e-3, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, **options,
    )  # fmt: skip


def by_hand(teacher, student, labels, temperature, alpha):
    """Position by position, in float64."""
    with torch.no_grad():
        p = (teacher.eval()(IDS).logits.double() / temperature).softmax(-1)
        y = student(IDS).logits.double()
    q, hard, total, num = (y / temperature).softmax(-1), y.log_softmax(-1), 0.0, 0
    for b in range(len(labels)):
        for t in range(labels.shape[1] - 1):
            if labels[b, t + 1] == -100:
                continue
            divergence = sum(float(x) * (math.log(x) - math.log(z)) for x, z in zip(p[b, t], q[b, t], strict=True))
            total += -(1 - alpha) * float(hard[b, t, labels[b, t + 1]]) + alpha * temperature**2 * divergence
            num += 1
    return total / num


@pytest.mark.parametrize(("temperature", "alpha"), [(2.0, 0.5), (1.0, 1.0), (4.0, 0.0)])
def test_the_loss_is_that_of_the_formula(temperature, alpha):
    teacher, student = pair()
    loss = Distillation(teacher, student.train(), temperature, alpha)
    labels = IDS.clone()
    labels[:, 3] = -100
    made = loss(student(input_ids=IDS), labels)
    assert float(made.detach()) == pytest.approx(by_hand(teacher, student, labels, temperature, alpha), rel=1e-4)
    twice = loss(student(input_ids=IDS), labels, num_items_in_batch=2 * int((labels[:, 1:] != -100).sum()))
    assert float(twice.detach()) == pytest.approx(float(made.detach()) / 2, rel=1e-5)


def test_it_trains_in_a_plain_trainer_towards_the_teacher(tmp_path):
    teacher, student = pair()
    before = by_hand(teacher, student, IDS, 1.0, 1.0)
    frozen = copy.deepcopy(teacher.state_dict())
    rows = [{"input_ids": x, "labels": x} for x in IDS]
    loss = Distillation(teacher, student, alpha=1.0)
    trainer = Trainer(student, arguments(tmp_path), train_dataset=rows, eval_dataset=rows, compute_loss_func=loss)
    trainer.train()
    assert by_hand(teacher, student.eval(), IDS, 1.0, 1.0) < 0.5 * before
    assert all(torch.equal(t, frozen[name]) for name, t in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    # Evaluation is by the labels alone, and what is saved is the student.
    with torch.no_grad():
        clean = float(student(input_ids=IDS, labels=IDS).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(clean, rel=1e-4)
    trainer.save_model(tmp_path / "saved")
    loss.close()
    again = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.eval()(IDS).logits, student.eval()(IDS).logits)


def test_rows_with_one_label_each(tmp_path):
    teacher, student = pair(LlamaForSequenceClassification, num_labels=3)
    rows = [{"input_ids": x, "labels": i % 3} for i, x in enumerate(IDS)]
    loss = Distillation(teacher, student, alpha=1.0, shifts=False)

    def divergence():
        with torch.no_grad():
            p, q = teacher.eval()(IDS).logits.log_softmax(-1), student.eval()(IDS).logits.log_softmax(-1)
        return float((p.exp() * (p - q)).sum(-1).mean())

    before = divergence()
    Trainer(student, arguments(tmp_path), train_dataset=rows, compute_loss_func=loss).train()
    assert divergence() < 0.5 * before


def test_without_a_backward_pass_the_teacher_is_asked_once_a_batch(tmp_path):
    teacher, student = pair()
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    rows = [{"input_ids": x, "labels": x} for x in IDS]
    losses = []

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            losses.append(logs.get("loss"))

    options = arguments(tmp_path, max_grad_norm=0.0, logging_steps=1)
    options.max_steps, options.learning_rate = 3, 1e-5
    Trainer(
        student, options, train_dataset=rows, compute_loss_func=Distillation(teacher, student, alpha=1.0),
        callbacks=[LocalPlugCallback("mezo", outputs=("logits",)), Losses()],
    ).train()  # fmt: skip
    assert len(calls) == 3 and all(math.isfinite(x) for x in losses[:3])


def test_what_is_wrong_is_told_at_once():
    teacher, student = pair()
    with pytest.raises(ValueError, match=r"temperature must be positive.*alpha must be in.*share \d+ parameters"):
        Distillation(student, student, temperature=0, alpha=2)
    loss = Distillation(teacher, student.train())
    with pytest.raises(RuntimeError, match="the teacher was not asked"):
        loss(teacher(IDS), IDS)
    with torch.random.fork_rng():
        other = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 44}))
    loss = Distillation(other, student)
    with pytest.raises(RuntimeError, match=r"teacher answers \(8, 7, 44\), the student \(8, 7, 40\)"):
        loss(student(input_ids=IDS), IDS)
