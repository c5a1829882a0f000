"""Forward-Forward: every layer learns to be active for a true label in the input and quiet for a wrong one.

Hinton: The Forward-Forward Algorithm: Some Preliminary Investigations, 2022, arXiv:2212.13345.

The label is written over the first K numbers of the input x. With the true one it is positive data, with a uniformly random
wrong one negative data. Layer l of width n_l:

    x_l = h_{l-1} / (sqrt(mean h_{l-1}^2) + 1e-8)             h_0 = x with its label; held constant
    h_l = ReLU(W_l x_l + b_l),   G_l = sum_j h_lj^2            the goodness
    p_l(positive) = sigmoid(G_l - theta),   theta = n_l
    J_l = -mean log p_l (positive data) - mean log(1 - p_l) (negative data), each weighing 1/2, + c R_l
    R_l = mean_j (mean_i m_li - m_lj)^2,   m_l <- .9 m_l + .1 mean_B h_l (positive data)      peer normalisation, c = .03

Prediction by a classifier: the input gets the neutral label, 1/K in all K numbers, and a linear layer reads the normalised
activities of all layers but the first. Prediction by goodness: the label whose sum of G_l over all layers but the first is
largest, out of K passes.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, seeded
from localplug_forward.goodness import Goodness, goodness, rms_normalised, widened
from localplug_forward.labels import CONTRAST, EVERY_LABEL, NEUTRAL, PREDICTED_NEUTRAL, labelled

READOUT = View("neutral, with a readout of each layer")

_MOMENTUM, _FIRST_MEAN = 0.9, 0.5  # of the peers' running means


@final
class ForwardForward(LocalMethod):
    """Forward-Forward: each hidden unit raises its goodness for true labels and lowers it for wrong ones.

        J = BCE(sigmoid(G - theta), is positive) + peer_weight R,   G = sum_j h_j^2

    Two evaluations a step: positive and negative data as one batch of 2B up to the last hidden unit, and the neutral input,
    from which the last unit, the classifier, learns by the trainer's own loss. Each unit is fed normalised activities, so
    that the trained model predicts as part of localplug.Predictor or of a trainer's evaluation loop, not alone.

    The classifier of the paper is one linear layer over all hidden layers but the first. Here the model's own last unit reads
    the last hidden layer, and an owned linear layer without bias each of those between; the sum of their logits is a linear
    function of all these layers. They are trained one by one, by cross-entropy, not together.

    Some implementations pass gradients straight through the ReLU of silent neurons. dG/dh = 2h is 0 there, so that only peer
    normalisation would reach them; activations here are the model's own and are left as they are. Of several workers each has
    running means of its own.

    Args:
        inference: "classifier" or "goodness".
        readout: what the classifier reads, "layers" (all hidden units but the first) or "last" (the last hidden unit).
        reads_first: whether the first hidden unit counts in the sums, too. It always does if it is the only one.
        goodness: "sum" or "mean" of the squares.
        threshold: theta, in units of the goodness; by default what mean squares of 1 give: n_l for "sum", 1 for "mean".
        peer_weight: c, >= 0; 0 leaves peer normalisation out.
        label_value: what a one of the label becomes, in units of the input, > 0. It decides how fast the first layer learns
            (standardised MNIST, 784-500-500-500-10, Adam, 10,000 rows, 4 epochs: validation error 10.2 % with 3, 8.7 % with
            10). With 10 and Adam at 3e-3 the classifier fell apart in 15 epochs of 60,000 rows: the test
            error was 2.8 % by goodness, but 49 % by the classifier; at 1e-3, after 4 epochs of 50,000, the validation errors
            were 3.6 % and 4.1 %.
        label_start: the first number of the flattened input that the label covers, >= 0. By default the first K of all: of
            an image the first K pixels of the first row of the first channel.
        units: names of the modules that start a unit (* and ? match), in the order of their calls.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, ForwardForward(inference="goodness"), optimizer)
        >>> x, y = torch.ones(4, 6), torch.tensor([0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        inference: Literal["classifier", "goodness"] = "classifier",
        readout: Literal["layers", "last"] = "layers",
        reads_first: bool = False,
        goodness: Goodness = "sum",
        threshold: float | None = None,
        peer_weight: float = 0.03,
        label_value: float = 1.0,
        label_start: int = 0,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if inference not in ("classifier", "goodness"):
            wrong.append(f'inference must be "classifier" or "goodness", got {inference!r}')
        if readout not in ("layers", "last"):
            wrong.append(f'readout must be "layers" or "last", got {readout!r}')
        if inference == "goodness" and readout == "last":
            wrong.append("readout='last' belongs to inference='classifier'; goodness is summed over units")
        if goodness not in ("sum", "mean"):
            wrong.append(f'goodness must be "sum" or "mean", got {goodness!r}')
        if not peer_weight >= 0:
            wrong.append(f"peer_weight must be at least 0, got {peer_weight!r}")
        if not label_value > 0:
            wrong.append(f"label_value must be positive, got {label_value!r}")
        if not label_start >= 0:
            wrong.append(f"label_start must be at least 0, got {label_start!r}")
        if num_classes is not None and not num_classes >= 2:
            wrong.append(f"num_classes must be at least 2, got {num_classes!r}")
        if wrong:
            raise ValueError("ForwardForward: " + "; ".join(wrong))
        super().__init__(units=units, num_classes=num_classes)
        self.inference, self.readout, self.reads_first = inference, readout, reads_first
        self.goodness, self.threshold, self.peer_weight = goodness, threshold, float(peer_weight)
        self.label_value, self.label_start = float(label_value), label_start
        self.prediction = (PREDICTED_NEUTRAL,) if inference == "classifier" else (EVERY_LABEL, PREDICTED_NEUTRAL)
        self.views = (CONTRAST, READOUT if inference == "classifier" and readout == "layers" else NEUTRAL)
        self._num_hidden = 0
        self._means: dict[str, Tensor] = {}  # m_l (n_l,)
        self._gathered: dict[str, tuple[Tensor, int]] = {}  # sum of the micro-batches' means in this step, their number
        self._scores: Tensor | None = None

    def describe(self) -> str:
        return (
            f"ff, {self.goodness} of squares, predicts by "
            f"{'goodness over all labels' if self.inference == 'goodness' else 'a classifier of the neutral input'}, "
            f"peer normalisation {self.peer_weight:g}, updates by the trainer's optimizer"
        )

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        self._num_hidden = len(units) - 1
        if self.K is not None and self.K < 2:
            return [f"there is no wrong label among {self.K} classes; pass num_classes="]
        return []

    def _counts(self, unit: Unit) -> bool:
        """Whether a hidden unit's goodness or readout is part of a prediction."""
        return unit.index > 0 or self.reads_first or self._hidden == 1

    @property
    def _hidden(self) -> int:
        if not self._num_hidden:  # a Predictor does not ask for problems
            assert self._stream is not None
            self._num_hidden = len(self._stream.units) - 1
        return self._num_hidden

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return view == CONTRAST  # a readout's graph starts at the unit's output

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        if unit.index == 0:
            x = labelled(x, view, self, run, start=self.label_start, value=self.label_value)
        return rms_normalised(x)

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module | None:
        if self.inference == "goodness" or self.readout == "last":
            return None
        if unit.index == self._hidden - 1 or not self._counts(unit):
            return None  # the model's own last unit reads the last hidden one
        D, K = output[0].numel(), self.K
        return seeded(lambda: nn.Linear(D, K or 0, bias=False), output, seed=run.seed, name=f"ff {unit.key}")

    def signal(self, activity: Activity, run: Run) -> Signal | None:
        if activity.view == READOUT:
            if activity.unit.owned is None:
                return None
            labels_B = self.class_labels(run, activity.output.device)
            return Signal(loss=F.cross_entropy(self._logits(activity), labels_B))
        h = activity.output
        logit = goodness(h, self.goodness) - self._threshold(h)
        is_positive = torch.zeros_like(logit)
        is_positive[: len(h) // 2] = 1
        J = F.binary_cross_entropy_with_logits(logit, is_positive)
        if self.peer_weight:
            J = J + self.peer_weight * self._peer_loss(activity.unit, widened(h[: len(h) // 2].flatten(1)))
        return Signal(loss=J)

    def _threshold(self, h: Tensor) -> float:
        if self.threshold is not None:
            return self.threshold
        return float(h[0].numel()) if self.goodness == "sum" else 1.0

    def _peer_loss(self, unit: Unit, positive_BD: Tensor) -> Tensor:
        mean_D = positive_BD.mean(0)
        if unit.key not in self._means:
            self._means[unit.key] = torch.full_like(mean_D, _FIRST_MEAN, requires_grad=False)
        before, n = self._gathered.get(unit.key, (torch.zeros_like(mean_D.detach()), 0))
        self._gathered[unit.key] = before + mean_D.detach(), n + 1
        self._means[unit.key] = self._means[unit.key].to(mean_D.device)  # a checkpoint may come from another one
        m_D = _MOMENTUM * self._means[unit.key] + (1 - _MOMENTUM) * mean_D
        return (m_D.mean() - m_D).square().mean()

    def stepped(self, run: Run) -> None:
        for name, (total, n) in self._gathered.items():
            self._means[name] = _MOMENTUM * self._means[name] + (1 - _MOMENTUM) * total / n
        self._gathered = {}

    def _logits(self, activity: Activity) -> Tensor:
        assert activity.unit.owned is not None
        logits: Tensor = activity.unit.owned(rms_normalised(activity.output.detach()).flatten(1))
        return logits

    def observe(self, activity: Activity, run: Run) -> None:
        if activity.unit.index == 0 and activity.view == self.prediction[0]:
            self._scores = None
        if activity.view == EVERY_LABEL and self._counts(activity.unit):
            assert self.K is not None
            self._add(goodness(activity.output, self.goodness).view(self.K, -1).T)
        elif activity.view == PREDICTED_NEUTRAL and activity.unit.owned is not None:
            self._add(self._logits(activity))

    def _add(self, scores_BK: Tensor) -> None:
        self._scores = scores_BK if self._scores is None else self._scores + scores_BK

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        found, self._scores = self._scores, None
        if self.inference == "goodness":
            return found
        return None if found is None else output + found

    def own_state(self) -> dict[str, Any]:
        return {"means": dict(self._means)} if self._means else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._means, self._gathered = dict(state.get("means", {})), {}
