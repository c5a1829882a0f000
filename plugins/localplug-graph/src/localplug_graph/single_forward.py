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
from typing import final

from torch import Tensor

from localplug import Activity, Run, Signal, Unit, View
from localplug_graph import schedules
from localplug_graph.class_nodes import ClassNodes, log_mean
from localplug_graph.schedules import Schedule


@final
class SingleForward(ClassNodes):
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
        super().__init__(schedules.problems(schedule, unit_steps), temperature, head, units, num_classes)
        self.schedule, self.unit_steps = schedule, unit_steps
        self._p_NK: list[Tensor] = []

    def describe(self) -> str:
        when = schedules.describe(self.unit_steps)
        return f"graph-sf, temperature {self.temperature:g}, {when}, updates by the trainer's optimizer"

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return schedules.has_turn(unit, run, self.unit_steps)

    def signal(self, activity: Activity, run: Run) -> Signal:
        return self.told_apart(activity.output, activity.unit)

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
        return log_mean(p_NK, output)
