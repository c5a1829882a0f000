"""MeZO: memory-efficient zeroth-order optimisation (Malladi et al., 2023, arXiv:2305.17333, algorithm 1).

With parameters theta, a batch B, perturbation scale eps, learning rate eta and q directions z_j ~ N(0, I):

    g_j    = (L(theta + eps z_j; B) - L(theta - eps z_j; B)) / (2 eps)        the projected gradients
    theta <- theta - eta (1/q) sum_j g_j z_j                                  n-SPSA, n = q

z is never stored: it is made again from (seed, step, j, parameter name, element index) wherever it is needed.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

from torch import Tensor

from localplug import (
    Directions,
    Estimating,
    Groups,
    Method,
    Perturbation,
    Projection,
    Run,
    sgd_update,
    write_gradients,
)
from localplug_zo.strict import StrictMeZO


@final
class MeZO(Method):
    """Two-sided SPSA with q directions, and plain SGD along them.

        g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps),   theta <- theta - lr (1/q) sum_j g_j z_j

    2 q forward passes a step, no backward pass. Evaluating never writes the weights: each module sees a perturbed copy
    of its own parameters while it runs. lr and weight_decay are those of the trainer's optimizer, by parameter group,
    with whatever schedule it has; E|g_j|^2 estimates the squared gradient norm, and is what gradient clipping acts on.

    Args:
        eps: half-width of the finite difference, in parameter units, > 0. 1e-3 for all weights, 1e-2 for LoRA.
        num_directions: q, independent directions for each step, >= 1. Their estimates are averaged.
        update: "sgd" updates in place, one chunk of noise at a time, without gradients or optimizer state. "trainer"
            writes (1/q) sum_j g_j z_j to .grad and leaves the update to the trainer's optimizer (Adam, Lion, sign...),
            at the memory of one gradient and of that optimizer's state.
        strict: "mezo" repeats the paper's released code bit for bit on CPU in float32: its random numbers, its order of
            rounding, evaluation mode (no dropout), its weight-decay rule by parameter name. It refuses what that code
            does not do: several directions, another update, half precision off the original's path, accumulation
            and clipping.

    Raises:
        ValueError: an option is outside its range, or two options exclude each other; lists all of them.

    Example:
        >>> import torch, localplug
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> engine = localplug.Engine(model, MeZO(eps=1e-3), optimizer, seed=0)
        >>> loss = engine.step(lambda: model(torch.ones(4, 3)).square().mean(), optimizer)

    Reference: Malladi, Gao, Nichani, Damian, Lee, Chen, Arora: Fine-Tuning Language Models with Just Forward Passes,
        NeurIPS 2023, arXiv:2305.17333.
    """

    def __init__(
        self,
        eps: float = 1e-3,
        num_directions: int = 1,
        update: Literal["sgd", "trainer"] = "sgd",
        strict: Literal["mezo"] | None = None,
    ) -> None:
        wrong = []
        if not eps > 0:
            wrong.append(f"eps must be positive, got {eps!r}")
        if not (isinstance(num_directions, int) and num_directions >= 1):
            wrong.append(f"num_directions must be an integer of at least 1, got {num_directions!r}")
        if update not in ("sgd", "trainer"):
            wrong.append(f'update must be "sgd" or "trainer", got {update!r}')
        if strict not in (None, "mezo"):
            wrong.append(f'strict must be None or "mezo", got {strict!r}')
        if strict == "mezo" and num_directions != 1:
            wrong.append(f"strict='mezo' has one direction a step, got num_directions={num_directions}")
        if strict == "mezo" and update != "sgd":
            wrong.append(f"strict='mezo' has its own SGD update, got update={update!r}")
        if wrong:
            raise ValueError("MeZO: " + "; ".join(wrong))
        self.eps, self.num_directions, self.update_by, self.strict = float(eps), num_directions, update, strict
        self._strict = StrictMeZO(self.eps) if strict else None

    @property
    def num_evaluations(self) -> int:
        return 2 * self.num_directions

    @property
    def num_coefficients(self) -> int:
        return self.num_directions

    def describe(self) -> str:
        what = "the released code's semantics, " if self.strict else ""
        by = "SGD in place" if self.update_by == "sgd" else "the trainer's optimizer"
        return f"mezo, {what}eps {self.eps:g}, {self.num_directions} direction(s), updates by {by}"

    def problems(self, run: Run) -> list[str]:
        return self._strict.problems(run) if self._strict else []

    def setup(self, run: Run) -> None:
        self._directions = Directions(run)
        self._perturbed = Perturbation(run, self._directions)
        if self._strict:
            self._strict.setup(run)

    def estimate(self, run: Run) -> Estimating:
        if self._strict:
            return (yield from self._strict.estimate(run))
        eps = self.eps
        values: list[Tensor] = []
        slopes: list[list[Tensor]] = []
        for j in range(self.num_directions):
            with self._perturbed(j, +eps):
                plus = _read((yield))
            with self._perturbed(j, -eps):
                minus = _read((yield))
            slopes.append([(p - m) / (2 * eps) for p, m in zip(plus, minus, strict=True)])
            middle = [(p + m) / 2 for p, m in zip(plus, minus, strict=True)]
            values = [v + m for v, m in zip(values, middle, strict=True)] if values else middle
        return Projection([v / self.num_directions for v in values], slopes)

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        if self._strict:
            self._strict.update(run, coefficients, groups)
        elif self.update_by == "sgd":
            sgd_update(run, self._directions, coefficients, groups)
        else:
            write_gradients(run, self._directions, coefficients)

    def teardown(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}  # everything follows from the engine's seed and step

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _read(leaves: Sequence[Tensor]) -> list[Tensor]:
    """Losses in float32 or better, whatever the model computes in; a copy, so that the output can be freed."""
    return [leaf.detach().clone() if leaf.element_size() >= 4 else leaf.detach().float() for leaf in leaves]
