"""NoProp-FM: one block learns the velocity that carries noise to the label's embedding, by flow matching.

Li, Teh, Pascanu: NoProp: Training Neural Networks without Back-propagation or Forward-propagation, 2025, arXiv:2503.24322.

    t ~ U(0, 1),  z_0 ~ N(0, I),  z_1 = u_y,  z_t = t z_1 + (1 - t) z_0,      u_y: row y of W_embed
    v(z_t, x, t) = block(z_t, x, t) W_embed
    L = |v(z_t, x, t) - (z_1 - z_0)|^2

Where W_embed is learned, the loss alone would be least for embeddings that are all the same; an anchor holds them apart:

    L + anchor * -log p(y | z_t + (1 - t) v(z_t, x, t)),      p(y | z) ~ exp(-|z - u_y|^2 / 2)

the same p that predictions are made by: the nearest embedding. The block and W_embed have the gradient of all of it.

The network is a single block, and inside of it the gradient is that of ordinary back-propagation. The trainer's own loss
is that of p(y | z_t + (1 - t) v), which only reports: no unit learns from it.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_noprop import draws
from localplug_noprop.network import Extrapolation, NoPropFMNet


@final
class NoPropFM(LocalMethod):
    """NoProp by flow matching, for a localplug_noprop.network.NoPropFMNet.

        L = |v(z_t, x, t) - (u_y - z_0)|^2 + anchor * -log p(y | z_t + (1 - t) v(z_t, x, t)),   t ~ U(0, 1)

    One forward pass a step, with a time and a z_t for each example. Gradients appear in .grad, so that the trainer's
    optimizer, clipping and schedule apply. A prediction is the network's forward pass in evaluation mode.

    Args:
        anchor: weight of the second term, > 0; it is there where the network learns its embeddings, and only there.

    Raises:
        ValueError: an option is outside its range.

    Labels are integers (B,).

    Example:
        >>> import torch, localplug
        >>> from localplug_noprop.blocks import Block
        >>> from localplug_noprop.embeddings import one_hot
        >>> from localplug_noprop.network import NoPropFMNet
        >>> block = Block(torch.nn.Linear(4, 8), embedded=8, z_dim=2, num_classes=2, width=8, takes_time=True)
        >>> net = NoPropFMNet(block, one_hot(2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, NoPropFM(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(self, anchor: float = 10.0) -> None:
        if not anchor > 0:
            raise ValueError(f"NoPropFM: anchor must be positive, got {anchor!r}")
        super().__init__()
        self.anchor = anchor

    @property
    def backpropagates(self) -> str:
        return "the one block that gives the velocity"

    def describe(self) -> str:
        return f"noprop-fm, anchor {self.anchor:g} for learned embeddings, updates by the trainer's optimizer"

    def unit_names(self, run: Run) -> list[str]:
        return draws.unit_names(run, NoPropFMNet)

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        return unit.index == 0

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        net = draws.net_in_training(run, NoPropFMNet)
        if unit.is_last:
            return inputs, kwargs
        # A learned W_embed is the unit's own, and z_t is made of it: its graph begins here, where the unit's does.
        with torch.set_grad_enabled(self.learns(unit, view, run)):
            z_0_BD, u_BD, t_B = self._ends(net, run)
            z_BD = t_B[:, None] * u_BD + (1 - t_B)[:, None] * z_0_BD
        if isinstance(unit.module, Extrapolation):
            return (inputs[0], z_BD, t_B), kwargs
        return (z_BD, inputs[1], t_B), kwargs

    def signal(self, activity: Activity, run: Run) -> Signal:
        net = draws.net(run, NoPropFMNet)
        z_0_BD, u_BD, t_B = self._ends(net, run)
        v_BD = activity.output
        L = draws.distance(v_BD, u_BD - z_0_BD).mean()
        if u_BD.requires_grad:
            z_1_BD = activity.inputs[0] + (1 - t_B)[:, None] * v_BD
            out = net.noprop["out"]
            L = L + self.anchor * F.cross_entropy(out(z_1_BD).float(), self.class_labels(run, v_BD.device))
        return Signal(loss=L)

    def _ends(self, net: NoPropFMNet, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """z_0, u_y and t of this step."""
        W_KD = net.embedding
        u_BD = W_KD[self.class_labels(run, W_KD.device)]
        return draws.normal(run, 0, (u_BD.shape[0], u_BD.shape[1]), u_BD), u_BD, draws.times(run, len(u_BD), u_BD)
