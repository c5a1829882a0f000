"""Mono-Forward: every layer learns through a linear projection of its own onto the classes; one pass, no negative data.

arXiv:2501.09238, 2025 (second version: Revisiting Forward-Forward through Objective-Locality Decomposition). Layer i:

    a_i = ReLU(W_i a_{i-1} + b_i)          a_{i-1} held constant
    G_i = a_i M_i^T,   M_i (K, n_i)         the goodness of each class
    J_i = CE(softmax(G_i), y)
    W_i <- W_i - eta dJ_i/dW_i,   M_i <- M_i - eta dJ_i/dM_i       together

Prediction: arg max of the last layer's G, or of sum_i G_i.
"""

from collections.abc import Sequence
from typing import Literal, final

from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, seeded


@final
class MonoForward(LocalMethod):
    """Mono-Forward: each hidden unit learns by cross-entropy through a projection M_i that learns with it.

        J_i = CE(a_i M_i^T, y)

    This is greedy supervised learning with a linear local head for each layer (as predsim's prediction loss and decoupled
    greedy learning with a linear head), under another name. M_i sees the unit's output flattened, so that its size must not
    change between batches. The paper's variant that also trains a projection of the raw input first is left out, and all
    layers learn in every step.

    Args:
        predict: "last" for the model's own forward pass; "sum" for sum_i G_i, the model's own output being the last of them.
        joins_head: whether the model's head is the last hidden layer's M, learned with it by the trainer's own loss, as in
            the paper; otherwise the head is a unit by itself, on top of a last hidden layer that has an M of its own. By
            default True for "last"; False for "sum", which needs the head's own output.
        units: names of the modules that start a unit (* and ? match), in the order of their calls.
        num_classes: K; by default the number of outputs of the model's last Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> Linear, ReLU = torch.nn.Linear, torch.nn.ReLU
        >>> net = torch.nn.Sequential(Linear(4, 8), ReLU(), Linear(8, 8), ReLU(), Linear(8, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, MonoForward(predict="sum"), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
        >>> list(engine.method.owned_modules.modules)
        ['0', '2']
    """

    def __init__(
        self,
        predict: Literal["last", "sum"] = "last",
        joins_head: bool | None = None,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if predict not in ("last", "sum"):
            wrong.append(f'predict must be "last" or "sum", got {predict!r}')
        if predict == "sum" and joins_head:
            wrong.append("predict='sum' adds to the head's output, and needs the head as a unit: leave joins_head out")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("MonoForward: " + "; ".join(wrong))
        joins = predict == "last" if joins_head is None else joins_head
        super().__init__(units=units, joins_head=joins, num_classes=num_classes)
        self.predict = predict
        if predict == "sum":
            self.prediction = (View("every projection", learns=False),)
        self._sum: Tensor | None = None

    def describe(self) -> str:
        return (
            f"mono-forward, a linear projection onto the classes in each hidden unit, predicts by "
            f"{'the sum of all' if self.predict == 'sum' else 'the last'}, updates by the trainer's optimizer"
        )

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module:
        D, K = output[0].numel(), self.K
        return seeded(lambda: nn.Linear(D, K or 0, bias=False), output, seed=run.seed, name=f"mono-forward {unit.key}")

    def _goodness(self, activity: Activity) -> Tensor:
        assert activity.unit.owned is not None
        G_BK: Tensor = activity.unit.owned(activity.output.flatten(1))
        return G_BK

    def signal(self, activity: Activity, run: Run) -> Signal:
        labels_B = self.class_labels(run, activity.output.device)
        return Signal(loss=F.cross_entropy(self._goodness(activity), labels_B))

    def observe(self, activity: Activity, run: Run) -> None:
        before = None if activity.unit.index == 0 else self._sum
        G_BK = self._goodness(activity)
        self._sum = G_BK if before is None else before + G_BK

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        found, self._sum = self._sum, None
        return None if found is None else output + found
