"""ForwardGNN's single forward (SF): a layer tells the classes apart by one pass over a graph that holds a node for each.

Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning of Graph Neural Networks, ICLR 2024,
arXiv:2403.11004, section 3.2.

The graph gets K virtual nodes v_1 ... v_K with fixed random features, and an edge from each labelled node i to the virtual
node of its class y_i. Layer l, from the rows of layer l-1 at length 1, held constant:

    H_l = layer_l(H_{l-1} / |H_{l-1}|)              rows h_i of the nodes, and rows c_k of the virtual nodes
    p_l(k | i) = softmax_k(h_i . c_k / tau)
    J_l = -mean over labelled i of log p_l(y_i | i)
    prediction for i: argmax_k sum_l p_l(k | i)

The edges go to the virtual nodes only. So no labelled node hears of its own label, and a prediction needs no more of the
graph that was trained on than the c_k of each layer, which are kept: it is made for any graph, without virtual nodes, and
equals what the graph with virtual nodes would give. (On Cora's validation nodes two layers had 86.6 % right; with edges both
ways, 85.5 %.)

Shapes: N nodes, D features, K classes.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_graph import calls, schedules
from localplug_graph.calls import exchanged, node_features, normalised, with_edges
from localplug_graph.labels import UNLABELLED, node_labels
from localplug_graph.schedules import Schedule
from localplug_graph.virtual_nodes import virtual_edges, virtual_features


@final
class SingleForward(LocalMethod):
    """Each layer learns to place a node near its class's virtual node; no negative graph, no backward pass through the model.

        J_l = cross entropy of (h_i . c_k / tau)_k against y_i

    A step is one pass through the hidden layers with virtual nodes, in which they learn, and the plain pass of the trainer,
    from whose loss the last layer learns. A prediction averages the probabilities of all layers, the last one's among them;
    `scores` are their logarithms. Until a first step has been made it is the model's own.

    Args:
        temperature: tau > 0, in units of h . c.
        head: whether the last layer's softmax joins the prediction. (The paper's networks end in a layer like the others.)
            Without it a prediction is one forward pass, with it two.
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
        >>> engine = localplug.Engine(net, SingleForward(num_classes=2), optimizer)
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x, edges), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x, edges).shape
        torch.Size([4, 2])
    """

    views = (View("virtual nodes", ends="hidden"), View("clean", learns=False))

    def __init__(
        self,
        temperature: float = 1.0,
        head: bool = True,
        schedule: Schedule = "simultaneous",
        unit_steps: int | None = None,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not temperature > 0:
            wrong.append(f"temperature must be positive, got {temperature!r}")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong := wrong + schedules.problems(schedule, unit_steps):
            raise ValueError("SingleForward: " + "; ".join(wrong))
        super().__init__(units=units, kind="block", num_classes=num_classes)
        self.temperature, self.head, self.schedule, self.unit_steps = temperature, head, schedule, unit_steps
        layers = View("layers", learns=False, ends="hidden" if head else "loss")
        self.prediction = (layers, View("clean", learns=False)) if head else (layers,)
        self.classes: dict[str, Tensor] = {}
        """c of each layer, (K, D), as of the last step."""
        self._y_N: Tensor | None = None
        self._p_NK: list[Tensor] = []

    def describe(self) -> str:
        when = schedules.describe(self.unit_steps)
        return f"graph-sf, temperature {self.temperature:g}, {when}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return calls.problems(units, run, adds_edges=True)

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return schedules.has_turn(unit, run, self.unit_steps)

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if view.name == "clean" or (view.name == "layers" and not self.classes):
            return inputs, kwargs
        given = node_features(inputs, kwargs)
        x = given if unit.index == 0 else normalised(given)
        if view.name == "layers":
            return exchanged(inputs, kwargs, [(given, x)])
        assert self.K is not None
        if unit.index == 0:
            self._y_N = node_labels(run.targets, len(x), self.K, x.device)
            x = torch.cat([x, virtual_features(x, self.K, seed=run.seed)])
        assert self._y_N is not None
        return with_edges(inputs, kwargs, x, virtual_edges(self._y_N, "to virtual"))

    def signal(self, activity: Activity, run: Run) -> Signal:
        assert self._y_N is not None
        N = len(self._y_N)
        h_ND, c_KD = activity.output[:N], activity.output[N:]
        self.classes[activity.unit.key] = c_KD.detach().clone()
        z_NK = h_ND @ c_KD.T / self.temperature
        return Signal(loss=nn.functional.cross_entropy(z_NK.float(), self._y_N, ignore_index=UNLABELLED))

    def observe(self, activity: Activity, run: Run) -> None:
        name = activity.unit.key
        if activity.view.name == "virtual nodes":  # a layer whose turn it is not
            assert self._y_N is not None
            self.classes[name] = activity.output[len(self._y_N) :].clone()
        if activity.view.name != "layers":
            return
        if activity.unit.index == 0:
            self._p_NK = []
        if name in self.classes:
            c_KD = self.classes[name].to(activity.output)
            self._p_NK.append((activity.output @ c_KD.T / self.temperature).float().softmax(-1))

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        p_NK, self._p_NK = self._p_NK, []
        if not p_NK:
            return None
        if self.head:
            p_NK = [*p_NK, output.float().softmax(-1)]
        return torch.stack(p_NK).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log().to(output.dtype)

    def own_state(self) -> dict[str, Any]:
        return dict(self.classes)

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.classes = dict(state)
