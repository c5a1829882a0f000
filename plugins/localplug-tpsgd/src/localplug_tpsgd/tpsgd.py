"""tpSGD: stochastic gradient descent on projected targets.

Lomnitz, Daniels, Zhang, Piacentino: Learning with Local Gradients at the Edge, 2022, arXiv:2208.08503.

Unit i computes y_i = sigma(W_i y_{i-1} + b_i). With fixed random P_i and the label y* (one-hot):

    t_i = P_i y*                                   the local target; the last unit's is the label itself
    J_i = loss(y_i, t_i)                           l2, l1, or any other
    W_i <- W_i - eta dJ_i/dW_i,   dJ_i/dW_i = (dJ_i/dy_i . sigma'(z_i)) y_{i-1}^T       y_{i-1} held constant

dJ_i/dW_i is a vector-Jacobian product inside the unit, for linear, convolutional and any other units; a recurrent
unit's is truncated to one time step, or to some (localplug_tpsgd.recurrent). Nothing flows from one unit to another.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from localplug import (
    Activity,
    LocalLoss,
    LocalMethod,
    Run,
    Signal,
    TargetGenerator,
    Unit,
    View,
    local_loss,
    target_generator,
)
from localplug_tpsgd import recurrent
from localplug_tpsgd.losses import delta_l1, delta_l2

_CLOSED_FORM = {"l1": delta_l1, "l2": delta_l2}


@final
class TPSGD(LocalMethod):
    """Target-projection SGD: each unit learns from a random projection of the label, as soon as its forward is done.

        t_i = P_i y*,   dJ_i/dW_i = VJP of unit i with dJ_i/dy_i

    One forward pass a step; the last unit learns from the trainer's own loss. Gradients appear in .grad, so that the
    trainer's optimizer, clipping and schedule apply. Saved activations are those of one unit at a time.

    Args:
        loss: "l2", "l1", the name of an installed local loss, or a callable(output, target) -> scalar.
        scale: largest target, in activation units, > 0. The dominant hyper-parameter: see TargetProjection.
        target: the name of an installed target generator, or a TargetGenerator. `scale` goes to "projection" only.
        schedule: "simultaneous" trains all units in every step; "sequential" trains one after the other, each for
            `unit_steps` optimizer steps, and the last one from then on.
        unit_steps: optimizer steps of each unit under the sequential schedule, >= 1.
        time: where a recurrent unit has its target, at "all" steps or at the "last" one. (The paper's text that we could
            read does not say which.)
        truncation: time steps that the gradient goes back through inside a recurrent unit, >= 1. 1 is local in time as well;
            more is local in depth only, and keeps the states of so many steps.
        units: names of the modules that start a unit (* and ? match), in the order of their calls; by default every
            layer with weights starts one.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range, or two exclude each other; lists all of them.

    Labels are integers (B,), which become one-hot, or floating-point targets (B, K) of a regression.

    Example:
        >>> import torch, localplug
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> engine = localplug.Engine(net, TPSGD(loss="l2"), optimizer)
        >>> x, y = torch.ones(6, 4), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
    """

    def __init__(
        self,
        loss: str | LocalLoss = "l2",
        scale: float = 3.0,
        target: str | TargetGenerator = "projection",
        schedule: Literal["simultaneous", "sequential"] = "simultaneous",
        unit_steps: int | None = None,
        time: Literal["all", "last"] = "all",
        truncation: int = 1,
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not scale > 0:
            wrong.append(f"scale must be positive, got {scale!r}")
        if target != "projection" and scale != 3.0:
            wrong.append(f"scale={scale!r} belongs to target='projection'; give it to your own target generator")
        if schedule not in ("simultaneous", "sequential"):
            wrong.append(f'schedule must be "simultaneous" or "sequential", got {schedule!r}')
        if (schedule == "sequential") != (unit_steps is not None):
            wrong.append(
                "unit_steps (optimizer steps of each unit) goes with schedule='sequential', and is needed there"
            )
        if unit_steps is not None and not unit_steps >= 1:
            wrong.append(f"unit_steps must be at least 1, got {unit_steps!r}")
        if time not in ("all", "last"):
            wrong.append(f'time must be "all" or "last", got {time!r}')
        if not (isinstance(truncation, int) and truncation >= 1):
            wrong.append(f"truncation (time steps) must be an integer of at least 1, got {truncation!r}")
        if num_classes is not None and not num_classes >= 1:
            wrong.append(f"num_classes must be at least 1, got {num_classes!r}")
        if wrong:
            raise ValueError("TPSGD: " + "; ".join(wrong))
        super().__init__(units=units, num_classes=num_classes)
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        self._loss, self._delta = local_loss(loss), _CLOSED_FORM.get(loss) if isinstance(loss, str) else None
        self.targets = target_generator(target, **({"scale": scale} if target == "projection" else {}))
        self.scale, self.schedule, self.unit_steps = scale, schedule, unit_steps
        self.time, self.truncation = time, truncation

    def describe(self) -> str:
        when = (
            f"one unit after the other, {self.unit_steps} steps each" if self.unit_steps else "all units in every step"
        )
        return f"tpsgd, local loss {self.loss_name}, scale {self.scale:g}, {when}, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        found = []
        for unit in units:
            if isinstance(unit.module, nn.RNNBase):
                found += recurrent.problems(unit.module, unit.name)
        return found

    def learns(self, unit: Unit, view: View, run: Run) -> bool:
        if self.unit_steps is None:
            return True
        turn = run.step // self.unit_steps
        return unit.index == turn or (unit.is_last and turn > unit.index)

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return not unit.is_recurrent

    def signal(self, activity: Activity, run: Run) -> Signal:
        unit, output = activity.unit, activity.output
        y_BK = self.one_hot(run, output.device)
        if isinstance(unit.module, nn.RNNBase):
            return Signal(loss=self._recurrent_loss(unit, unit.module, activity.inputs, y_BK, run))
        with torch.no_grad():
            t = self.targets.generate(y_BK, output.detach(), unit=unit, seed=run.seed)
        if self._delta is not None:
            return Signal(grad_output=self._delta(output.detach(), t))
        return Signal(loss=self._loss(output, t))

    def _recurrent_loss(
        self, unit: Unit, module: nn.RNNBase, inputs: tuple[Any, ...], y_BK: Tensor, run: Run
    ) -> Tensor:
        J = y_BK.new_zeros(())
        for layer, h_TBH in enumerate(recurrent.truncated_outputs(module, inputs, self.truncation)):
            h_BTH = (h_TBH if self.time == "all" else h_TBH[-1:]).transpose(0, 1)
            part = Unit(unit.index * 1000 + layer, f"{unit.name}.{layer}", module, unit.parameters)
            with torch.no_grad():
                t = self.targets.generate(y_BK, h_BTH.detach(), unit=part, seed=run.seed)
            J = J + self._loss(h_BTH, t)
        return J
