"""DFA: direct feedback alignment. Reference: Nokland: Direct Feedback Alignment Provides Learning in Deep Neural Networks,
NeurIPS 2016, arXiv:1609.01596. Its sign variant (sDFA): Frenkel, Lefebvre, Bol, arXiv:1909.01311.

Hidden layer k computes y_k = sigma(W_k y_{k-1} + b_k), the output layer o; e = d loss / d o. With fixed random B_k,

    dy_k = B_k^T e                                               in the place of the backpropagated d loss / d y_k
    W_k <- W_k - eta (dy_k . sigma'(z_k)) y_{k-1}^T

The output layer has its true gradient. e is known once the forward pass is over: a first pass finds it, and in a second one
each layer learns from it as soon as its output is there, so that no layer's activations wait.
"""

from collections.abc import Sequence
from typing import Literal, final

from torch import Tensor

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_tpsgd.drtp import shares
from localplug_tpsgd.feedback import Feedback
from localplug_tpsgd.recurrent import unsupported


@final
class DFA(LocalMethod):
    """Direct feedback alignment: the output's error reaches each hidden layer through a fixed random matrix of its own.

        dW_k = (1/B) sum over the batch of (B_k^T e . sigma'(z_k)) y_{k-1}^T

    Two forward passes a step; saved activations are those of one unit at a time. Gradients appear in .grad.

    Args:
        error: what e is, of the model's outputs o and the label y*: "cross-entropy" softmax(o) - y*, "bce" sigmoid(o) - y*,
            "mse" o - y*. It should be that of the trainer's loss.
        sign: takes sign(e) for e, as sDFA does. With class labels and an error of probabilities sign(e) is -1 for the label and
            +1 for all other classes, and no weight above has a say in it.
        scale: factor on the bound sqrt(6 / n) of B_k's uniform entries, n the values of the unit's output; > 0.
        units: names of the modules that start a unit (* and ? match); by default every layer with weights starts one.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them. Outputs that are not (B, K).

    Labels are integers (B,), which become one-hot, or floating-point targets (B, K).

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, DFA(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    views = (View("error", learns=False, ends="output"), View("clean"))

    def __init__(
        self,
        error: Literal["cross-entropy", "bce", "mse"] = "cross-entropy",
        sign: bool = False,
        scale: float = 1.0,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if error not in ("cross-entropy", "bce", "mse"):
            wrong.append(f'error must be "cross-entropy", "bce" or "mse", got {error!r}')
        if not scale > 0:
            wrong.append(f"scale must be positive, got {scale!r}")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("DFA: " + "; ".join(wrong))
        super().__init__(units=units, num_classes=num_classes)
        self.error, self.sign, self.scale = error, sign, scale
        # The sign of a probability less a label is the label's own, whatever the weights are.
        is_local = sign and error != "mse"
        self.reads_above = "" if is_local else "the error of the model's output, through all weights above"
        self._feedback = Feedback(scale)
        self._e_BK: Tensor | None = None

    def describe(self) -> str:
        sign = ", its sign alone" if self.sign else ""
        return f"dfa, error of {self.error}{sign}, scale {self.scale:g}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return unsupported("DFA", units)

    def top(self, unit: Unit, output: Tensor, run: Run) -> None:
        y_BK = self.one_hot(run, output.device)
        if output.shape != y_BK.shape:
            raise ValueError(
                f"DFA needs outputs of the shape of the labels {tuple(y_BK.shape)}, got {tuple(output.shape)}"
            )
        o_BK = output.float()
        made = {"cross-entropy": lambda: o_BK.softmax(-1), "bce": o_BK.sigmoid, "mse": lambda: o_BK}[self.error]()
        e_BK = made - y_BK
        self._e_BK = e_BK.sign() if self.sign else e_BK

    def signal(self, activity: Activity, run: Run) -> Signal:
        output = activity.output.detach()
        assert self._e_BK is not None
        dy = self._feedback.carried(self._e_BK, output, unit=activity.unit, seed=run.seed)
        return Signal(grad_output=dy / shares(output, activity.unit, "mean"))

    def stepped(self, run: Run) -> None:
        self._e_BK = None
