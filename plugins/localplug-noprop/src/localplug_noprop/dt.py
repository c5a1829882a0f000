"""NoProp-DT: every block learns by itself to denoise the label, in discrete time.

Li, Teh, Pascanu: NoProp: Training Neural Networks without Back-propagation or Forward-propagation, 2025, arXiv:2503.24322.

Block t sees x and a noisy label that is sampled, not computed by the blocks before it:

    z_{t-1} ~ q(z_{t-1} | y) = N(sqrt(ab_{t-1}) u_y, (1 - ab_{t-1}) I),      u_y: row y of W_embed
    u_t(z_{t-1}, x) = softmax(block_t(z_{t-1}, x)) W_embed
    L_t = -log p_out(y | z_T) + KL(q(z_0 | y) || N(0, I)) + T/2 eta (SNR(t) - SNR(t-1)) |u_t(z_{t-1}, x) - u_y|^2

with SNR(t) = ab_t / (1 - ab_t) and z_T ~ q(z_T | y). The mean over t = 1 ... T is a bound on -log p(y | x) if eta = 1. No
forward pass through several blocks is part of any L_t, and so none learns from another. W_embed, where it is learned, has
the gradient of all of L_t: through u_t, through u_y, and through the samples z.

What -log p_out(y | z_T) is to the trainer: its own loss, which the model's output in training mode goes into. z_T is the
label with little noise, so that this loss says nothing about the accuracy of predictions; evaluate the model for that.
"""

from typing import Any, final

import torch

from localplug import Activity, LocalMethod, Run, Signal, Unit, View
from localplug_noprop import draws
from localplug_noprop.network import NoPropNet, Posterior
from localplug_noprop.schedule import snr


@final
class NoPropDT(LocalMethod):
    """NoProp in discrete time, for a localplug_noprop.network.NoPropNet with T blocks.

        L_t = -log p_out(y | z_T) + KL(q(z_0 | y) || N(0, I)) + T/2 eta (SNR(t) - SNR(t-1)) |u_t(z_{t-1}, x) - u_y|^2

    One forward pass a step, in which each block is handed a sample z_{t-1} of its own. Gradients appear in .grad, so that
    the trainer's optimizer, clipping and schedule apply. Saved activations are those of one block at a time. A prediction
    is the network's forward pass.

    Args:
        eta: weight of the denoising loss, > 0. Between blocks the weights are those of the network's schedule, which its
            max_signal bounds.
        block_steps: None: all blocks learn in each step, from the mean of L_1 ... L_T. A number >= 1: they take turns of so
            many optimizer steps, block t with L_t, which is what the paper does with one pass over the data for a turn. The
            others are evaluated nevertheless, but record nothing.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Labels are integers (B,).

    Example:
        >>> import torch, localplug
        >>> from localplug_noprop.blocks import Block
        >>> from localplug_noprop.embeddings import one_hot
        >>> from localplug_noprop.network import NoPropNet
        >>> def block():
        ...     return Block(torch.nn.Linear(4, 8), embedded=8, z_dim=2, num_classes=2, width=8)
        >>> net = NoPropNet([block() for _ in range(3)], one_hot(2))
        >>> optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, NoPropDT(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(self, eta: float = 0.1, block_steps: int | None = None) -> None:
        wrong = []
        if not eta > 0:
            wrong.append(f"eta must be positive, got {eta!r}")
        if block_steps is not None and not block_steps >= 1:
            wrong.append(f"block_steps must be at least 1, got {block_steps!r}")
        if wrong:
            raise ValueError("NoPropDT: " + "; ".join(wrong))
        super().__init__()
        self.eta, self.block_steps = eta, block_steps

    def describe(self) -> str:
        turns = (
            "all blocks in every step" if self.block_steps is None else f"blocks take turns of {self.block_steps} steps"
        )
        return f"noprop-dt, eta {self.eta:g}, {turns}, updates by the trainer's optimizer"

    def unit_names(self, run: Run) -> list[str]:
        return draws.unit_names(run, NoPropNet)

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        if isinstance(unit.module, Posterior):
            return False  # it has no weights
        if unit.is_last or self.block_steps is None:
            return True
        net = draws.net(run, NoPropNet)
        return unit.index == run.step // self.block_steps % net.num_blocks

    def local_inputs(
        self, unit: Unit, inputs: tuple[Any, ...], kwargs: dict[str, Any], view: View, run: Run
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(unit.module, Posterior):
            return inputs, kwargs
        net = draws.net(run, NoPropNet)
        t = net.num_blocks if unit.is_last else unit.index  # block t + 1 has the index t
        W_KD = net.embedding
        # A learned W_embed is the unit's own, and the sample is made of it: its graph begins here, where the unit's does.
        with torch.set_grad_enabled(self.learns(unit, view, run)):
            u_BD = W_KD[self.class_labels(run, W_KD.device)]
            eps_BD = draws.normal(run, t, (u_BD.shape[0], u_BD.shape[1]), u_BD)
            z_BD = draws.mixed(net.alpha_bar[t], u_BD, eps_BD)
        return (z_BD, *inputs[1:]), kwargs

    def signal(self, activity: Activity, run: Run) -> Signal:
        net = draws.net(run, NoPropNet)
        t, ab = activity.unit.index + 1, net.alpha_bar
        u_y_BD = net.embedding[self.class_labels(run, activity.output.device)]
        T = net.num_blocks if self.block_steps is not None else 1  # in the mean of all L_t it cancels
        weight = T / 2 * self.eta * (snr(ab[t]) - snr(ab[t - 1]))
        L_t = weight * draws.distance(activity.output, u_y_BD).mean()
        if u_y_BD.requires_grad and (t == 1 or self.block_steps is not None):  # once a step
            L_t = L_t + draws.kl_to_normal(ab[0], u_y_BD)
        return Signal(loss=L_t)
