"""ForwardGNN's forward-forward by virtual nodes (FF-VN): labels are edges to a node for each class, true ones or wrong ones.

Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning of Graph Neural Networks, ICLR 2024,
arXiv:2403.11004, section 3.1; after Hinton: The Forward-Forward Algorithm, 2022, arXiv:2212.13345.

The graph gets K virtual nodes with fixed random features. In the positive graph each labelled node is joined to the virtual
node of its class, in the K - 1 negative ones to that of a wrong class. Layer l, from the rows of layer l-1 at length 1, held
constant:

    g_i = sum_d h_id^2                                          the goodness of a node at layer l, h_i its row
    J_l = mean_i softplus(theta - g_i)  in the positive graph
        + mean over negative graphs of mean_i softplus(g_i - theta)         i: the labelled nodes, no virtual ones
    prediction for i: argmax_k sum_l mean_d h_id^2, where i is joined to the virtual node of k

Shapes: N nodes, D features, K classes.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_graph import calls, schedules
from localplug_graph.labels import UNLABELLED, node_labels, shown, wrong_labels
from localplug_graph.schedules import Schedule
from localplug_graph.virtual_nodes import Edges, virtual_edges, virtual_features


@final
class VirtualNodeForwardForward(LocalMethod):
    """Forward-forward on graphs: each layer is lively at nodes that are joined to their own class's virtual node.

        J_l = softplus(theta - g) over the positive graph + softplus(g - theta) over the negative ones

    A step is one pass for the true edges, one for each negative graph, and the trainer's plain pass, from whose loss the last
    layer learns. A prediction is K passes, one for each class; `scores` are the goodness sums.

    Args:
        theta: goodness that parts positive from negative, > 0, in squared activations.
        num_negatives: None for all K - 1 wrong labels in every step; or how many passes >= 1 with a wrong label drawn for
            each node.
        edges: where the virtual nodes' edges lead: "to nodes", or "both" ways, as in the paper. Both ways, a GCNConv divides
            what a virtual node says by the root of the size of its class: 29 % of Cora's validation nodes were right, which is
            the share of the largest class.
        transductive: whether predictions are for the graph that was trained on, and show it the labels that were learned
            from. Otherwise all nodes are joined to the class in question, in any graph: on Cora's validation nodes 70 % were
            right instead of 79 %.
        schedule: "simultaneous" trains all layers in every step; "sequential", as in the paper, trains one after the other,
            each for `unit_steps` optimizer steps, and the last one from then on.
        unit_steps: optimizer steps of each layer under the sequential schedule, >= 1.
        units: names of the modules that start a unit (* and ? match), in the order of their calls; by default every child
            of the model with weights, and every member of its containers, starts one.
        num_classes: K; by default the number of outputs of the last unit, if that is a torch.nn.Linear.

    Raises:
        ValueError: an option is outside its range, or two exclude each other; lists all of them.

    Example:
        >>> import torch, localplug
        >>> from torch_geometric.nn import GCN
        >>> net = GCN(in_channels=4, hidden_channels=8, num_layers=2, out_channels=2)
        >>> x, edges = torch.eye(4), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> y = torch.tensor([0, -100, 1, -100])  # two labelled nodes
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> engine = localplug.Engine(net, VirtualNodeForwardForward(num_classes=2), optimizer)
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x, edges), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x, edges).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        theta: float = 2.0,
        num_negatives: int | None = None,
        edges: Edges = "to nodes",
        transductive: bool = True,
        schedule: Schedule = "simultaneous",
        unit_steps: int | None = None,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not theta > 0:
            wrong.append(f"theta must be positive, got {theta!r}")
        if num_negatives is not None and not num_negatives >= 1:
            wrong.append(f"num_negatives must be at least 1, got {num_negatives!r}")
        if edges not in ("to nodes", "both"):
            wrong.append(f'edges must be "to nodes" or "both", got {edges!r}')
        if num_classes is not None and not num_classes >= 2:
            wrong.append(f"num_classes must be at least 2, got {num_classes!r}")
        if wrong := wrong + schedules.problems(schedule, unit_steps):
            raise ValueError("VirtualNodeForwardForward: " + "; ".join(wrong))
        super().__init__(units=units, kind="block", num_classes=num_classes)
        self.theta, self.num_negatives, self.edges = theta, num_negatives, edges
        self.transductive, self.schedule, self.unit_steps = transductive, schedule, unit_steps
        self._y_N: Tensor | None = None
        self._joined_N = torch.empty(0, dtype=torch.long)
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
    def prediction(self) -> tuple[View, ...]:  # type: ignore[override]
        classes = [View(f"class {k}", learns=False, ends="hidden") for k in range(self.K or 2)]
        return (*classes, View("clean", learns=False))

    @property
    def _num_negatives(self) -> int:
        return (self.K or 2) - 1 if self.num_negatives is None else self.num_negatives

    def describe(self) -> str:
        when = schedules.describe(self.unit_steps)
        negatives = "all" if self.num_negatives is None else f"{self.num_negatives} drawn"
        return (
            f"graph-ff-vn, theta {self.theta:g}, {negatives} wrong labels, {when}, updates by the trainer's optimizer"
        )

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return calls.problems(units, run, adds_edges=True)

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return schedules.has_turn(unit, run, self.unit_steps)

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if view.name == "clean":
            return inputs, kwargs
        x = calls.node_features(inputs, kwargs)
        assert self.K is not None
        if unit.index == 0:
            self._joined_N = self._labels(x, view, run)
            x = torch.cat([x, virtual_features(x, self.K, seed=run.seed)])
        else:
            x = calls.normalised(x)
        return calls.with_edges(inputs, kwargs, x, virtual_edges(self._joined_N, self.edges))

    def _labels(self, x: Tensor, view: View, run: Run) -> Tensor:
        """The class (N,) of the virtual node that each node is joined to in a view, -100 for none."""
        assert self.K is not None
        kind, _, number = view.name.partition(" ")
        if kind == "positive":
            self._y_N = node_labels(run.targets, len(x), self.K, x.device)
            return self._y_N
        if kind == "negative":
            assert self._y_N is not None
            return wrong_labels(self._y_N, int(number), self.K, self.num_negatives, run)
        asked_N = torch.full((len(x),), int(number), device=x.device)
        if self.transductive and self._y_N is not None:
            return shown(self._y_N.to(x.device), asked_N)
        return asked_N

    def signal(self, activity: Activity, run: Run) -> Signal:
        assert self._y_N is not None
        h_ND = activity.output[: len(self._y_N)]
        g_i = h_ND[self._y_N != UNLABELLED].float().square().sum(1)
        if activity.view.name == "positive":
            return Signal(loss=nn.functional.softplus(self.theta - g_i).mean())
        return Signal(loss=nn.functional.softplus(g_i - self.theta).mean() / self._num_negatives)

    def observe(self, activity: Activity, run: Run) -> None:
        kind, _, number = activity.view.name.partition(" ")
        if kind != "class":
            return
        g_N = activity.output[: len(self._joined_N)].float().square().mean(1)
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
