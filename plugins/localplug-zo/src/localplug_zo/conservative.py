"""ZO-SGD-Cons: take the step, the opposite step or none, whichever has the smallest loss (ZO-Bench, arXiv:2402.11592).

    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps),  u = lr g z
    theta <- argmin over {theta, theta - u, theta + u} of L(.; the same batch)

Five evaluations a step. The three candidates are compared on the batch alone, and so a step can be a lucky one.
"""

from collections.abc import Sequence
from typing import final

from localplug import (
    Directions,
    Estimating,
    Estimator,
    Groups,
    Perturbation,
    Projection,
    Run,
    Term,
    Update,
    update_linearly,
)
from localplug.workers import number_of_workers
from localplug_zo.losses import checked, scalar


@final
class Candidates(Estimator):
    """The slope g along one direction, and the losses at theta, theta - lr g z and theta + lr g z.

    Args:
        eps: half-width of the finite difference, in parameter units, > 0.

    Raises:
        ValueError: eps is not positive.
    """

    num_fields = 3
    num_directions = 1

    def __init__(self, eps: float = 1e-3) -> None:
        self.eps, _ = checked(eps, 1)

    @property
    def num_evaluations(self) -> int:
        return 5

    def describe(self) -> str:
        return f"two-sided, best of three, eps {self.eps:g}"

    def problems(self, run: Run) -> list[str]:
        found = []
        if run.accumulation != 1:
            found.append("conservative steps compare candidates on one batch; set gradient accumulation to 1")
        if run.clipping:
            found.append(
                f"conservative steps take what they compared, and this trainer clips the estimate to {run.clipping:g} "
                "afterwards; set max_grad_norm=0 (transformers) or gradient_clip_val=None (lightning)"
            )
        if run.num_workers_apart > 1:
            found.append("conservative steps have one direction; set worker_directions='same'")
        if run.optimizer is None:
            found.append("conservative steps need the learning rate while they evaluate; give the engine the optimizer")
        elif len({float(g["lr"]) for g in run.optimizer.param_groups}) > 1:
            found.append("conservative steps need one learning rate for all parameter groups")
        if number_of_workers() > 1:
            found.append("conservative steps compare candidates on one worker's batch; train on one worker")
        return found

    def estimate(self, run: Run, perturbed: Perturbation) -> Estimating:
        assert run.optimizer is not None
        what = "a conservative step"
        with perturbed(0, +self.eps):
            plus = scalar((yield), what)
        with perturbed(0, -self.eps):
            minus = scalar((yield), what)
        slope = (plus - minus) / (2 * self.eps)
        step = float(run.optimizer.param_groups[0]["lr"]) * float(slope)
        clean = scalar((yield), what)
        with perturbed(0, -step):
            down = scalar((yield), what)
        with perturbed(0, +step):
            up = scalar((yield), what)
        # (slope, gain of the step, gain of the opposite step): three numbers that are linear in the losses
        return Projection([clean], [[slope], [down - clean], [up - clean]])

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        slope, down, up = raw
        if min(down, up) >= 0:
            return [0.0]
        return [slope if down <= up else -slope]

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return coefficients[0] ** 2 * (kappa - 1)


@final
class ConservativeSGD(Update):
    """theta <- theta - lr c z, without weight decay: what was compared is what is taken."""

    def describe(self) -> str:
        return "the best of a step, its opposite and none"

    def problems(self, run: Run) -> list[str]:
        groups = run.optimizer.param_groups if run.optimizer is not None else []
        if any(float(g.get("weight_decay", 0.0)) for g in groups):
            return ["conservative steps take what they compared, without weight decay; set weight_decay to 0"]
        return []

    def setup(self, run: Run, directions: Directions) -> None:
        pass

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        update_linearly(run, directions, lambda lr: [Term(0, -lr * coefficients[0])], groups)
