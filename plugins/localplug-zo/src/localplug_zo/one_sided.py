"""Estimators that evaluate each direction on one side only.

    one-sided    c_j = (L(theta + eps z_j) - L(theta)) / eps                         q + 1 evaluations, the clean one shared
    residual     c   = (L(theta_t + eps z_t; B_t) - L(theta_{t-1} + eps z_{t-1}; B_{t-1})) / eps      1 evaluation a step
    population   c_j = (L_j - mean L) / std L,  L_j = L(theta + eps z_j)             q evaluations: evolution strategies

one-sided: Nesterov, Spokoiny, 2017. residual: Zhang, Zhou, Ji, Zavlanos: A New One-Point Residual-Feedback Oracle for
Black-Box Learning and Control, 2022. population: Salimans et al., 2017, with the z-scored fitness of Qiu et al.: Evolution
Strategies at Scale, arXiv:2509.24372.
"""

import statistics
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import Estimate, Estimating, Estimator, Perturbation, Probing, Projection, Run
from localplug_zo.losses import checked, mean, scalar
from localplug_zo.two_sided import spsa_variance


@final
class OneSided(Probing):
    """c_j = (L(theta + eps z_j) - L(theta)) / eps; with `normalized`, divided by their standard deviation (FZOO).

    Its bias is first order in eps. The batch loss that the trainer sees is the clean one.

    Args:
        eps: width of the finite difference, in parameter units, > 0.
        num_directions: q >= 1; >= 2 if normalized.
        normalized: c_j / std(c): the step has the same length however steep the loss is.

    Raises:
        ValueError: eps or num_directions is out of range.

    Example:
        >>> import localplug
        >>> localplug.estimator("one-sided", num_directions=8, normalized=True).describe()
        'one-sided, eps 0.001, 8 direction(s), divided by their standard deviation'
    """

    num_fields = 1

    def __init__(self, eps: float = 1e-3, num_directions: int = 1, normalized: bool = False) -> None:
        self.eps, self.num_directions = checked(eps, num_directions, 2 if normalized else 1)
        self.normalized = self.is_scale_free = normalized

    def describe(self) -> str:
        by = ", divided by their standard deviation" if self.normalized else ""
        return f"one-sided, eps {self.eps:g}, {self.num_directions} direction(s){by}"

    def problems(self, run: Run) -> list[str]:
        return []

    def probes(self) -> list[tuple[int, float]]:
        return [(0, 0.0), *((j, self.eps) for j in range(self.num_directions))]

    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:
        clean, *others = outputs
        return Projection(list(clean), [[(p - c) / self.eps for p, c in zip(o, clean, strict=True)] for o in others])

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        return _over_deviation(raw) if self.normalized else list(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance(coefficients, kappa)


@final
class Residual(Estimator):
    """c = (this step's perturbed loss - the last step's) / eps: one new evaluation a step.

    The difference also holds what changed between the two batches, divided by eps: it wants large batches or a large eps.
    The first step has nothing to compare with, and changes nothing.

    Args:
        eps: width of the finite difference, in parameter units, > 0.

    Raises:
        ValueError: eps is not positive.

    Example:
        >>> import localplug
        >>> localplug.estimator("residual", eps=0.1).describe()
        'residual feedback, eps 0.1'
    """

    num_fields = 1
    num_directions = 1

    def __init__(self, eps: float = 1e-2) -> None:
        self.eps, _ = checked(eps, 1)
        self._last: float | None = None
        self._now: list[float] = []
        self._step = -1

    @property
    def num_evaluations(self) -> int:
        return 1

    def describe(self) -> str:
        return f"residual feedback, eps {self.eps:g}"

    def problems(self, run: Run) -> list[str]:
        if run.num_workers_apart > 1:
            return ["residual feedback has one direction a step; set worker_directions='same'"]
        return []

    def estimate(self, run: Run, perturbed: Perturbation) -> Estimating:
        with perturbed(0, self.eps):
            loss = scalar((yield), "residual feedback")
        if self._step != run.step:  # also after a step that was left out, whose losses are not to be compared with
            self._step, self._now = run.step, []
        self._now.append(float(loss))
        last = loss if self._last is None else torch.full_like(loss, self._last)
        return Projection([loss], [[(loss - last) / self.eps]])

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        self._last, self._now = sum(self._now) / max(len(self._now), 1), []
        return list(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance(coefficients, kappa)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._last is None else {"last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last, self._now = state.get("last"), []


@final
class Population(Probing):
    """c_j = the z-score of L(theta + eps z_j) among the q of a step.

    The update -lr (1/q) sum_j c_j z_j is the field's alpha / N sum of z-scored reward times noise, without 1 / sigma.

    Args:
        eps: sigma, the standard deviation of the population, in parameter units, > 0.
        num_directions: q >= 2, the size of the population.

    Raises:
        ValueError: eps or num_directions is out of range.

    Example:
        >>> import localplug
        >>> localplug.estimator("population", num_directions=8).describe()
        'population of 8, sigma 0.001, z-scored'
    """

    num_fields = 1
    is_scale_free = True

    def __init__(self, eps: float = 1e-3, num_directions: int = 30) -> None:
        self.eps, self.num_directions = checked(eps, num_directions, 2)

    def describe(self) -> str:
        return f"population of {self.num_directions}, sigma {self.eps:g}, z-scored"

    def problems(self, run: Run) -> list[str]:
        return []

    def probes(self) -> list[tuple[int, float]]:
        return [(j, self.eps) for j in range(self.num_directions)]

    def combined(self, outputs: Sequence[Sequence[Tensor]]) -> Estimate:
        losses = [scalar(leaves, "a population") for leaves in outputs]
        (middle,) = mean([[loss] for loss in losses])
        return Projection([middle], [[(loss - middle) / self.eps] for loss in losses])

    def coefficients(self, run: Run, raw: Sequence[float]) -> list[float]:
        return _over_deviation(raw)

    def variance(self, coefficients: Sequence[float], kappa: float) -> float:
        return spsa_variance(coefficients, kappa)


def _over_deviation(raw: Sequence[float]) -> list[float]:
    """Divided by their standard deviation; all zero where they are all the same."""
    deviation = statistics.pstdev(raw)
    return [c / deviation if deviation else 0.0 for c in raw]
