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

from localplug import Run, Unit, View
from localplug_graph import calls
from localplug_graph.goodness import GoodnessContrast
from localplug_graph.schedules import Schedule
from localplug_graph.virtual_nodes import Edges, virtual_edges, virtual_features


@final
class VirtualNodeForwardForward(GoodnessContrast):
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

    name = "graph-ff-vn"

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
        wrong = [] if edges in ("to nodes", "both") else [f'edges must be "to nodes" or "both", got {edges!r}']
        super().__init__(wrong, theta, num_negatives, transductive, schedule, unit_steps, units, num_classes)
        self.edges = edges

    @property
    def prediction(self) -> tuple[View, ...]:  # type: ignore[override]
        classes = [View(f"class {k}", learns=False, ends="hidden") for k in range(self.K or 2)]
        return (*classes, View("clean", learns=False))

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return calls.problems(units, run, adds_edges=True)

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if view.name == "clean":
            return inputs, kwargs
        x = calls.node_features(inputs, kwargs)
        assert self.K is not None
        if unit.index == 0:
            self.labels(x, view, run)
            x = torch.cat([x, virtual_features(x, self.K, seed=run.seed)])
        else:
            x = calls.normalised(x)
        return calls.with_edges(inputs, kwargs, x, virtual_edges(self._said_N, self.edges))
