"""DRTP: direct random target projection. Reference:

Frenkel, Lefebvre, Bol: Learning without feedback: fixed random learning signals allow for feedforward training of deep
neural networks, Frontiers in Neuroscience 15, 2021, doi:10.3389/fnins.2021.629892, arXiv:1909.01311.

Hidden layer k computes y_k = sigma(W_k y_{k-1} + b_k). With fixed random B_k and the one-hot label y*,

    dy_k = B_k^T y*                                              in the place of the backpropagated d loss / d y_k
    W_k <- W_k - eta (dy_k . sigma'(z_k)) y_{k-1}^T

which is the gradient of the inner product <B_k^T y*, y_k>. The output layer has its true gradient. Here a unit ends at the
input of the next one, so that pooling between the two lies inside the unit, and dy_k is given after it.
"""

from collections.abc import Sequence
from typing import Literal, final

from torch import Tensor

from localplug import Activity, LocalMethod, Run, Signal, Unit
from localplug_tpsgd.feedback import Feedback
from localplug_tpsgd.recurrent import unsupported


@final
class DRTP(LocalMethod):
    """Direct random target projection: a fixed random projection of the label stands for each hidden layer's gradient.

        dW_k = (1/B) sum over the batch of (B_k^T y* . sigma'(z_k)) y_{k-1}^T

    One forward pass a step; saved activations are those of one unit at a time. Gradients appear in .grad.

    Args:
        scale: factor on the bound sqrt(6 / n) of B_k's uniform entries, n the values of the unit's output; > 0.
        reduction: "mean" averages hidden gradients over the batch, as the trainer's loss does. "sum" adds them up, as the
            released code does, whose hidden layers so learn B times as fast as its output layer, B being the batch size.
        units: names of the modules that start a unit (* and ? match); by default every layer with weights starts one.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Labels are integers (B,), which become one-hot, or floating-point targets (B, K).

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, DRTP(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(
        self,
        scale: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not scale > 0:
            wrong.append(f"scale must be positive, got {scale!r}")
        if reduction not in ("mean", "sum"):
            wrong.append(f'reduction must be "mean" or "sum", got {reduction!r}')
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("DRTP: " + "; ".join(wrong))
        super().__init__(units=units, num_classes=num_classes)
        self.scale, self.reduction = scale, reduction
        self._feedback = Feedback(scale)

    def describe(self) -> str:
        return f"drtp, scale {self.scale:g}, {self.reduction} over the batch, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return unsupported("DRTP", units)

    def signal(self, activity: Activity, run: Run) -> Signal:
        output = activity.output.detach()
        y_BK = self.one_hot(run, output.device)
        dy = self._feedback.carried(y_BK, output, unit=activity.unit, seed=run.seed)
        return Signal(grad_output=dy / shares(output, activity.unit, self.reduction))


def shares(output: Tensor, unit: Unit, reduction: str) -> int:
    """What a sum over the batch is divided by: the examples, unless it stays a sum, and the positions of a sequence."""
    positions = 1 if unit.keeps_map else output[0].numel() // output.shape[-1]
    return positions * (len(output) if reduction == "mean" else 1)
