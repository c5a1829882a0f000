"""MeZO: memory-efficient zeroth-order optimisation (Malladi et al., 2023, arXiv:2305.17333, algorithm 1).

With parameters theta, a batch B, perturbation scale eps, learning rate eta and q directions z_j ~ N(0, I):

    g_j    = (L(theta + eps z_j; B) - L(theta - eps z_j; B)) / (2 eps)        the projected gradients
    theta <- theta - eta (1/q) sum_j g_j z_j                                  n-SPSA, n = q

z is never stored: it is made again from (seed, step, j, parameter name, element index) wherever it is needed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

from localplug import Directions, Distribution, Estimating, Groups, Method, Run, Update, ZerothOrder, distribution
from localplug.selection import Parameters
from localplug_zo.strict import StrictMeZO
from localplug_zo.two_sided import TwoSided
from localplug_zo.updates import SGD, Materialized, Streamed

UPDATES: dict[str, Callable[[], Update]] = {"sgd": SGD, "trainer": Materialized, "trainer-streamed": Streamed}


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
            "trainer-streamed" does so for one parameter at a time, so that no gradient of the whole model is held.
        directions: the distribution of z: a name ("gaussian", "rademacher", "sphere", "rank-1", ...) or a
            localplug.Distribution.
        parameters: which parameters and elements are trained: "all", "lora", names, masks, "smallest:0.2"; see
            localplug.selection.
        backend: how perturbed weights are evaluated; see localplug.Perturbation.
        strict: "mezo" repeats the paper's released code bit for bit on CPU in float32: its random numbers, its order of
            rounding, evaluation mode (no dropout), its weight-decay rule by parameter name. It refuses what that code
            does not do: several directions or another distribution, another update, a selection, a back-end, half precision,
            accumulation and clipping.

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
        update: Literal["sgd", "trainer", "trainer-streamed"] = "sgd",
        directions: str | Distribution = "gaussian",
        parameters: Parameters = None,
        backend: str = "auto",
        strict: Literal["mezo"] | None = None,
    ) -> None:
        wrong = []
        if not eps > 0:
            wrong.append(f"eps must be positive, got {eps!r}")
        if not (isinstance(num_directions, int) and num_directions >= 1):
            wrong.append(f"num_directions must be an integer of at least 1, got {num_directions!r}")
        if update not in UPDATES:
            wrong.append(f'update must be "sgd", "trainer" or "trainer-streamed", got {update!r}')
        if strict not in (None, "mezo"):
            wrong.append(f'strict must be None or "mezo", got {strict!r}')
        if strict == "mezo":
            if num_directions != 1:
                wrong.append(f"strict='mezo' has one direction a step, got num_directions={num_directions}")
            if update != "sgd":
                wrong.append(f"strict='mezo' has its own SGD update, got update={update!r}")
            for option, value, default in (
                ("directions", directions, "gaussian"),
                ("parameters", parameters, None),
                ("backend", backend, "auto"),
            ):
                if value != default:
                    wrong.append(f"strict='mezo' has its own {option}, got {option}={value!r}")
        if wrong:
            raise ValueError("MeZO: " + "; ".join(wrong))
        self._method: Method = (
            StrictMeZO(eps)
            if strict
            else ZerothOrder(
                TwoSided(eps, num_directions),
                UPDATES[update](),
                distribution(directions),
                parameters=parameters,
                backend=backend,
                name="mezo",
            )
        )

    @property
    def directions(self) -> Directions:
        """What the weights are perturbed along, once the training has begun.

        Raises:
            AttributeError: with strict, whose random numbers are those of the released code.
        """
        if not isinstance(self._method, ZerothOrder):
            raise AttributeError("strict='mezo' draws its own noise")
        return self._method.directions

    @property
    def variance(self) -> float:
        """Estimate of tr Cov[g_hat] of the last step; NaN before the first one, and with strict."""
        return getattr(self._method, "variance", math.nan)

    @property
    def num_evaluations(self) -> int:
        return self._method.num_evaluations

    @property
    def num_coefficients(self) -> int:
        return self._method.num_coefficients

    @property
    def goes_round(self) -> bool:
        return self._method.goes_round

    def describe(self) -> str:
        return self._method.describe()

    def problems(self, run: Run) -> list[str]:
        return self._method.problems(run)

    def setup(self, run: Run) -> None:
        self._method.setup(run)

    def estimate(self, run: Run) -> Estimating:
        return self._method.estimate(run)

    def update(self, run: Run, coefficients: Sequence[float], groups: Groups) -> None:
        self._method.update(run, coefficients, groups)

    def replay(self, run: Run, coefficients: Sequence[float] | None, groups: Groups) -> None:
        self._method.replay(run, coefficients, groups)

    def replay_problems(self, run: Run) -> list[str]:
        return self._method.replay_problems(run)

    def teardown(self) -> None:
        self._method.teardown()

    def state_dict(self) -> dict[str, Any]:
        return self._method.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._method.load_state_dict(state)
