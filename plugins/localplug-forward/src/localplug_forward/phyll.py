"""PhyLL: physical layers that are only ever evaluated, each followed by a digital linear layer that learns locally.

Momeni, Rahmani, Malléjac, del Hougne, Fleury: Backpropagation-free Training of Deep Physical Neural Networks, Science 2023,
arXiv:2304.11042.

The label is written over the first K numbers of the input: the true one makes positive data, a random wrong one negative data.
Layer l:

    phi_l                                        a physical transform: evaluated, never differentiated, never trained
    y_l = W_l phi_l(x_l)                         the digital layer, which is trained
    g_l = cos(|y_l|, p_l)                        goodness; p_l a fixed random unit vector
    J_l = mean log(1 + exp(-theta (g_l(positive) - g_l(negative))))
    prediction: arg max over labels of sum_l g_l
"""

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from localplug import Activity, LocalMethod, Run, Signal, Unit, View, noise
from localplug_forward.goodness import cosine
from localplug_forward.labels import CONTRAST, EVERY_LABEL, NEUTRAL, PREDICTED_NEUTRAL, labelled


@final
class PhysicalLayer(nn.Module):
    """A transform that is only evaluated, and the digital layer behind it: one unit of PhyLL.

    Args:
        transform: any callable from a tensor (B, ...) to one with as many rows: a device, a simulation, a module. Called
            without gradients; a module's own weights are frozen.
        digital: what is trained.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor], digital: nn.Module) -> None:
        super().__init__()
        if isinstance(transform, nn.Module):
            transform.requires_grad_(False)
        self.transform, self.digital = transform, digital

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            phi = self.transform(x)
        y: Tensor = self.digital(phi.detach())
        return y


@final
class PhyLL(LocalMethod):
    """PhyLL: each unit turns its output towards a random direction for true labels, and away from it for wrong ones.

        J = log(1 + exp(-theta (g_pos - g_neg))),   g = cos(|y|, p)

    A unit is a whole block, such as a PhysicalLayer: with probe="autograd" its digital part is differentiated by itself, with
    probe="spsa" everything in the unit is only evaluated. Two evaluations a step, positive and negative data as one batch of
    2B up to the last hidden unit, and the neutral input, from which the model's last unit learns by the trainer's own loss; the
    method's prediction, in a trainer's evaluation loop and by localplug.Predictor, is theta sum_l g_l for each of K labels,
    and does not use that last unit.

    Several inner steps are plain gradient steps of the unit alone on the batch in work; what they change, divided by their
    rate, takes the place of the gradient. With SGD at that rate the unit then ends where the inner steps did. The next unit is
    fed what the unit gave before them.

    Args:
        theta: how sharply g_pos and g_neg are told apart, > 0.
        inner_steps: steps of a unit on each batch, >= 1.
        inner_lr: of those steps, > 0, where there are several; by default the trainer's learning rate.
        probe: "autograd" or "spsa".
        eps: distance of the two evaluations of "spsa", in parameter units, > 0; 1e-3 by default.
        num_directions: pairs of evaluations in a step of "spsa", >= 1; 1 by default.
        label_value: what a one of the label becomes, in units of the input, > 0.
        label_start: the first number of the flattened input that the label covers, >= 0.
        kind: "block" or "layer": where units start if `units` does not say so; see localplug.partition.
        units: names of the modules that start a unit (* and ? match), in the order of their calls.
        num_classes: K; by default the number of outputs of the last unit, if that is a Linear.

    Raises:
        ValueError: an option is outside its range, or two exclude each other; lists all of them.

    With "spsa" or several inner steps the goodness is of the output of the unit's module itself: let nothing stand between it
    and the next unit.

    Example:
        >>> import torch, localplug
        >>> layer = PhysicalLayer(torch.sin, torch.nn.Linear(6, 8))
        >>> net = torch.nn.Sequential(layer, torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        >>> engine = localplug.Engine(net, PhyLL(), optimizer)
        >>> x, y = torch.ones(4, 6), torch.tensor([0, 1, 0, 1])
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(net(x), y), optimizer, targets=y)
        >>> localplug.Predictor(net, engine.method)(x).shape
        torch.Size([4, 2])
    """

    views = (CONTRAST, NEUTRAL)
    prediction = (EVERY_LABEL, PREDICTED_NEUTRAL)

    def __init__(
        self,
        theta: float = 4.0,
        inner_steps: int = 1,
        inner_lr: float | None = None,
        probe: Literal["autograd", "spsa"] = "autograd",
        eps: float | None = None,
        num_directions: int | None = None,
        label_value: float = 1.0,
        label_start: int = 0,
        kind: Literal["block", "layer"] = "block",
        units: Sequence[str] | None = None,
        num_classes: int | None = None,
    ) -> None:
        wrong = []
        if not theta > 0:
            wrong.append(f"theta must be positive, got {theta!r}")
        if not inner_steps >= 1:
            wrong.append(f"inner_steps must be at least 1, got {inner_steps!r}")
        if inner_lr is not None and not (inner_lr > 0 and inner_steps > 1):
            wrong.append(f"inner_lr must be positive and goes with several inner_steps, got {inner_lr!r}")
        if probe not in ("autograd", "spsa"):
            wrong.append(f'probe must be "autograd" or "spsa", got {probe!r}')
        if probe == "spsa" and inner_steps > 1:
            wrong.append("inner_steps are of probe='autograd'; for 'spsa' raise num_directions")
        if (eps is not None or num_directions is not None) and probe != "spsa":
            wrong.append("eps and num_directions belong to probe='spsa'")
        if eps is not None and not eps > 0:
            wrong.append(f"eps must be positive, got {eps!r}")
        if num_directions is not None and not num_directions >= 1:
            wrong.append(f"num_directions must be at least 1, got {num_directions!r}")
        if not label_value > 0:
            wrong.append(f"label_value must be positive, got {label_value!r}")
        if not label_start >= 0:
            wrong.append(f"label_start must be at least 0, got {label_start!r}")
        if kind not in ("block", "layer"):
            wrong.append(f'kind must be "block" or "layer", got {kind!r}')
        if num_classes is not None and not num_classes >= 2:
            wrong.append(f"num_classes must be at least 2, got {num_classes!r}")
        if wrong:
            raise ValueError("PhyLL: " + "; ".join(wrong))
        super().__init__(units=units, kind=kind, num_classes=num_classes)
        self.theta, self.inner_steps, self.inner_lr, self.probe = float(theta), inner_steps, inner_lr, probe
        self.eps, self.probes = 1e-3 if eps is None else float(eps), num_directions or 1
        self.label_value, self.label_start = float(label_value), label_start
        self._p: dict[
            tuple[int, str, int, torch.device], Tensor
        ] = {}  # follow from the seed, and so are in no checkpoint
        self._scores: Tensor | None = None

    def describe(self) -> str:
        how = f"{self.probes} pairs of evaluations" if self.probe == "spsa" else f"{self.inner_steps} inner steps"
        return f"phyll, theta {self.theta:g}, {how} in each unit, updates by the trainer's optimizer"

    def unit_problems(self, units: Sequence[Unit], run: Run) -> list[str]:
        if self.K is not None and self.K < 2:
            return [f"there is no wrong label among {self.K} classes; pass num_classes="]
        return []

    def needs_graph(self, unit: Unit, view: View) -> bool:
        return self.probe == "autograd" and self.inner_steps == 1

    def local_input(self, unit: Unit, x: Tensor, view: View, run: Run) -> Tensor:
        if unit.index > 0:
            return x
        return labelled(x, view, self, run, start=self.label_start, value=self.label_value)

    def _direction(self, unit: Unit, y: Tensor, run: Run) -> Tensor:
        """p_l (D,), of norm 1."""
        D = y[0].numel()
        key = (run.seed, unit.key, D, y.device)
        if key not in self._p:
            p_D = noise.normal(noise.stream(run.seed, 0, unit.index, "phyll direction"), 0, D, y.device)
            self._p[key] = p_D / p_D.norm()
        return self._p[key]

    def _loss(self, unit: Unit, y: Tensor, run: Run) -> Tensor:
        pos_B, neg_B = cosine(y, self._direction(unit, y, run)).chunk(2)
        return F.softplus(-self.theta * (pos_B - neg_B)).mean()

    def signal(self, activity: Activity, run: Run) -> Signal:
        unit = activity.unit
        if self.probe == "spsa":

            def closure() -> Tensor:
                return self._loss(unit, unit.module(*activity.inputs, **activity.kwargs), run)

            return Signal(closure=closure, eps=self.eps, num_directions=self.probes)
        if self.inner_steps == 1:
            return Signal(loss=self._loss(unit, activity.output, run))
        return Signal(delta=self._after_inner_steps(activity, run))

    def _after_inner_steps(self, activity: Activity, run: Run) -> dict[nn.Parameter, Tensor]:
        """(weights now - weights after the inner steps) / rate: the sum of their gradients."""
        unit = activity.unit
        rate = self.inner_lr
        if rate is None:
            rate = float(run.optimizer.param_groups[0]["lr"]) if run.optimizer is not None else 1e-3
        names = {id(p): name for name, p in unit.module.named_parameters()}
        start = {names[id(p)]: p for p in unit.parameters if id(p) in names}
        now: dict[str, Tensor] = {name: p.detach().clone().requires_grad_() for name, p in start.items()}
        total = {name: torch.zeros_like(w) for name, w in now.items()}
        for _ in range(self.inner_steps):
            y = torch.func.functional_call(unit.module, now, activity.inputs, activity.kwargs)
            gradients = torch.autograd.grad(self._loss(unit, y, run), list(now.values()))
            for name, g in zip(now, gradients, strict=True):
                total[name] += g
                now[name] = (now[name].detach() - rate * g).requires_grad_()
        return {start[name]: g for name, g in total.items()}

    def observe(self, activity: Activity, run: Run) -> None:
        if activity.view != EVERY_LABEL:
            return
        assert self.K is not None
        y = activity.output
        g_BK = self.theta * cosine(y, self._direction(activity.unit, y, run)).view(self.K, -1).T
        self._scores = g_BK if activity.unit.index == 0 or self._scores is None else self._scores + g_BK

    def scores(self, output: Tensor, run: Run) -> Tensor | None:
        found, self._scores = self._scores, None
        return found
