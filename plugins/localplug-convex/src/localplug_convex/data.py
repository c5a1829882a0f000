"""What a solver accepts as its data set: every problem found at once, before anything is computed."""

import torch
from torch import Tensor


def checked(inputs: Tensor, targets: Tensor, *, two_columns: bool = False) -> tuple[Tensor, Tensor]:
    """The data set as X (N, D) and Y (N, K), both with the inputs' dtype.

    Floating-point targets (N,) or (N, K) pass as they are. Integer labels (N,) in [0, K) become -1 and +1: one column for
    two classes (+1 for class 1; two columns with `two_columns`), else one a class.

    Args:
        inputs: (N, D), float32 or float64.
        targets: on the inputs' device.

    Raises:
        ValueError: lists everything that is wrong.

    Example:
        >>> import torch
        >>> X_ND, Y_NK = checked(torch.ones(3, 2), torch.tensor([0, 1, 2]))
        >>> Y_NK[1].tolist()
        [-1.0, 1.0, -1.0]
    """
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise ValueError(
            f"inputs and targets must be tensors, got {type(inputs).__name__} and {type(targets).__name__}"
        )
    wrong = []
    if inputs.dim() != 2 or not inputs.numel():
        wrong.append(f"inputs must be (examples, features), none of them 0, got shape {tuple(inputs.shape)}")
    if inputs.dtype not in (torch.float32, torch.float64):
        wrong.append(f"inputs must be float32 or float64, got {inputs.dtype}")
    elif not bool(torch.isfinite(inputs).all()):
        wrong.append("inputs have values that are not finite")
    labels = not targets.is_floating_point() and not targets.is_complex()
    if targets.dim() not in ((1,) if labels else (1, 2)) or not targets.numel():
        wrong.append(
            "targets must be integer labels (examples,) or floating-point (examples,) or (examples, outputs), "
            f"got shape {tuple(targets.shape)} of {targets.dtype}"
        )
    elif targets.is_complex():
        wrong.append(f"targets must be real, got {targets.dtype}")
    elif not bool(torch.isfinite(targets).all()):
        wrong.append("targets have values that are not finite")
    elif labels and (int(targets.min()) < 0 or int(targets.max()) < 1):
        wrong.append(
            "labels must be 0, 1, ... with at least two classes, "
            f"got values from {int(targets.min())} to {int(targets.max())}"
        )
    if inputs.dim() and targets.dim() and len(inputs) != len(targets):
        wrong.append(f"inputs have {len(inputs)} examples and targets {len(targets)}")
    if inputs.device != targets.device:
        wrong.append(f"inputs are on {inputs.device} and targets on {targets.device}")
    if wrong:
        raise ValueError("; ".join(wrong))
    X_ND = inputs.detach()
    if not labels:
        return X_ND, targets.detach().to(X_ND.dtype).reshape(len(X_ND), -1)
    classes = targets.long()
    if int(classes.max()) == 1 and not two_columns:
        return X_ND, (2 * classes - 1).to(X_ND.dtype).unsqueeze(1)
    return X_ND, 2 * torch.nn.functional.one_hot(classes).to(X_ND.dtype) - 1


def with_ones(X_ND: Tensor) -> Tensor:
    """X with a last column of ones, whose weight is a neuron's bias."""
    return torch.cat([X_ND, X_ND.new_ones(len(X_ND), 1)], 1)
