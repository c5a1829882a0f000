"""What the two forward-forward methods on graphs share: goodness told apart for true and for wrong labels.

    g_i = sum_d h_id^2                                          the goodness of a node at layer l, h_i its row
    J_l = mean_i softplus(theta - g_i)  in the positive graph
        + mean over negative graphs of mean_i softplus(g_i - theta)         i: the labelled nodes
    prediction for i: argmax_k sum_l mean_d h_id^2, in the graph that says k of it

How a graph says a label is each method's own: appended to the features (label_appending), or as an edge to a virtual node
(virtual_node_forward_forward).

Shapes: N nodes, D features, K classes.
"""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_graph import schedules
from localplug_graph.labels import UNLABELLED, node_labels, shown, wrong_labels
from localplug_graph.schedules import Schedule


class GoodnessContrast(LocalMethod, abc.ABC):
    """A pass for the true labels, one for each negative graph, and the trainer's own; a prediction asks about each class.

    A method says `name`, and lets `labels` decide what its graph says in a view.

    Args:
        wrong: what the method has found wrong with its own options.
        theta, num_negatives, transductive, schedule, unit_steps, units, num_classes: as the methods document them.
    """

    name: str

    def __init__(
        self,
        wrong: Sequence[str],
        theta: float,
        num_negatives: int | None,
        transductive: bool,
        schedule: Schedule,
        unit_steps: int | None,
        units: Sequence[str] | None,
        num_classes: int | None,
    ) -> None:
        found = list(wrong)
        if not theta > 0:
            found.append(f"theta must be positive, got {theta!r}")
        if num_negatives is not None and not num_negatives >= 1:
            found.append(f"num_negatives must be at least 1, got {num_negatives!r}")
        if num_classes is not None and not num_classes >= 2:
            found.append(f"num_classes must be at least 2, got {num_classes!r}")
        if found := found + schedules.problems(schedule, unit_steps):
            raise ValueError(f"{type(self).__name__}: " + "; ".join(found))
        super().__init__(units=units, kind="block", num_classes=num_classes)
        self.theta, self.num_negatives, self.transductive = theta, num_negatives, transductive
        self.schedule, self.unit_steps = schedule, unit_steps
        self._y_N: Tensor | None = None
        self._said_N = torch.empty(0, dtype=torch.long)
        self._g_KN: list[Tensor] = []

    @property
    def views(self) -> tuple[View, ...]:  # type: ignore[override]  # their number follows from K, known with the model
        negatives = range(1, 1 + self._num_negatives)
        return (
            View("positive", ends="hidden"),
            *(View(f"negative {j}", ends="hidden") for j in negatives),
            View("clean", learns=False),
        )

    @property
    def _num_negatives(self) -> int:
        return (self.K or 2) - 1 if self.num_negatives is None else self.num_negatives

    def describe(self) -> str:
        when = schedules.describe(self.unit_steps)
        negatives = "all" if self.num_negatives is None else f"{self.num_negatives} drawn"
        return (
            f"{self.name}, theta {self.theta:g}, {negatives} wrong labels, {when}, updates by the trainer's optimizer"
        )

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return schedules.has_turn(unit, run, self.unit_steps)

    def labels(self, x: Tensor, view: View, run: Run) -> Tensor:
        """What the graph says of each of its nodes in a view: (N,), -100 of those that it says nothing of."""
        assert self.K is not None
        kind, _, number = view.name.partition(" ")
        if kind == "positive":
            self._y_N = self._said_N = node_labels(run.targets, len(x), self.K, x.device)
        elif kind == "negative":
            assert self._y_N is not None
            self._said_N = wrong_labels(self._y_N, int(number), self.K, self.num_negatives, run)
        else:
            self._said_N = torch.full((len(x),), int(number), device=x.device)
            if self.transductive and self._y_N is not None:
                self._said_N = shown(self._y_N.to(x.device), self._said_N)
        return self._said_N

    def signal(self, activity: Activity, run: Run) -> Signal:
        assert self._y_N is not None
        h_ND = activity.output[: len(self._y_N)]  # no virtual nodes
        g_i = h_ND[self._y_N != UNLABELLED].float().square().sum(1)
        if activity.view.name == "positive":
            return Signal(loss=nn.functional.softplus(self.theta - g_i).mean())
        return Signal(loss=nn.functional.softplus(g_i - self.theta).mean() / self._num_negatives)

    def observe(self, activity: Activity, run: Run) -> None:
        kind, _, number = activity.view.name.partition(" ")
        if kind != "class":
            return
        g_N = activity.output[: len(self._said_N)].float().square().mean(1)
        if activity.unit.index == 0:
            self._g_KN = [*self._g_KN[: int(number)], g_N]
        else:
            self._g_KN[-1] = self._g_KN[-1] + g_N

    def scores(self, output: Tensor, run: Run) -> Tensor:
        g_KN, self._g_KN = self._g_KN, []
        return torch.stack(g_KN, 1).to(output.dtype)

    def own_state(self) -> dict[str, Any]:
        return {"labels": self._y_N} if self.transductive and self._y_N is not None else {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._y_N = state.get("labels")
