"""Labels inside the input: Forward-Forward and PhyLL write them over the first numbers of the flattened input.

Shapes: B examples, K classes, D numbers of one flattened input. An image (B, C, H, W) is flattened channel by channel, row by
row: the label covers the first K pixels of the first row of the first channel (and goes on in the next row if W < K).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from localplug import LocalMethod, Run, Unsupported, View, noise

CONTRAST = View("pos/neg", ends="hidden")
"""The batch with its true labels, then the batch with wrong ones: 2 B examples."""
NEUTRAL = View("neutral", learns=False)
"""The batch with 1/K in the place of every label; only the last unit learns from it."""
EVERY_LABEL = View("every label", learns=False, ends="hidden")
"""Of a prediction: the batch with label 0, then with label 1, and so on: K B examples."""
PREDICTED_NEUTRAL = View("predicted neutral", learns=False)


@torch.no_grad()
def overlay(x: Tensor, label_BK: Tensor, *, start: int = 0, value: float = 1.0) -> Tensor:
    """A copy of x with `value` * label in the place of K of each example's numbers.

    Args:
        x: (B, ...), floating point; it is not changed.
        label_BK: one-hot rows, or 1/K everywhere for the neutral label.
        start: the first of the K numbers, in [0, D - K].
        value: what a one becomes, in units of the input.

    Raises:
        Unsupported: x is no floating-point tensor, or too small for the label.

    Example:
        >>> overlay(torch.full((1, 4), 7.0), torch.tensor([[0.0, 1.0]]))
        tensor([[0., 1., 7., 7.]])
    """
    K = label_BK.shape[-1]
    if not x.is_floating_point():
        raise Unsupported(f"the label is written over numbers of the input, and the first unit gets {x.dtype}")
    x_BD = x.flatten(1).clone()
    if x_BD.shape[1] < start + K:
        raise Unsupported(
            f"the label covers {K} numbers from {start} on, and an input of the first unit has {x_BD.shape[1]}; "
            "pad the input"
        )
    x_BD[:, start : start + K] = value * label_BK.to(x_BD)
    return x_BD.view_as(x)


@torch.no_grad()
def wrong_labels(labels_B: Tensor, K: int, run: Run) -> Tensor:
    """A new tensor with a uniformly random wrong label for each example: a function of (seed, step, place in the batch).

    Args:
        labels_B: integers in [0, K); K >= 2.
    """
    key = noise.stream(run.seed, run.step, 0, "wrong labels")
    u_B = noise.uniform(key, 0, len(labels_B), labels_B.device)
    return (labels_B + 1 + (u_B * (K - 1)).long()) % K


@torch.no_grad()
def labelled(x: Tensor, view: View, method: LocalMethod, run: Run, *, start: int, value: float) -> Tensor:
    """The first unit's input in one of the views above. Arguments as in `overlay`."""
    K = method.K
    assert K is not None
    if view == CONTRAST:
        true_B = method.class_labels(run, x.device)
        label_BK = F.one_hot(torch.cat([true_B, wrong_labels(true_B, K, run)]), K)
        x = torch.cat([x, x])
    elif view == EVERY_LABEL:
        label_BK = torch.eye(K, device=x.device).repeat_interleave(len(x), 0)
        x = torch.cat([x] * K)
    else:
        label_BK = torch.full((len(x), K), 1 / K, device=x.device)
    return overlay(x, label_BK, start=start, value=value)
