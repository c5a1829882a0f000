"""Cascaded Forward: blocks that stay random, and a linear head for each that learns to predict the class from it.

Zhao, Wang, Jin, Lang, Li, Ling: The Cascaded Forward Algorithm for Neural Network Training, 2023, arXiv:2303.09728.

    h_i = block_i(h_{i-1})                       random, fixed
    z_i = h_i W_i                                W_i (D_i, K), one for each block, without bias
    L_i = CE(softmax(z_i), y), the sparsemax loss of z_i, or ||z_i - y*||^2
    prediction: arg max of sum_i softmax(z_i)

With the square the best W_i is known: W_i = (X^T X / n + ridge I)^{-1} X^T Y / n, X (n, D_i) being all h_i seen so far.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, seeded
from localplug_forward.sparsemax import sparsemax_loss

Loss = Literal["ce", "sparsemax", "mse", "mse-closed-form"]
_LOSSES = ("ce", "sparsemax", "mse", "mse-closed-form")


@final
class CaFo(LocalMethod):
    """Cascaded Forward with random blocks: nothing in a hidden unit learns but the linear head that the method owns there.

        L_i = loss(h_i W_i, y),   prediction: arg max of sum_i softmax(h_i W_i)

    The model's own last unit learns by the trainer's loss as ever, and is what the model predicts by alone; the method's
    prediction, in a trainer's evaluation loop and by localplug.Predictor, is the sum over the hidden units' heads. A head sees
    the unit's output flattened, so that its size must not change between batches. The paper's blocks that are first trained by
    direct feedback alignment are left out.

    Give the optimizer all parameters and leave requires_grad on, or name the blocks with `units`: a frozen layer starts no
    unit by itself. Blocks get no gradient, so that no optimizer of torch moves or decays them.

    Args:
        loss: "ce", "sparsemax", "mse", or "mse-closed-form", which solves the normal equations from sums over every batch
            seen, once for each prediction after a change; it keeps D_i^2 numbers for each block, in float64.
        ridge: added to the diagonal of X^T X / n, in units of the squared activity, > 0; for "mse-closed-form".
        kind: "layer" or "block": where units start if `units` does not say so; see localplug.partition.
        units: names of the modules that start a unit (* and ? match), in the order of their calls.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, CaFo(loss="mse-closed-form"), optimizer)
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x).argmax(1)
        tensor([0, 1, 1, 0])
    """

    prediction = (View("every head", learns=False),)

    def __init__(
        self,
        loss: Loss = "ce",
        ridge: float | None = None,
        kind: Literal["layer", "block"] = "layer",
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if loss not in _LOSSES:
            wrong.append(f"loss must be one of {_LOSSES}, got {loss!r}")
        if ridge is not None and loss != "mse-closed-form":
            wrong.append(f"ridge={ridge!r} belongs to loss='mse-closed-form'")
        if ridge is not None and not ridge > 0:
            wrong.append(f"ridge must be positive, got {ridge!r}")
        if kind not in ("layer", "block"):
            wrong.append(f'kind must be "layer" or "block", got {kind!r}')
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("CaFo: " + "; ".join(wrong))
        super().__init__(units=units, kind=kind, num_classes=num_classes)
        self.loss, self.ridge = loss, 1e-4 if ridge is None else float(ridge)
        self._moments: dict[str, dict[str, Tensor]] = {}  # of each unit: xx (D, D), xy (D, K), n
        self._unsolved: set[str] = set()
        self._sum: Tensor | None = None

    def describe(self) -> str:
        return f"cafo, random blocks that stay as they are, a linear head on each by {self.loss}, " + (
            "solved from the normal equations"
            if self.loss == "mse-closed-form"
            else "updates by the trainer's optimizer"
        )

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return False  # a head's graph starts at the unit's output

    def owns(self, unit: Unit, output: Tensor, run: Run) -> nn.Module:
        D, K = output[0].numel(), self.K
        head = seeded(lambda: nn.Linear(D, K or 0, bias=False), output, seed=run.seed, name=f"cafo {unit.key}")
        return head.requires_grad_(self.loss != "mse-closed-form")

    def signal(self, activity: Activity, run: Run) -> Signal | None:
        h_BD, head = activity.output.detach().flatten(1), activity.unit.owned
        assert head is not None
        labels_B = self.class_labels(run, h_BD.device)
        if self.loss == "mse-closed-form":
            self._gather(activity.unit, h_BD, labels_B)
            return None
        z_BK = head(h_BD)
        if self.loss == "ce":
            return Signal(loss=F.cross_entropy(z_BK, labels_B))
        if self.loss == "sparsemax":
            return Signal(loss=sparsemax_loss(z_BK, labels_B))
        y_BK = self.one_hot(run, h_BD.device).to(z_BK)
        return Signal(loss=(z_BK - y_BK).square().sum(1).mean())

    @torch.no_grad()
    def _gather(self, unit: Unit, h_BD: Tensor, labels_B: Tensor) -> None:
        """Take a batch into the means of x x^T and x y^T. Means, not sums: further epochs leave them as they are."""
        assert self.K is not None
        x_BD = h_BD.double()
        y_BK = F.one_hot(labels_B, self.K).double()
        D, B = x_BD.shape[1], len(x_BD)
        if unit.key not in self._moments:
            self._moments[unit.key] = {
                "xx": x_BD.new_zeros(D, D),
                "xy": x_BD.new_zeros(D, self.K),
                "n": x_BD.new_zeros(()),
            }
        seen = {name: moment.to(x_BD.device) for name, moment in self._moments[unit.key].items()}
        self._moments[unit.key] = seen
        seen["n"] += B
        seen["xx"] += (x_BD.T @ x_BD - B * seen["xx"]) / seen["n"]
        seen["xy"] += (x_BD.T @ y_BK - B * seen["xy"]) / seen["n"]
        self._unsolved.add(unit.key)

    def _solve(self, unit: Unit) -> None:
        """W = (X^T X / n + ridge I)^{-1} X^T Y / n into the head."""
        assert isinstance(unit.owned, nn.Linear)
        seen = self._moments[unit.key]
        damped_DD = seen["xx"] + self.ridge * torch.eye(len(seen["xx"]), dtype=torch.double, device=seen["xx"].device)
        unit.owned.weight.copy_(torch.linalg.solve(damped_DD, seen["xy"]).T)
        self._unsolved.discard(unit.key)

    def observe(self, activity: Activity, run: Run) -> None:
        unit = activity.unit
        if unit.key in self._unsolved:
            self._solve(unit)
        assert unit.owned is not None
        p_BK = unit.owned(activity.output.flatten(1)).softmax(1)
        self._sum = p_BK if unit.index == 0 or self._sum is None else self._sum + p_BK

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        found, self._sum = self._sum, None
        return found

    def own_state(self) -> dict[str, Any]:
        return {"moments": {k: dict(v) for k, v in self._moments.items()}} if self._moments else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._moments = {k: {n: t.clone() for n, t in v.items()} for k, v in state.get("moments", {}).items()}
        self._unsolved = set(self._moments)
