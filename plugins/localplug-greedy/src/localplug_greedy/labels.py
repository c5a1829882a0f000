"""Which features of a unit belong to which labels: classes of examples, or tokens at positions.

Shapes: B examples, T positions, D features, K classes or tokens of the vocabulary; N rows that a head is asked about, which
are examples, or all positions that have a label.
"""

import dataclasses
import math
from typing import Literal, final

import torch
from torch import Tensor, nn

from localplug import Activity, Run, Unit

Pool = Literal["mean", "first", "last"]
POOLS = ("mean", "first", "last")

IGNORED = -100
"""The label of a position that counts for nothing, as in torch's cross_entropy and in transformers."""


@final
@dataclasses.dataclass(frozen=True)
class Labelled:
    """Rows that a head is asked about.

    features: (N, D), or (N, C, ...) of a feature map; labels: (N,), integers in [0, K).
    """

    features: Tensor
    labels: Tensor


def are_tokens(run: Run) -> bool:
    """Whether the labels of the batch are one for each position, (B, T)."""
    return isinstance(run.targets, Tensor) and run.targets.dim() == 2 and not run.targets.is_floating_point()


def is_map(unit: Unit, output: Tensor) -> bool:
    """Whether a unit's output is a feature map, (B, C, ...), and not a sequence, (B, T, D), or a vector, (B, D)."""
    return output.dim() >= 4 or (output.dim() == 3 and _ends_in_convolution(unit))


def is_sequence(unit: Unit, output: Tensor) -> bool:
    """Whether it is (B, T, D)."""
    return output.dim() == 3 and not _ends_in_convolution(unit)


def unflattened(unit: Unit, output: Tensor) -> Tensor:
    """The output; as a feature map again, (B, C, H, W), where a convolution's was flattened on its way to the next unit.

    A square one gets its sides back, any other one is taken as a column of positions.
    """
    if output.dim() != 2 or not _ends_in_convolution(unit):
        return output
    channels = _last_matrix(unit).shape[0]
    positions, left = divmod(output.shape[1], channels)
    if left or positions < 2:
        return output
    side = math.isqrt(positions)
    height, width = (side, side) if side * side == positions else (positions, 1)
    return output.view(len(output), channels, height, width)


def _last_matrix(unit: Unit) -> Tensor:
    """The last weight of a unit that is no vector."""
    weights = [p for p in unit.parameters if p.dim() > 1] or [p for p in unit.module.parameters() if p.dim() > 1]
    return weights[-1] if weights else torch.empty(0, 0)


def _ends_in_convolution(unit: Unit) -> bool:
    return _last_matrix(unit).dim() >= 3


def labelled(activity: Activity, run: Run, K: int | None, *, shift: bool | None, pool: Pool) -> Labelled:
    """The rows of a unit's output that have a label.

    Labels (B,) go with feature maps and vectors as they are, and with one vector of each sequence. Labels (B, T) go with the
    positions of a sequence. What is labelled -100 is left out.

    Args:
        K: labels must be below it.
        shift: whether the label of a position is that of the next one, as causal language models of transformers take their
            labels; None asks the model what it is.
        pool: which vector of a sequence: the "mean" over its positions, the "first" or the "last", padding left out.

    Raises:
        TypeError, ValueError: the labels are no integer tensor, do not fit the output, or are outside of [0, K).
    """
    labels, output = run.targets, unflattened(activity.unit, activity.output)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        got = f"{labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"local heads need class labels or tokens as an integer tensor, got {got}")
    labels = labels.to(output.device)
    if isinstance(activity.unit.module, nn.RNNBase) and not activity.unit.module.batch_first and output.dim() == 3:
        output = output.transpose(0, 1)
    if labels.dim() == 1:
        rows = _pooled(activity, run, output, pool) if is_sequence(activity.unit, output) else output
    elif labels.dim() == 2 and is_sequence(activity.unit, output) and labels.shape == output.shape[:2]:
        if predicts_next(run.model) if shift is None else shift:
            output, labels = output[:, :-1], labels[:, 1:]
        rows, labels = output.flatten(0, 1), labels.flatten()
    else:
        raise ValueError(
            f"labels must be (B,), or (B, T) where units give sequences (B, T, D); unit {activity.unit.name!r} gives "
            f"{tuple(output.shape)} and the labels are {tuple(labels.shape)}"
        )
    if len(rows) != len(labels):
        raise ValueError(f"unit {activity.unit.name!r} gives {len(rows)} rows, and there are {len(labels)} labels")
    counts_N = labels != IGNORED
    if not bool(counts_N.all()):
        rows, labels = rows[counts_N], labels[counts_N]
    assert K is not None
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < K:
        raise ValueError(f"labels must be in [0, {K}), got {int(labels.min())} to {int(labels.max())}")
    return Labelled(rows, labels)


def cross_entropy(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """The mean over the rows; 0 if there is none, so that a batch without a label moves nothing. Scalar."""
    total = nn.functional.cross_entropy(logits_NK.float(), labels_N, reduction="sum")
    return total / max(len(labels_N), 1)


def predicts_next(model: nn.Module) -> bool:
    """Whether a transformers model shifts its labels by one position: a causal language model."""
    return any(type(m).__name__.endswith(("ForCausalLM", "LMHeadModel")) for m in model.modules())


def present(activity: Activity, run: Run) -> Tensor | None:
    """(B, T), true where a position holds a token and no padding; None if nothing says that there is padding.

    A unit that begins with the embedding sees the tokens, and the model's configuration names that of the padding; a
    transformer layer is called with the attention mask, whose last query attends to all that is no padding.
    """
    first = activity.input
    if first.dim() == 2 and not first.is_floating_point():
        return no_padding(first, run.model)
    T = activity.output.shape[1]
    for value in (*activity.inputs[1:], *activity.kwargs.values()):
        if isinstance(value, Tensor) and value.dim() == 4 and value.shape[-1] == T:
            last = value[:, 0, -1]
            return (last if last.dtype == torch.bool else last >= 0).expand(len(first), T)
    return None


def no_padding(tokens_BT: Tensor, model: nn.Module) -> Tensor | None:
    """(B, T), true where a token is not that of the padding; None if the model's configuration names none."""
    configs = (getattr(m, "config", None) for m in model.modules())
    pad = next((p for c in configs if (p := getattr(c, "pad_token_id", None)) is not None), None)
    return None if pad is None else tokens_BT != pad


def _pooled(activity: Activity, run: Run, output_BTD: Tensor, pool: Pool) -> Tensor:
    """One vector of each sequence, (B, D), from the positions that are no padding."""
    present_BT = present(activity, run)
    if present_BT is None or present_BT.shape != output_BTD.shape[:2]:
        present_BT = output_BTD.new_ones(output_BTD.shape[:2], dtype=torch.bool)
    if pool == "mean":
        weight_BT1 = present_BT.to(output_BTD.dtype).unsqueeze(-1)
        return (output_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)
    T = present_BT.shape[1]
    order_BT = torch.arange(T, device=output_BTD.device).expand_as(present_BT)
    place_B = (
        torch.where(present_BT, order_BT, T - 1).amin(1)
        if pool == "first"
        else torch.where(present_BT, order_BT, 0).amax(1)
    )
    return output_BTD[torch.arange(len(place_B), device=place_B.device), place_B]
