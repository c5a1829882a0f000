"""ForwardGNN's forward learning of links (FL): each layer tells pairs of nodes that are linked from pairs that are not.

Park, Wang, Simoulin, Yang, Yang, Rossi, Trivedi, Ahmed: Forward Learning of Graph Neural Networks, ICLR 2024,
arXiv:2403.11004. One pass, and no virtual nodes. Layer l, from the rows of layer l-1 at length 1, held constant:

    s_l(i, j) = sum_d h_id h_jd                                 the score of a pair at layer l, h_i a node's row
    J_l = mean over pairs (i, j) of binary cross entropy of sigmoid(s_l(i, j)) against t_ij, 1 for a link and 0 for none
    prediction for (i, j): sum_l s_l(i, j)

Shapes: N nodes, D features, M pairs.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_graph import calls, schedules
from localplug_graph.schedules import Schedule


@final
class LinkForward(LocalMethod):
    """Each layer learns to give linked nodes rows that point the same way; no backward pass through the model.

        J_l = binary cross entropy of (h_i . h_j) against t_ij

    The model's last layer gives embeddings z, and what comes behind it scores the pair (i, j) by z_i . z_j, as PyG's examples
    do. Targets are the two tensors (pairs (2, M), t (M,)). A step is a pass in which the hidden layers learn, and the trainer's
    plain pass, from whose loss the last layer learns. In a prediction the last layer's output is (h_1, ..., h_L, z) side by
    side, whose scalar products are the sums of all layers' scores.

    Args:
        schedule: "simultaneous" trains all layers in every step; "sequential", as in the paper, trains one after the other,
            each for `unit_steps` optimizer steps, and the last one from then on.
        unit_steps: optimizer steps of each layer under the sequential schedule, >= 1.
        units: names of the modules that start a unit (* and ? match), in the order of their calls; by default every child
            of the model with weights, and every member of its containers, starts one.

    Raises:
        ValueError: an option is outside its range, or two exclude each other; lists all of them.

    Example:
        >>> import torch, localplug
        >>> from torch_geometric.nn import GCN
        >>> net = GCN(in_channels=4, hidden_channels=8, num_layers=2, out_channels=8)
        >>> x, edges = torch.eye(4), torch.tensor([[0, 1, 2, 3], [1, 0, 3, 2]])
        >>> pairs, t = torch.tensor([[0, 2, 0, 1], [1, 3, 2, 3]]), torch.tensor([1.0, 1.0, 0.0, 0.0])
        >>> def loss():
        ...     z = net(x, edges)
        ...     return torch.nn.functional.binary_cross_entropy_with_logits((z[pairs[0]] * z[pairs[1]]).sum(-1), t)
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        >>> engine = localplug.Engine(net, LinkForward(), optimizer)
        >>> J = engine.step(loss, optimizer, targets=(pairs, t))
        >>> localplug.Predictor(net, engine.method)(x, edges).shape
        torch.Size([4, 16])
    """

    views = (View("layers", ends="hidden"), View("clean", learns=False))
    prediction = (View("layers", learns=False, ends="hidden"), View("clean", learns=False))

    def __init__(
        self,
        schedule: Schedule = "simultaneous",
        unit_steps: int | None = None,
        units: Sequence[str] | None = None,
    ) -> None:
        if wrong := schedules.problems(schedule, unit_steps):
            raise ValueError("LinkForward: " + "; ".join(wrong))
        super().__init__(units=units, kind="block", num_classes=1)
        self.schedule, self.unit_steps = schedule, unit_steps
        self._h: list[Tensor] = []

    def describe(self) -> str:
        return f"graph-sf of links, {schedules.describe(self.unit_steps)}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        return calls.problems(units, run, adds_edges=False)

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return schedules.has_turn(unit, run, self.unit_steps)

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        return x if view.name == "clean" or unit.index == 0 else calls.normalised(x)

    def signal(self, activity: Activity, run: Run) -> Signal:
        h_ND = activity.output
        (i_M, j_M), t_M = _pairs(run.targets, len(h_ND), h_ND.device)
        s_M = (h_ND[i_M] * h_ND[j_M]).sum(-1).float()
        return Signal(loss=nn.functional.binary_cross_entropy_with_logits(s_M, t_M))

    def observe(self, activity: Activity, run: Run) -> None:
        if activity.view.name == "layers":
            self._h = [*(self._h if activity.unit.index else []), activity.output]

    def scores(self, output: Tensor, run: Run) -> Tensor:
        h, self._h = self._h, []
        return torch.cat([*(h_ND.to(output) for h_ND in h), output], 1)

    def stepped(self, run: Run) -> None:
        self._h = []


def _pairs(targets: Any, num_nodes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs (2, M) and t (M,) in float32.

    Raises:
        TypeError, ValueError: they are no two tensors, of other shapes, of no nodes, or t is neither 0 nor 1.
    """
    if not (isinstance(targets, tuple | list) and len(targets) == 2 and all(isinstance(t, Tensor) for t in targets)):
        raise TypeError(f"the targets must be the tensors (pairs (2, M), t (M,)), got {type(targets).__name__}")
    pairs_2M, t_M = targets[0].to(device), targets[1].to(device).float()
    if pairs_2M.dtype != torch.long or pairs_2M.dim() != 2 or pairs_2M.shape != (2, len(t_M)) or not len(t_M):
        raise ValueError(
            f"the targets must be pairs (2, M) of integers and t (M,), got the shapes {tuple(pairs_2M.shape)} and "
            f"{tuple(t_M.shape)}"
        )
    if not 0 <= int(pairs_2M.min()) <= int(pairs_2M.max()) < num_nodes:
        raise ValueError(
            f"pairs must be of nodes in [0, {num_nodes}), got {int(pairs_2M.min())} to {int(pairs_2M.max())}"
        )
    if not bool(((t_M == 0) | (t_M == 1)).all()):
        raise ValueError("t must be 1 for a link and 0 for none")
    return pairs_2M, t_M
