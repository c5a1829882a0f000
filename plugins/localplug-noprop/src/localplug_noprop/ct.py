"""NoProp-CT: one block learns to denoise the label at any time t, with a learned noise schedule.

Li, Teh, Pascanu: NoProp: Training Neural Networks without Back-propagation or Forward-propagation, 2025, arXiv:2503.24322.

    t ~ U(0, 1),  z_t ~ q(z_t | y) = N(sqrt(ab(t)) u_y, (1 - ab(t)) I),      u_y: row y of W_embed
    u(z_t, x, t) = softmax(block(z_t, x, t)) W_embed
    L = -log p_out(y | z_1) + KL(q(z_0 | y) || N(0, I)) + 1/2 eta SNR'(t) |u(z_t, x, t) - u_y|^2

with ab(t) = sigmoid(-gamma(t)), gamma falling (localplug_noprop.schedule.LearnedSchedule), SNR = ab / (1 - ab) = exp(-gamma)
and SNR' = -gamma' exp(-gamma). The block, W_embed and gamma have the gradient of all of L, through z_t, too. The two ends of
gamma are not learned, and so the weight has a bound. With the ends fixed, the mean over t of the best block's L is the same
for every gamma: what gamma changes is how much L varies with t.

The network is a single block, and inside of it the gradient is that of ordinary back-propagation. What -log p_out(y | z_1)
is to the trainer: its own loss, which says nothing about the accuracy of predictions; evaluate the model for that.
"""

from typing import Any, final

import torch

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_noprop import draws
from localplug_noprop.network import NoPropCTNet


@final
class NoPropCT(LocalMethod):
    """NoProp in continuous time, for a localplug_noprop.network.NoPropCTNet.

        L = -log p_out(y | z_1) + KL(q(z_0 | y) || N(0, I)) + 1/2 eta SNR'(t) |u(z_t, x, t) - u_y|^2,   t ~ U(0, 1)

    One forward pass a step, with a time and a sample z_t for each example. Gradients appear in .grad, so that the
    trainer's optimizer, clipping and schedule apply. A prediction is the network's forward pass in evaluation mode.

    Args:
        eta: weight of the denoising loss, > 0.

    Raises:
        ValueError: an option is outside its range.

    Labels are integers (B,).

    Example:
        >>> import torch, localplug
        >>> from localplug_noprop.blocks import Block
        >>> from localplug_noprop.embeddings import one_hot
        >>> from localplug_noprop.network import NoPropCTNet
        >>> block = Block(torch.nn.Linear(4, 8), embedded=8, z_dim=2, num_classes=2, width=8, takes_time=True)
        >>> net = NoPropCTNet(block, one_hot(2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, NoPropCT(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(self, eta: float = 1.0) -> None:
        if not eta > 0:
            raise ValueError(f"NoPropCT: eta must be positive, got {eta!r}")
        super().__init__()
        self.eta = eta

    @property
    def backpropagates(self) -> str:
        return "the one block that denoises"

    def describe(self) -> str:
        return f"noprop-ct, eta {self.eta:g}, updates by the trainer's optimizer"

    def unit_names(self, run: Run) -> list[str]:
        return draws.unit_names(run, NoPropCTNet)

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        net = draws.net_in_training(run, NoPropCTNet)
        W_KD = net.embedding
        # W_embed and gamma are the unit's own, and the sample is made of them: its graph begins here, where the unit's does.
        with torch.enable_grad():
            u_BD = W_KD[self.class_labels(run, W_KD.device)]
            eps_BD = draws.normal(run, unit.index, (u_BD.shape[0], u_BD.shape[1]), u_BD)
            if unit.is_last:
                return (draws.mixed(net.max_signal, u_BD, eps_BD),), kwargs
            t_B = draws.times(run, len(u_BD), u_BD)
            gamma_B, _ = net.schedule(t_B)
            z_BD = draws.mixed(torch.sigmoid(-gamma_B)[:, None], u_BD, eps_BD)
        return (z_BD, inputs[1], t_B), kwargs

    def signal(self, activity: Activity, run: Run) -> Signal:
        net = draws.net(run, NoPropCTNet)
        u_y_BD = net.embedding[self.class_labels(run, activity.output.device)]
        gamma_B, slope_B = net.schedule(activity.inputs[2])
        rise_B = -slope_B * torch.exp(-gamma_B)  # SNR'(t)
        L = (self.eta / 2 * rise_B * draws.distance(activity.output, u_y_BD)).mean()
        if u_y_BD.requires_grad:
            L = L + draws.kl_to_normal(net.min_signal, u_y_BD)
        return Signal(loss=L)
