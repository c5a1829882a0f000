"""ForwardGNN's forward-forward by label appending (FF-LA): a layer tells the graph with true labels from those with wrong ones.

Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning of Graph Neural Networks, ICLR 2024,
arXiv:2403.11004, section 3.1; after Hinton: The Forward-Forward Algorithm, 2022, arXiv:2212.13345.

Node i enters as (x_i, a_i): a_i is one-hot of its label, true in the positive graph and wrong in the K - 1 negative ones,
and (1/K, ..., 1/K) where it has none. Layer l, from the rows of layer l-1 at length 1, held constant:

    g_i = sum_d h_id^2                                          the goodness of a node at layer l, h_i its row
    J_l = mean_i softplus(theta - g_i)  in the positive graph
        + mean over negative graphs of mean_i softplus(g_i - theta)         i: the labelled nodes
    prediction for i: argmax_k sum_l mean_d h_id^2, where a_i is one-hot of k

Shapes: N nodes, D features, K classes.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from localplug import Run, Unit, View
from localplug_graph import calls
from localplug_graph.goodness import GoodnessContrast
from localplug_graph.labels import UNLABELLED
from localplug_graph.schedules import Schedule


def with_label_columns(x_ND: Tensor, K: int) -> Tensor:
    """The node features with K columns of 1/K behind them, which graph-ff-la fills with labels: (N, D + K)."""
    return torch.cat([x_ND, x_ND.new_full((len(x_ND), K), 1 / K)], 1)


@final
class LabelAppending(GoodnessContrast):
    """Forward-forward on graphs: each layer is lively where a node's appended label is true, and quiet where it is wrong.

        J_l = softplus(theta - g) over the positive graph + softplus(g - theta) over the negative ones

    The model is made for D + K features, and called with `with_label_columns(x, K)`: whatever the last K columns of its first
    layer's input hold is replaced in the method's own passes. A step is one pass for the true labels, one for each negative
    graph, and the trainer's plain pass, from whose loss the last layer learns. A prediction is K passes, one for each class;
    `scores` are the goodness sums.

    Args:
        theta: goodness that parts positive from negative, > 0, in squared activations.
        num_negatives: None for all K - 1 wrong labels in every step; or how many passes >= 1 with a wrong label drawn for
            each node.
        transductive: whether predictions are for the graph that was trained on, and show it the labels that were learned
            from. Otherwise all nodes are given the label in question, in any graph: on Cora's validation nodes 69 % were right
            instead of 81 %.
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
        >>> net = GCN(in_channels=4 + 2, hidden_channels=8, num_layers=2, out_channels=2)
        >>> x, edges = with_label_columns(torch.eye(4), 2), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> y = torch.tensor([0, -100, 1, -100])  # two labelled nodes
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> engine = localplug.Engine(net, LabelAppending(num_classes=2), optimizer)
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x, edges), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x, edges).shape
        torch.Size([4, 2])
    """

    name = "graph-ff-la"

    def __init__(
        self,
        theta: float = 2.0,
        num_negatives: int | None = None,
        transductive: bool = True,
        schedule: Schedule = "simultaneous",
        unit_steps: int | None = None,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__([], theta, num_negatives, transductive, schedule, unit_steps, units, num_classes)

    @property
    def prediction(self) -> tuple[View, ...]:  # type: ignore[override]
        *others, last = (f"class {k}" for k in range(self.K or 2))
        return (*(View(name, learns=False, ends="hidden") for name in others), View(last, learns=False))

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return calls.problems(units, run, adds_edges=False)

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        if view.name == "clean":
            return x
        if unit.index > 0:
            return calls.normalised(x)
        assert self.K is not None
        if x.shape[1] <= self.K:
            raise ValueError(
                f"the first layer needs features and {self.K} label columns behind them, got {x.shape[1]} columns in all; see "
                "localplug_graph.label_appending.with_label_columns"
            )
        y_N = self.labels(x, view, run)
        a_NK = nn.functional.one_hot(y_N.clamp_min(0), self.K).to(x.dtype)
        a_NK = a_NK.masked_fill((y_N == UNLABELLED)[:, None], 1 / self.K)
        return torch.cat([x[:, : -self.K], a_NK], 1)
