"""released-local-method: each unit learns the label through a linear head of its own.

Unit i computes y_i from y_{i-1}, which is held constant. With a head M_i that belongs to it, and the label y*:

    J_i = cross-entropy(M_i y_i, y*)
    W_i <- W_i - lr dJ_i/dW_i,   M_i <- M_i - lr dJ_i/dM_i            the last unit learns from the trainer's own loss

Source: the prediction loss of Nokland and Eidnes, Training Neural Networks with Local Error
Signals, 2019, arXiv:1901.06656.
"""

from collections.abc import Sequence
from typing import Any, final

import torch

import localplug


@localplug.hookimpl
def localplug_methods() -> dict[str, Any]:
    return {"released-local-method": ReleasedLocalMethod}


@final
class ReleasedLocalMethod(localplug.LocalMethod):
    """Each hidden unit learns the label through a linear head of its own: J_i = cross-entropy(M_i y_i, y*).

    One forward pass a step, and the saved activations of one unit at a time. Gradients appear in .grad, so that the
    trainer's optimizer, clipping and schedule apply.

    Args:
        scale: factor on J_i, > 0.
        units: names of the modules that start a unit (* and ? match), in the order of their calls; by default every
            layer with weights does.
        num_classes: K; by default the number of outputs of the model's last layer.

    Raises:
        ValueError: scale is not positive.

    Example:
        >>> import torch
        >>> import localplug
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> with localplug.attach(model, ReleasedLocalMethod(), optimizer, targets=lambda args, kwargs: y):
        ...     torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     optimizer.step()
    """

    def __init__(self, scale: float = 1.0, units: Sequence[str] | None = None, num_classes: int | None = None) -> None:
        if not scale > 0:
            raise ValueError(f"released-local-method: scale must be positive, got {scale!r}")
        super().__init__(units=units, num_classes=num_classes)
        self.scale = float(scale)

    def describe(self) -> str:
        return f"released-local-method, scale {self.scale:g}, updates by the trainer's optimizer"

    def owns(self, unit: localplug.Unit, output: torch.Tensor, run: localplug.Run) -> torch.nn.Module:
        D, K, name = output[0].numel(), self.K or 0, f"released-local-method {unit.key}"
        return localplug.seeded(lambda: torch.nn.Linear(D, K), output, seed=run.seed, name=name)

    def signal(self, activity: localplug.Activity, run: localplug.Run) -> localplug.Signal:
        y = activity.output
        J = torch.nn.functional.cross_entropy(activity.unit.owned(y.flatten(1)), self.class_labels(run, y.device))
        return localplug.Signal(loss=self.scale * J)
