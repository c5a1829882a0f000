"""SoftHebb: neurons that compete by a softmax, and learn by a Hebbian rule that needs no label and no error.

Moraitis, Toichkin, Journé, Chua, Guo: SoftHebb: Bayesian Inference in Unsupervised Hebbian Soft Winner-Take-All Networks, 2021,
arXiv:2107.05747. Journé, Garcia Rodriguez, Guo, Moraitis: Hebbian Deep Learning Without Feedback, ICLR 2023, arXiv:2209.11883.

For an input x (of a convolution: the patch that a position sees) and neuron k with weights w_k:

    u_k = w_k . x
    p = softmax(u / temperature)                     over the neurons
    y_k = +p_k for the winner (the largest u), -p_k for all others
    dw_k = y_k (x - u_k w_k)                         summed over positions and examples
    dw_k <- dw_k / max |dw|                          over the layer, if normalised
    w_k <- w_k + eta |norm(w_k) - 1|^power dw_k      so that each norm goes to 1, and learning ends there

Weights begin with norms far above 1 (`start_softhebb`). The last unit is a linear read-out, trained by the trainer's own loss.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, noise


@final
class SoftHebb(LocalMethod):
    """SoftHebb: hidden units learn features by soft winner-take-all and Oja's decay, without labels; the last unit reads out.

        dw_k = y_k (x - u_k w_k),   y = +softmax(u / temperature) for the winner, - for all others

    -dw takes the place of the gradient, so that an optimizer's step adds it: use SGD (Adam divides each number by its own
    size, and takes the rate |norm - 1|^power away), and give the read-out a parameter group with a rate of its own.
    Biases of hidden units stay as they are. Standardise what enters each unit, as the papers do: a BatchNorm or LayerNorm
    without affine weights in front of it belongs to the model. With a schedule of None all units learn in every step; the
    papers train one layer after the other.

    Args:
        temperature: of the softmax, in units of u, > 0. Low: the winner takes all; high: all neurons unlearn alike.
        power: of the rate |norm(w_k) - 1|^power, >= 0; 0 leaves the rate to the optimizer.
        normalised: whether dw is divided by its largest entry in the layer; otherwise it is averaged over positions and
            examples.
        unit_steps: optimizer steps for which each unit learns, one after the other, the read-out from then on, >= 1; by default
            all units learn in every step.
        units: names of the modules that start a unit (* and ? match), in the order of their calls.

    Raises:
        ValueError: an option is outside its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> start_softhebb(net[0], norm=5.0, seed=0)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        >>> engine = localplug.Engine(net, SoftHebb(), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer)
    """

    needs_targets = False

    def __init__(
        self,
        temperature: float = 1.0,
        power: float = 0.5,
        normalised: bool = True,
        unit_steps: int | None = None,
        units: Sequence[str] | None = None,
    ) -> None:
        wrong = []
        if not temperature > 0:
            wrong.append(f"temperature must be positive, got {temperature!r}")
        if not power >= 0:
            wrong.append(f"power must be at least 0, got {power!r}")
        if unit_steps is not None and not unit_steps >= 1:
            wrong.append(f"unit_steps must be at least 1, got {unit_steps!r}")
        if wrong:
            raise ValueError("SoftHebb: " + "; ".join(wrong))
        super().__init__(units=units)
        self.temperature, self.power, self.normalised = float(temperature), float(power), normalised
        self.unit_steps = unit_steps

    def describe(self) -> str:
        when = (
            f"one unit after the other, {self.unit_steps} steps each" if self.unit_steps else "all units in every step"
        )
        seen = "hidden units see no label"
        return f"softhebb, temperature {self.temperature:g}, {when}, {seen}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        found = []
        for unit in units[:-1]:
            if not isinstance(unit.module, nn.Linear | nn.Conv2d):
                kind = type(unit.module).__name__
                found.append(f"SoftHebb's rule is for Linear and Conv2d layers, and {unit.name!r} is a {kind}")
            elif isinstance(unit.module, nn.Conv2d) and unit.module.groups > 1:
                found.append(
                    f"{unit.name!r} has {unit.module.groups} groups, and its neurons compete as one; use groups=1"
                )
        return found

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        if self.unit_steps is None:
            return True
        turn = run.step // self.unit_steps
        return unit.index == turn or (unit.is_last and turn > unit.index)

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return False

    @torch.no_grad()
    def signal(self, activity: Activity, run: Run) -> Signal | None:
        module, x = activity.unit.module, activity.input
        assert isinstance(module, nn.Linear | nn.Conv2d)
        if not module.weight.requires_grad:
            return None
        x_NI = patches(module, x).to(module.weight.dtype)  # under autocast the input has another
        w_OI: Tensor = module.weight.flatten(1)
        dw_OI = hebbian(x_NI, w_OI, self.temperature)
        dw_OI = dw_OI / (dw_OI.abs().max() + 1e-30 if self.normalised else len(x_NI))
        rate_O1 = (w_OI.norm(dim=1, keepdim=True) - 1).abs() ** self.power
        weight = module.get_parameter("weight")
        return Signal(delta={weight: -(rate_O1 * dw_OI).view_as(weight).to(weight.dtype)})


def patches(module: nn.Linear | nn.Conv2d, x: Tensor) -> Tensor:
    """What the neurons see, (N, I): one row for each example and position."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, module.in_features)
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    size: tuple[int, int] = module.kernel_size  # type: ignore[assignment]
    return F.unfold(x, size, module.dilation, 0, module.stride).transpose(1, 2).flatten(0, 1)


def hebbian(x_NI: Tensor, w_OI: Tensor, temperature: float) -> Tensor:
    """sum_n y_k (x - u_k w_k), (O, I)."""
    u_NO = x_NI @ w_OI.T
    p_NO = (u_NO / temperature).softmax(1)
    winner_N1 = u_NO.argmax(1, keepdim=True)
    y_NO = (-p_NO).scatter(1, winner_N1, p_NO.gather(1, winner_N1))
    return y_NO.T @ x_NI - (y_NO * u_NO).sum(0)[:, None] * w_OI


@torch.no_grad()
def start_softhebb(module: nn.Linear | nn.Conv2d, *, norm: float, seed: int) -> None:
    """Draw a layer's weights anew: normal, each neuron's with this expected norm, a function of the seed and the shape.

    Args:
        norm: > 1; the papers' is 25.
        seed: of this layer; layers of one shape need different ones.
    """
    w = module.weight
    z = noise.normal(noise.stream(seed, 0, 0, f"softhebb {tuple(w.shape)}"), 0, w.numel(), w.device)
    w.copy_(z.view(w.shape) * norm / w[0].numel() ** 0.5)
