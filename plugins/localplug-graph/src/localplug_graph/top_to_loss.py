"""ForwardGNN's top-to-loss: single forward, where a layer's loss is of the mean of its output and those of the layers above.

Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning of Graph Neural Networks, ICLR 2024,
arXiv:2403.11004, section 3.3.

The graph has virtual nodes as in localplug_graph.single_forward. Of H_1 ... H_L, the outputs of the L hidden layers on it,

    Z_l = mean(H_l, sg(H_l+1), ..., sg(H_L))        sg: held constant; rows z_i of the nodes, z_k of the virtual nodes
    p_l(k | i) = softmax_k(z_i . z_k / tau)
    J_l = -mean over labelled i of log p_l(y_i | i)
    prediction for i: argmax_k sum_l p_l(k | i)

What comes from above are outputs, no errors: nothing is propagated back. All layers learn in every step.

Shapes: N nodes, D features, K classes.
"""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from localplug import Activity, Run, Signal, View
from localplug_graph.class_nodes import ClassNodes, log_mean


@final
class TopToLoss(ClassNodes):
    """Single forward with the outputs of the layers above in each layer's loss.

        J_l = cross entropy of (z_i . z_k / tau)_k against y_i,   Z_l = mean(H_l, sg(H_l+1), ..., sg(H_L))

    All hidden layers are equally wide. A step is a pass that gathers their outputs (which are kept, without graphs), the same
    pass again, in which they learn, and the trainer's plain pass, from whose loss the last layer learns. A prediction averages
    the probabilities of all layers, the last one's among them; `scores` are their logarithms. Until a first step has been
    made it is the model's own. The paper clips gradients to norm 1, which is the trainer's business.

    Args:
        temperature: tau > 0, in units of z . z.
        head: whether the last layer's softmax joins the prediction. (The paper's networks end in a layer like the others.)
            Without it a prediction is one forward pass, with it two.
        units: names of the modules that start a unit (* and ? match), in the order of their calls; by default every child
            of the model with weights, and every member of its containers, starts one.
        num_classes: K; by default the number of outputs of the last unit, if that is a torch.nn.Linear.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> from torch_geometric.nn import GCN
        >>> net = GCN(in_channels=4, hidden_channels=8, num_layers=3, out_channels=2)
        >>> x, edges = torch.eye(4), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> y = torch.tensor([0, -100, 1, -100])  # two labelled nodes
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> engine = localplug.Engine(net, TopToLoss(num_classes=2), optimizer)
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x, edges), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x, edges).shape
        torch.Size([4, 2])
    """

    views = (View("gather", learns=False, ends="hidden"), View("learn", ends="hidden"), View("clean", learns=False))
    reads_above = "the outputs of the layers above, in a layer's loss"

    def __init__(
        self,
        temperature: float = 1.0,
        head: bool = True,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__([], temperature, head, units, num_classes)
        self._H: list[Tensor] = []

    def describe(self) -> str:
        return f"graph-top2loss, temperature {self.temperature:g}, updates by the trainer's optimizer"

    def observe(self, activity: Activity, run: Run) -> None:
        if activity.view.name == "clean":
            return
        if activity.unit.index == 0:
            self._H = []
        self._H.append(activity.output.detach())
        if self._H[0].shape != self._H[-1].shape:
            raise ValueError(
                f"graph-top2loss needs hidden layers of one width, got {self._H[0].shape[1]} and {self._H[-1].shape[1]} (unit "
                f"{activity.unit.name!r})"
            )

    def signal(self, activity: Activity, run: Run) -> Signal:
        return self.told_apart(_mean([activity.output, *self._H[activity.unit.index + 1 :]]), activity.unit)

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        H, self._H = self._H, []
        if not self.classes:
            return None
        p_NK = [output.float().softmax(-1)] if self.head else []
        for layer, z_KD in enumerate(self.classes.values()):
            z_ND = _mean(H[layer:])
            p_NK.append((z_ND @ z_KD.to(z_ND).T / self.temperature).float().softmax(-1))
        return log_mean(p_NK, output)

    def stepped(self, run: Run) -> None:
        self._H = []


def _mean(H: list[Tensor]) -> Tensor:
    """Of outputs of one shape; only the first may carry a graph."""
    total = H[0]
    for h in H[1:]:
        total = total + h
    return total / len(H)
