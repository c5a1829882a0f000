"""MeZO-SVRG: stochastic variance-reduced zeroth order (Gautam et al., arXiv:2404.08080, ICML 2024).

Every `period` steps the weights become the anchor theta_a, and the estimate there is averaged over `anchor_batches` batches
along one direction z_a:

    g_a  = mean over batches B of (L(theta_a + eps z_a; B) - L(theta_a - eps z_a; B)) / (2 eps)

and each step between two anchors corrects its own estimate by what the same direction gives at the anchor on the same batch:

    c    = slope of L(.; B) at theta along z - slope of L(.; B) at theta_a along z
    theta <- theta - lr (c z + g_a z_a)

The anchor is not stored: theta_a = theta - (the steps since), and those are made again from their seeds. So it takes the
memory of one model and, in a step k after the anchor, k more sweeps of noise for each of the two evaluations at the anchor.
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

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
    read,
    update_linearly,
)
from localplug_zo.losses import checked
from localplug_zo.two_sided import spsa_variance


@final
class SVRG(Estimator):
    """Anchored two-sided slopes; the state of both halves of the method.

    The first `anchor_batches` steps of each period measure at the anchor and move nothing (2 evaluations), the others have
    4 evaluations.

    Args:
        eps: half-width of the finite difference, in parameter units, > 0.
        period: steps from one anchor to the next, more than anchor_batches.
        anchor_batches: batches that the anchor's estimate is averaged over, >= 1.

    Raises:
        ValueError: one of them is out of range.
    """

    num_fields = 1
    num_directions = 1

    def __init__(self, eps: float = 1e-3, period: int = 20, anchor_batches: int = 4) -> None:
        self.eps, _ = checked(eps, 1)
        if not (isinstance(anchor_batches, int) and isinstance(period, int) and 1 <= anchor_batches < period):
            raise ValueError(
                f"period must be more than anchor_batches, and that at least 1, got {period!r} and {anchor_batches!r}"
            )
        self.period, self.anchor_batches = period, anchor_batches
        self._step = 0
        self.anchor = 0.0
        """g_a, the mean of what was measured of it so far."""
        self.num_measured = 0
        self.anchor_step = 0
        """The step whose direction is z_a."""
        self.since: list[Term] = []
        """theta - theta_a, as terms."""

    @property
    def is_measuring(self) -> bool:
        """Whether the step in work measures at the anchor."""
        return self._step % self.period < self.anchor_batches

    @property
    def num_evaluations(self) -> int:
        return 2 if self.is_measuring else 4

    @property
    def cost(self) -> str:
        return "4 forward passes a batch, 2 at the anchor"

    def describe(self) -> str:
        return f"two-sided over an anchor of {self.anchor_batches} batches every {self.period} steps, eps {self.eps:g}"

    def problems(self, run: Run) -> list[str]:
        if run.num_workers_apart > 1:
            return ["svrg has one direction a step; set worker_directions='same'"]
        return []

    def estimate(self, run: Run, perturbed: Perturbation) -> Estimating:
        self._begin(run)
        if self.is_measuring:
            here = [Term(0, +self.eps, self.anchor_step)], [Term(0, -self.eps, self.anchor_step)]
            return (yield from self._slopes(perturbed, *here))
        now = yield from self._slopes(perturbed, [Term(0, +self.eps)], [Term(0, -self.eps)])
        back = [Term(t.direction, -t.factor, t.step) for t in self.since]
        then = yield from self._slopes(perturbed, [*back, Term(0, +self.eps)], [*back, Term(0, -self.eps)])
        difference = [a - b for a, b in zip(now.slopes[0], then.slopes[0], strict=True)]
        return Projection(now.values, [difference])

    def _begin(self, run: Run) -> None:
        self._step = run.step
        if run.step % self.period == 0 and self.anchor_step != run.step:
            self.anchor, self.anchor_step, self.since, self.num_measured = 0.0, run.step, [], 0

    def _slopes(self, perturbed: Perturbation, plus: Sequence[Term], minus: Sequence[Term]) -> Any:
        found: list[list[Tensor]] = []
        for terms in (plus, minus):
            with perturbed(0, 0.0, terms):
                found.append(read((yield)))
        slopes = [(p - m) / (2 * self.eps) for p, m in zip(*found, strict=True)]
        return Projection([(p + m) / 2 for p, m in zip(*found, strict=True)], [slopes])

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        return list(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance([coefficients[0] + self.anchor], kappa)

    def state_dict(self) -> dict[str, Any]:
        since = [[float(t.direction), t.factor, float(t.step or 0)] for t in self.since]
        return {
            "anchor": self.anchor,
            "anchor_step": self.anchor_step,
            "since": since,
            "step": self._step,
            "measured": self.num_measured,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchor, self.anchor_step = float(state.get("anchor", 0.0)), int(state.get("anchor_step", 0))
        self.since = [Term(int(j), float(f), int(step)) for j, f, step in state.get("since", [])]
        self._step, self.num_measured = int(state.get("step", 0)), int(state.get("measured", 0))


@final
class AnchoredSGD(Update):
    """theta <- theta - lr (c z + g_a z_a), and nothing while the anchor is measured.

    Args:
        estimator: that holds the anchor.
    """

    def __init__(self, estimator: SVRG) -> None:
        self.estimator = estimator

    def describe(self) -> str:
        return "SGD in place"

    def problems(self, run: Run) -> list[str]:
        groups = run.optimizer.param_groups if run.optimizer is not None else []
        found = []
        if any(float(g.get("weight_decay", 0.0)) for g in groups):
            found.append(
                "svrg makes its anchor again from the steps since, without weight decay; set weight_decay to 0"
            )
        if len({float(g["lr"]) for g in groups}) > 1:
            found.append("svrg makes its anchor again with one learning rate; use one for all parameter groups")
        return found

    def setup(self, run: Run, directions: Directions) -> None:
        if directions.selection.changes:
            raise ValueError("svrg makes its anchor again from past directions; select parameters by name or by a mask")

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        state = self.estimator
        state._begin(run)
        if state.is_measuring:
            state.num_measured += 1
            state.anchor += (coefficients[0] - state.anchor) / state.num_measured
            state._step = run.step + 1
            return
        lr = float(groups[run.parameters[directions.indices[0]][1]]["lr"])
        terms = [Term(0, -lr * coefficients[0], run.step), Term(0, -lr * state.anchor, state.anchor_step)]
        update_linearly(run, directions, lambda _: terms, groups)
        state.since += terms
        state._step = run.step + 1
