"""Rules that find their own learning rate, for estimates whose noise leaves them something to find.

Both estimate the distance D from the first weights theta_0 to the best ones, and take it for a step:

    prodigy         r <- b r + (d/d_0) d lr <g, theta_0 - theta>        s <- b s + (d/d_0) d lr g    d_hat = r / |s|_1
    d-adaptation    r <- b r + (1 - b) d lr <g, s / (sqrt(v) + eps)>    s <- b s + (1 - b) d lr g    d_hat = r / ((1 - b) |s|_1)
    both            d <- max(d, d_hat)

with b = sqrt(beta2), and steps of Adam scaled by d. r measures how far descent has come, and noise cancels in it; |s|_1 adds up
absolute values, so that noise stays in it: d_hat comes out too small, and Adam's steps of that size follow the noise. Along
random directions the noise of an estimate is

    rho = tr Cov[g] / |grad L|^2 = (kappa - 1) / q          kappa of the distribution, near the number of weights; q directions

which is known before the first step, and is looked at there.

Mishchenko, Defazio: Prodigy: An Expeditiously Adaptive Parameter-Free Learner, 2023, arXiv:2306.06101, by prodigyopt.
Defazio, Mishchenko: Learning-Rate-Free Learning by D-Adaptation, 2023, arXiv:2301.07733, by dadaptation.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, final

import dadaptation  # type: ignore[import-untyped]
import prodigyopt  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from localplug import Directions, Groups, Run, Update, gradient_of

MAX_NOISE = 50.0
"""rho beyond which they are refused. Of a logistic regression both made as much as SGD at its best constant rate with 31, and
less with 125; of a quadratic less with 101: tests/benchmarks/updates_learning_rate_free.py."""


class _ByLibrary(Update):
    """One step of a library's optimizer on the estimate; half-precision weights are rounded stochastically."""

    def __init__(self, max_noise: float) -> None:
        if not max_noise > 0:
            raise ValueError(f"max_noise must be positive, got {max_noise!r}; float('inf') lets every estimate pass")
        self.max_noise = float(max_noise)
        self._inner: torch.optim.Optimizer | None = None
        self._indices: list[int] = []
        self._shadows: list[nn.Parameter] = []
        self._loaded: dict[str, Any] | None = None

    @abc.abstractmethod
    def _made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The library's optimizer, without weight decay."""

    @property
    @abc.abstractmethod
    def _name(self) -> str: ...

    @property
    def distance(self) -> float:
        """d: the step that has been found, in parameter units; nan before training begins."""
        return math.nan if self._inner is None else float(self._inner.param_groups[0]["d"])

    def problems(self, run: Run) -> list[str]:
        wrong = [n for n, p in run.parameters if type(p.data) is not Tensor]
        found = (
            [f"{self._name} measures all weights together, and {wrong[:3]} are sharded; replicate them"]
            if wrong
            else []
        )
        rates = {float(g["lr"]) for g in run.optimizer.param_groups} - {0.0} if run.optimizer is not None else set()
        if len(rates) > 1:
            found.append(
                f"{self._name} finds one learning rate for all, and the groups have {sorted(rates)}; give all of them one "
                "(1.0), or 0 to hold a group still"
            )
        return found

    def setup(self, run: Run, directions: Directions) -> None:
        self._indices = list(directions.indices)
        wide = [torch.promote_types(run.parameters[i][1].dtype, torch.float32) for i in self._indices]
        self._shadows = [
            nn.Parameter(run.parameters[i][1].data.to(dtype)) for i, dtype in zip(self._indices, wide, strict=True)
        ]
        self._inner = self._made([{"params": [shadow]} for shadow in self._shadows])
        if self._loaded is not None:
            self.load_state_dict(self._loaded)

    def apply(self, run: Run, directions: Directions, coefficients: Sequence[float], groups: Groups) -> None:
        self._refuse_noise(len(coefficients), directions)
        assert self._inner is not None
        before: dict[int, Tensor] = {}
        for index, shadow, inner in zip(self._indices, self._shadows, self._inner.param_groups, strict=True):
            parameter = run.parameters[index][1]
            group = groups[parameter]
            inner["lr"] = lr = float(group["lr"])
            if decay := lr * float(group.get("weight_decay", 0.0)):
                directions.update_(parameter.data, index, [], decay=decay)
            if lr == 0:
                continue
            shadow.grad = gradient_of(run, directions, coefficients, index).to(shadow.dtype)
            shadow.data = parameter.data.to(shadow.dtype)  # the weights themselves, unless they are of half precision
            if parameter.dtype != shadow.dtype:
                before[index] = shadow.data.clone()
        self._inner.step()
        for index, shadow in zip(self._indices, self._shadows, strict=True):
            shadow.grad = None
            if index in before:
                moved = (shadow.data - before[index]).view(-1)

                def rule(value: Tensor, offset: int, moved: Tensor = moved) -> Tensor:
                    return value.add_(moved[offset : offset + value.numel()])

                directions.rewrite_(run.parameters[index][1].data, index, rule)

    def _refuse_noise(self, q: int, directions: Directions) -> None:
        kappa = directions.distribution.kappa(directions.num_elements)
        if (rho := (kappa - 1) / q) > self.max_noise:
            raise ValueError(
                f"the error of an estimate along {q} random direction(s) of {directions.num_elements:,} weights is "
                f"{rho:.4g} times as large as the gradient, squared lengths, and beyond {self.max_noise:g} what {self._name} "
                f"finds trains worse than plain SGD; take num_directions={math.ceil((kappa - 1) / self.max_noise)}, train "
                "fewer weights (parameters=), or set a learning rate yourself with another update; max_noise=float('inf') "
                "goes on all the same"
            )

    def state_dict(self) -> dict[str, Any]:
        if self._inner is None:
            return {} if self._loaded is None else self._loaded
        state = self._inner.state_dict()
        return {"weights": state["state"], "groups": state["param_groups"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._inner is None:
            self._loaded = state
        elif state:
            self._inner.load_state_dict({"state": state["weights"], "param_groups": state["groups"]})


@final
class Prodigy(_ByLibrary):
    """Adam whose step d is estimated while it trains: d <- max(d, r / |s|_1), by prodigyopt. Set the trainer's lr to 1.

    The trainer's lr multiplies d, so that a schedule still counts, and decays the weights: (1 - lr weight_decay) theta. Four
    numbers for each weight, and a gradient: a log of seeds and scalars replays it all the same. Where the estimate's noise
    rho is larger than max_noise, it refuses to begin. `distance` is d. Elsewhere hand prodigyopt.Prodigy to your trainer.

    Args:
        betas: (beta1, beta2) of Adam's moments, each in [0, 1).
        d0: the first d, in parameter units, > 0.
        d_coef: factor of d_hat, > 0; the paper's way to tune it, from 0.5 to 2.
        growth_rate: the most by which d grows in a step, >= 1.
        max_noise: largest rho = (kappa - 1) / q, the squared error of an estimate over that of the gradient.

    Raises:
        ValueError: one of them is out of range; or, in the first step, the noise is.

    Example:
        >>> import localplug
        >>> localplug.update("prodigy").describe()
        'Prodigy (0.9, 0.999), which finds its learning rate'

    Reference: Mishchenko, Defazio, 2023, arXiv:2306.06101.
    """

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        max_noise: float = MAX_NOISE,
    ) -> None:
        wrong = _wrong(betas, d0, growth_rate)
        if not d_coef > 0:
            wrong.append(f"d_coef must be positive, got {d_coef!r}")
        if wrong:
            raise ValueError("; ".join(wrong))
        super().__init__(max_noise)
        self.betas, self.d0, self.d_coef, self.growth_rate = betas, d0, d_coef, growth_rate

    @property
    def _name(self) -> str:
        return "Prodigy"

    def describe(self) -> str:
        return f"Prodigy {self.betas}, which finds its learning rate"

    def _made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = prodigyopt.Prodigy(
            groups, lr=1.0, betas=self.betas, d0=self.d0, d_coef=self.d_coef, growth_rate=self.growth_rate
        )
        return made


@final
class DAdaptation(_ByLibrary):
    """Adam whose step d is estimated while it trains, by D-Adaptation and dadaptation. Set the trainer's lr to 1.

    What is said of `prodigy`, its successor, holds: the trainer's lr multiplies d and decays the weights, a log replays it,
    and it refuses estimates that are too noisy. Elsewhere hand dadaptation.DAdaptAdam to your trainer.

    Args:
        betas: (beta1, beta2) of Adam's moments, each in [0, 1).
        d0: the first d, in parameter units, > 0.
        growth_rate: the most by which d grows in a step, >= 1.
        max_noise: largest rho = (kappa - 1) / q, the squared error of an estimate over that of the gradient.

    Raises:
        ValueError: one of them is out of range; or, in the first step, the noise is.

    Example:
        >>> import localplug
        >>> localplug.update("d-adaptation").describe()
        'D-Adaptation of Adam (0.9, 0.999), which finds its learning rate'

    Reference: Defazio, Mishchenko, 2023, arXiv:2301.07733.
    """

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        max_noise: float = MAX_NOISE,
    ) -> None:
        if wrong := _wrong(betas, d0, growth_rate):
            raise ValueError("; ".join(wrong))
        super().__init__(max_noise)
        self.betas, self.d0, self.growth_rate = betas, d0, growth_rate

    @property
    def _name(self) -> str:
        return "D-Adaptation"

    def describe(self) -> str:
        return f"D-Adaptation of Adam {self.betas}, which finds its learning rate"

    def _made(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = dadaptation.DAdaptAdam(
            groups, lr=1.0, betas=self.betas, d0=self.d0, growth_rate=self.growth_rate
        )
        return made


def _wrong(betas: tuple[float, float], d0: float, growth_rate: float) -> list[str]:
    wrong = [] if all(0 <= b < 1 for b in betas) else [f"betas must be in [0, 1), got {betas!r}"]
    if not d0 > 0:
        wrong.append(f"d0 must be positive, got {d0!r}")
    if not growth_rate >= 1:
        wrong.append(f"growth_rate must be at least 1, got {growth_rate!r}")
    return wrong
