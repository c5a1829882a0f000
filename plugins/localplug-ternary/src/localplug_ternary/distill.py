"""Distillation: a ternary model learns from the full-precision model's answers besides the labels. Hinton, Vinyals, Dean,
arXiv:1503.02531; for ternary weights as in BitDistill, arXiv:2510.13998 (its loss on logits; that on attention is left out).

    L = (1 - alpha) L_labels + alpha T^2 KL(softmax(y_teacher / T) || softmax(y_student / T))

averaged over the positions that the labels count. In an unmodified Trainer it is one argument:

    Trainer(model, args, train_dataset=data, compute_loss_func=Distillation(teacher, model))

A Trainer gives that function the student's outputs and the labels alone. So a hook on the student lets the teacher see the
student's own inputs, in its own forward call, without a gradient. The student is not wrapped, and saves and loads as ever.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # of labels that do not count


@final
class Distillation:
    """A loss for the Trainer's `compute_loss_func`: of the labels, and of a teacher's answers.

        L = (1 - alpha) L_labels + alpha T^2 KL(p_teacher || p_student),   p = softmax(logits / T)

    The teacher is a second model in memory, best in bfloat16: its weights, what its inference needs, its logits, and a copy of
    them in float32. Each step costs its forward pass. In evaluation mode the loss is that of the labels alone.

    Args:
        teacher: the full-precision model, of the same vocabulary. It is put in evaluation mode, and its parameters are frozen.
        student: the model that is trained, as the Trainer gets it (with adapters, if it has them).
        temperature: T, > 0.
        alpha: the teacher's share, in [0, 1]. With 1 labels only say which positions count.
        shifts: whether position i answers label i + 1, as in causal language models; False for labels of the same positions,
            or one for each row.

    Raises:
        ValueError: an option is outside its range, or teacher and student are one model or share weights; lists all of them.

    Example:
        teacher = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
        model = ternarize_(AutoModelForCausalLM.from_pretrained(path), TernaryConfig())
        Trainer(model, args, train_dataset=data, compute_loss_func=Distillation(teacher, model)).train()
    """

    def __init__(
        self, teacher: nn.Module, student: nn.Module, temperature: float = 2.0, alpha: float = 0.5, shifts: bool = True
    ) -> None:
        wrong = []
        if not 0 < temperature < float("inf"):
            wrong.append(f"temperature must be positive and finite, got {temperature!r}")
        if not 0 <= alpha <= 1:
            wrong.append(f"alpha must be in [0, 1], got {alpha!r}")
        shared = {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}
        if shared:
            wrong.append(
                f"teacher and student share {len(shared)} parameters, which would be frozen; load the teacher a second time"
            )
        if wrong:
            raise ValueError("Distillation: " + "; ".join(wrong))
        self.temperature, self.alpha, self.shifts = float(temperature), float(alpha), shifts
        self._teacher, self._student = teacher.eval().requires_grad_(False), student
        self._answers: Tensor | None = None
        self._handle = student.register_forward_pre_hook(self._ask, with_kwargs=True)

    def close(self) -> None:
        """Take the hook off the student, after the training."""
        self._handle.remove()
        self._answers = None

    @torch.no_grad()
    def _ask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not module.training or not self.alpha:
            return
        given = {name: value for name, value in kwargs.items() if name not in ("labels", "num_items_in_batch")}
        device = next(self._teacher.parameters()).device
        given = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in given.items()}
        answer: Any = self._teacher(*(a.to(device) if isinstance(a, Tensor) else a for a in args), **given)
        self._answers = logits_of(answer)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The loss of a batch.

        Args:
            outputs: the student's.
            labels: as the Trainer gives them; -100 does not count.
            num_items_in_batch: labels that count in all micro-batches of the step; None for this batch's own.

        Raises:
            RuntimeError: the teacher was not asked about this batch, or answers in another shape.
        """
        y, answers = logits_of(outputs), self._answers
        alpha, self._answers = self.alpha if self._student.training else 0.0, None
        if alpha and answers is None:
            raise RuntimeError(
                "Distillation: the teacher was not asked; give the Trainer the model that Distillation(teacher, student) got"
            )
        if answers is not None and answers.shape != y.shape:
            raise RuntimeError(
                f"Distillation: the teacher answers {tuple(answers.shape)}, the student {tuple(y.shape)}; they must have one "
                "vocabulary"
            )
        targets = labels.to(y.device)
        if self.shifts:
            y, targets = y[:, :-1], targets[:, 1:]
            answers = None if answers is None else answers[:, :-1]
        counts = targets != IGNORED
        num = counts.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        y_MV = y[counts].float()
        loss = (1 - alpha) * F.cross_entropy(y_MV, targets[counts], reduction="sum")
        if answers is not None:
            T = self.temperature
            log_p_MV = F.log_softmax(answers.to(y.device)[counts].float() / T, -1)
            log_q_MV = F.log_softmax(y_MV / T, -1)
            loss = loss + alpha * T * T * F.kl_div(log_q_MV, log_p_MV, reduction="sum", log_target=True)
        return loss / num


def logits_of(outputs: Any) -> Tensor:
    """Of a transformers output, a mapping, a tuple or a tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        found: Tensor = outputs["logits"]
        return found
    first: Tensor = outputs[0]
    return first
