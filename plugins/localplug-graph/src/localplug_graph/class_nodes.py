"""What single forward and top-to-loss share: a virtual node for each class, whose rows a layer learns to tell apart.

The virtual nodes' rows of each layer, (K, D), are kept as of the last step: a prediction needs no more of the graph that was
trained on, and is made for any graph, without virtual nodes.

Shapes: N nodes, D features, K classes.
"""

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from localplug import LocalMethod, Run, Signal, Unit, View
from localplug_graph import calls
from localplug_graph.labels import UNLABELLED, node_labels
from localplug_graph.virtual_nodes import virtual_edges, virtual_features


class ClassNodes(LocalMethod, abc.ABC):
    """A method whose learning views see the graph with virtual nodes; "clean" is the trainer's own, "layers" a prediction's.

    Args:
        wrong: what the method has found wrong with its own options.
        temperature, head, units, num_classes: as the methods document them.
    """

    def __init__(
        self, wrong: Sequence[str], temperature: float, head: bool, units: Sequence[str] | None, num_classes: int | None
    ) -> None:
        found = []
        if not temperature > 0:
            found.append(f"temperature must be positive, got {temperature!r}")
        if num_classes is not None and not num_classes >= 1:
            found.append(f"num_classes must be at least 1, got {num_classes!r}")
        if found := found + list(wrong):
            raise ValueError(f"{type(self).__name__}: " + "; ".join(found))
        super().__init__(units=units, kind="block", num_classes=num_classes)
        self.temperature, self.head = temperature, head
        layers = View("layers", learns=False, ends="hidden" if head else "loss")
        self.prediction = (layers, View("clean", learns=False)) if head else (layers,)
        self.classes: dict[str, Tensor] = {}
        """The virtual nodes' rows of each layer, (K, D), as of the last step; in the order of the layers."""
        self._y_N: Tensor | None = None

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return calls.problems(units, run, adds_edges=True)

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if view.name == "clean" or (view.name == "layers" and not self.classes):
            return inputs, kwargs
        given = calls.node_features(inputs, kwargs)
        x = given if unit.index == 0 else calls.normalised(given)
        if view.name == "layers":
            return calls.exchanged(inputs, kwargs, [(given, x)])
        assert self.K is not None
        if unit.index == 0:
            self._y_N = node_labels(run.targets, len(x), self.K, x.device)
            x = torch.cat([x, virtual_features(x, self.K, seed=run.seed)])
        assert self._y_N is not None
        return calls.with_edges(inputs, kwargs, x, virtual_edges(self._y_N, "to virtual"))

    def told_apart(self, rows: Tensor, unit: Unit) -> Signal:
        """The cross-entropy of the labelled nodes' rows against the virtual nodes' rows, which are kept; rows (N + K, D)."""
        assert self._y_N is not None
        h_ND, c_KD = rows[: len(self._y_N)], rows[len(self._y_N) :]
        self.classes[unit.key] = c_KD.detach().clone()
        z_NK = h_ND @ c_KD.T / self.temperature
        return Signal(loss=nn.functional.cross_entropy(z_NK.float(), self._y_N, ignore_index=UNLABELLED))

    def own_state(self) -> dict[str, Any]:
        return dict(self.classes)

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.classes = dict(state)


def log_mean(p_NK: Sequence[Tensor], like: Tensor) -> Tensor:
    """The logarithm of the mean of probabilities, in another tensor's dtype."""
    return torch.stack(list(p_NK)).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log().to(like.dtype)
