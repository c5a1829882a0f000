"""The whole-model mechanism: a zeroth-order method is an estimator, a distribution of directions and an update.

The parts are abstract in localplug.parts. Directions are made in localplug.directions, evaluating at perturbed weights is
in localplug.perturbation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug.contract import Estimate, Estimating, Groups, Method, Run
from localplug.directions import Directions
from localplug.distributions import Gaussian
from localplug.parts import Distribution, Estimator, Probing, Term, Update
from localplug.pending import Pending
from localplug.perturbation import Perturbation, parsed
from localplug.selection import Parameters, Selection
from localplug.stacked import stack_problems


@final
class Projection(Estimate):
    """Directional slopes of the tracked leaves: coefficient j is the sum over leaves of <d loss / d leaf, slope_j>.

    For a leaf that is the loss itself this is (L(w + eps z) - L(w - eps z)) / (2 eps), times whatever scale the trainer
    put on the loss; for a loss built on other leaves it is the chain rule, exact to second order in eps.

    Args:
        values: the leaves' values, one tensor a leaf.
        slopes: slopes[j][k] = d leaf_k / d direction_j.
    """

    def __init__(self, values: list[Tensor], slopes: list[list[Tensor]]) -> None:
        self.values, self.slopes = values, slopes

    def pull_back(self, leaf_gradients: Sequence[Tensor | None]) -> Tensor:
        device = self.slopes[0][0].device
        return torch.stack(
            [
                sum(
                    ((gradient.float() * slope).sum().to(device) for gradient, slope in zip(leaf_gradients, row, strict=True)
                     if gradient is not None),
                    torch.zeros((), device=device),
                )
                for row in self.slopes
            ]
        )  # fmt: skip


@final
class ZerothOrder(Method):
    """A zeroth-order method, composed of its parts.

        g_hat = (1/q) sum_j c_j z_j           c_j by the estimator, z_j by the distribution
        theta <- update(theta, g_hat)

    Args:
        estimator: how probes become c_j.
        update: how the estimate changes the weights.
        distribution: of the directions z_j; standard normal by default.
        parameters: which parameters and elements are trained; see localplug.selection.
        backend: how perturbed weights are evaluated, "auto", "scratch", "copy", "low-rank" or "stacked:2"; see
            localplug.Perturbation.
        name: of the recipe, for the line at the start of training.

    Raises:
        ValueError: parameters or backend are none of those.
    """

    def __init__(
        self,
        estimator: Estimator,
        update: Update,
        distribution: Distribution | None = None,
        *,
        parameters: Parameters = None,
        backend: str = "auto",
        name: str = "zo",
    ) -> None:
        self._kind, self.stack, num_steps = parsed(backend)
        self._num_steps = num_steps if update.is_linear else 1
        if self._kind == "deferred" and not update.is_linear:
            raise ValueError(
                f"backend {backend!r} adds directions to the weights every few steps, and updates by {update.describe()} do "
                "more than add them; use 'stacked' or 'low-rank'"
            )
        if not isinstance(estimator, Probing):
            self.stack = 1 if self._kind == "deferred" else self.stack
        if self.stack > 1 and not isinstance(estimator, Probing):
            raise ValueError(
                f"backend {backend!r} makes evaluations together that are known beforehand, and those of "
                f"{estimator.describe()} follow from each other"
            )
        self.estimator, self.rule, self.distribution = estimator, update, distribution or Gaussian()
        self.selection, self.backend, self.name = Selection(parameters), backend, name
        self._perturbed: Perturbation | None = None
        self.variance = float("nan")
        """Estimate of tr Cov[g_hat], the expected squared length of the error of the last step's estimate."""

    @property
    def num_evaluations(self) -> int:
        num = self.estimator.num_evaluations
        if not isinstance(self.estimator, Probing):
            return num
        return math.ceil(num / (self.stack if self._perturbed is None else self._perturbed.stack))

    @property
    def num_coefficients(self) -> int:
        return self.estimator.num_fields * self.estimator.num_directions

    @property
    def num_directions(self) -> int:
        return self.estimator.num_directions

    @property
    def goes_round(self) -> bool:
        if self._perturbed is None or not isinstance(self.estimator, Probing):
            return self.stack > 1
        return self._perturbed.may_stack

    @property
    def num_slopes(self) -> int:
        return self.estimator.num_directions

    @property
    def is_scale_free(self) -> bool:
        return self.estimator.is_scale_free

    @property
    def cost(self) -> str:
        return self.estimator.cost or super().cost

    @property
    def needs_derivative(self) -> bool:
        return self.estimator.needs_derivative

    def describe(self) -> str:
        only = self.selection.describe()
        return (
            f"{self.name}, {self.estimator.describe()}, {self.distribution.describe()} directions, updates by "
            f"{self.rule.describe()}{f', trains {only}' if only else ''}"
            f"{'' if self.estimator.needs_derivative else f', back-end {self._chosen()}'}"
        )

    def _chosen(self) -> str:
        """The back-end that is asked for, and in force once the training has begun."""
        return (
            self.backend if self._perturbed is None or self._kind in ("stacked", "deferred") else self._perturbed.chosen
        )

    def problems(self, run: Run) -> list[str]:
        found = self.selection.problems(run) + self.estimator.problems(run) + self.rule.problems(run)
        self._perturbed = None
        if self._kind == "deferred":
            found += self._deferral_problems(run)
        if self.stack > 1:
            found += stack_problems(run)
            if self.selection.has_masks:
                found.append("back-end 'stacked' perturbs whole parameters; select by name, or use another back-end")
        return found

    def _deferral_problems(self, run: Run) -> list[str]:
        found = []
        if not _has_factors(self.distribution):
            found.append(
                f"back-end {self.backend!r} keeps updates as factors of low rank, and {self.distribution.describe()} "
                "directions have none; take directions such as 'rank-1', or another back-end"
            )
        if not any(p.dtype == torch.float32 for _, p in run.parameters):
            found.append(
                f"back-end {self.backend!r} needs weights in float32: those of half precision are rounded in every step; use "
                "'stacked' or 'low-rank'"
            )
        return found

    def setup(self, run: Run) -> None:
        self.directions = Directions(run, self.distribution, self.selection)
        if self._num_steps > 1 and _has_factors(self.distribution) and not run.is_compiled:
            self.directions.pending = Pending(run, self._num_steps)
        self._perturbed = Perturbation(run, self.directions, self.backend)
        self.rule.setup(run, self.directions)

    def estimate(self, run: Run) -> Estimating:
        assert self._perturbed is not None
        self.selection.begin(run)
        self._perturbed.begin()
        estimating = self.estimator.estimate(run, self._perturbed)
        if self.estimator.num_evaluations < 2:
            return estimating
        return self._perturbed.reusing(estimating, self.estimator.num_directions)

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        self.selection.begin(run)  # of a replay, which makes no estimates
        shaped = self.estimator.coefficients(run, self._by_field(coefficients))
        self.variance = self.estimator.variance(shaped, self.distribution.kappa(self.directions.num_elements))
        self.rule.apply(run, self.directions, shaped, groups)

    def _by_field(self, coefficients: Sequence[float]) -> list[float]:
        """Those of all workers, (worker, field, direction) -> (field, worker, direction)."""
        q, fields = self.estimator.num_directions, self.estimator.num_fields
        starts = range(0, len(coefficients), q * fields)
        return [c for f in range(fields) for start in starts for c in coefficients[start + f * q : start + (f + 1) * q]]

    def replay_problems(self, run: Run) -> list[str]:
        return super().replay_problems(run) + self.rule.replay_problems(run)

    def teardown(self) -> None:
        if self._perturbed is not None and self.directions.pending is not None:
            self.directions.pending.fold()

    def state_dict(self) -> dict[str, Any]:
        state = {name: part.state_dict() for name, part in self._parts()}
        return {name: values for name, values in state.items() if values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts():
            part.load_state_dict(state.get(name, {}))

    def _parts(self) -> list[tuple[str, Any]]:
        return [
            ("estimator", self.estimator),
            ("distribution", self.distribution),
            ("update", self.rule),
            ("selection", self.selection),
        ]


def _has_factors(distribution: Distribution) -> bool:
    """Whether directions may have low rank."""
    return type(distribution).factors is not Distribution.factors


def update_linearly(run: Run, directions: Directions, terms: Callable[[float], Sequence[Term]], groups: Groups) -> None:
    """w <- (1 - lr * weight_decay) w + sum of factor * z over the terms, streamed; by parameter group.

    Args:
        terms: the terms for a learning rate.
    """
    small = set(directions.small())
    together: dict[tuple[float, float], list[int]] = {}
    reached = {i for t in terms(0.0) for i in directions.reached(t.direction, t.step)}
    for index in directions.indices:
        if index not in reached:
            continue
        parameter = run.parameters[index][1]
        group = groups[parameter]
        lr, weight_decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
        if index in small:
            together.setdefault((lr, weight_decay), []).append(index)
        elif not directions.update_later(index, terms(lr), decay=lr * weight_decay):
            directions.update_(parameter.data, index, terms(lr), decay=lr * weight_decay)
    for (lr, weight_decay), indices in together.items():
        directions.update_small_(indices, terms(lr), decay=lr * weight_decay)


def sgd_update(run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
    """w <- (1 - lr * weight_decay) w - lr * (1/q) sum_j c_j z_j, streamed; lr and weight_decay by parameter group."""
    q = len(coefficients)
    update_linearly(run, directions, lambda lr: [Term(j, -lr * c / q) for j, c in enumerate(coefficients)], groups)


def gradient_of(run: Run, directions: Directions, coefficients: Sequence[float], index: int) -> Tensor:
    """(1/q) sum_j c_j z_j of one parameter, shaped and typed like it."""
    parameter, q = run.parameters[index][1], len(coefficients)
    gradient = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    terms = [Term(j, c / q) for j, c in enumerate(coefficients)]
    return directions.add_(gradient, index, terms, weights=parameter.data)


def write_gradients(run: Run, directions: Directions, coefficients: Sequence[float]) -> None:
    """p.grad <- (1/q) sum_j c_j z_j for every parameter, for whichever optimizer steps next. One gradient copy of memory."""
    for index in directions.indices:
        run.parameters[index][1].grad = gradient_of(run, directions, coefficients, index)
