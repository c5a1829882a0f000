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
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_graph import calls
from localplug_graph.labels import UNLABELLED, node_labels
from localplug_graph.virtual_nodes import virtual_edges, virtual_features


@final
class TopToLoss(LocalMethod):
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
        wrong = []
        if not temperature > 0:
            wrong.append(f"temperature must be positive, got {temperature!r}")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("TopToLoss: " + "; ".join(wrong))
        super().__init__(units=units, kind="block", num_classes=num_classes)
        self.temperature, self.head = temperature, head
        layers = View("layers", learns=False, ends="hidden" if head else "loss")
        self.prediction = (layers, View("clean", learns=False)) if head else (layers,)
        self.classes: dict[str, Tensor] = {}
        """Z's virtual rows of each layer, (K, D), as of the last step; in the order of the layers."""
        self._y_N: Tensor | None = None
        self._H: list[Tensor] = []

    def describe(self) -> str:
        return f"graph-top2loss, temperature {self.temperature:g}, updates by the trainer's optimizer"

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
        assert self._y_N is not None
        Z = _mean([activity.output, *self._H[activity.unit.index + 1 :]])
        z_ND, z_KD = Z[: len(self._y_N)], Z[len(self._y_N) :]
        self.classes[activity.unit.key] = z_KD.detach().clone()
        z_NK = z_ND @ z_KD.T / self.temperature
        return Signal(loss=nn.functional.cross_entropy(z_NK.float(), self._y_N, ignore_index=UNLABELLED))

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        H, self._H = self._H, []
        if not self.classes:
            return None
        p_NK = [output.float().softmax(-1)] if self.head else []
        for layer, z_KD in enumerate(self.classes.values()):
            z_ND = _mean(H[layer:])
            p_NK.append((z_ND @ z_KD.to(z_ND).T / self.temperature).float().softmax(-1))
        return torch.stack(p_NK).mean(0).clamp_min(torch.finfo(torch.float32).tiny).log().to(output.dtype)

    def stepped(self, run: Run) -> None:
        self._H = []

    def own_state(self) -> dict[str, Any]:
        return dict(self.classes)

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.classes = dict(state)


def _mean(H: list[Tensor]) -> Tensor:
    """Of outputs of one shape; only the first may carry a graph."""
    total = H[0]
    for h in H[1:]:
        total = total + h
    return total / len(H)
