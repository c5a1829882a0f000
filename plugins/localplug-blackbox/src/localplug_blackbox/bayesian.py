"""Bayesian optimization: a Gaussian process through the values, and the point with the greatest expected improvement.

The process and the expected improvement are botorch's (pip install localplug-blackbox[bayesian]; Balandat and others,
arXiv:1910.06403; Ament and others, arXiv:2310.20708). The kernel may be that of an infinitely wide network (`infinite_width`),
as in Li and others, arXiv:2305.20028. Letters: N points, D numbers.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.infinite_width import infinite_width_kernel
from localplug_blackbox.past_values import PastValues

_NUM_LOOKED_AT = 512  # points at which the expected improvement is looked up before it is climbed from the best of them
_NUM_CLIMBED = 6


@final
class BayesianSearch(Searcher):
    """Bayesian optimization by expected improvement, with the kernel of a network if wanted. For some hundred values.

    The first points are Sobol's; each later one is where the logarithm of the expected improvement is greatest. Of several at
    once, each is chosen as if those before had given the process's mean. Neither
    kernel was the better one on all three functions that we measured (docs/blackbox.md).

    Args:
        box: where to look; every bound finite.
        kernel: "matern", with a length for each number, or "infinite-width".
        num_initial: Sobol points before the first process, >= 1; values that `fit` gives count as such.
        depth: hidden layers of "infinite-width", >= 1.
        weight_variance: of "infinite-width", > 0.
        bias_variance: of "infinite-width", >= 0.
        seed: of all draws.

    Raises:
        ImportError: botorch is not installed.
        ValueError: an option is outside its range; lists all of them.

    Reference: arXiv:2305.20028.

    Example:
        >>> from localplug_blackbox import Box, minimize
        >>> searcher = BayesianSearch(Box([0, 0], [1, 1]), num_initial=6)
        >>> minimize(lambda X: (X - 0.3).square().sum(1), searcher, 9).value < 0.01
        True
    """

    def __init__(
        self,
        box: Box,
        kernel: Literal["matern", "infinite-width"] = "matern",
        num_initial: int = 10,
        depth: int = 3,
        weight_variance: float = 10.0,
        bias_variance: float = 1.3,
        seed: int = 0,
    ) -> None:
        super().__init__(box)
        wrong = [] if box.bounded else ["box must have finite bounds"]
        if kernel not in ("matern", "infinite-width"):
            wrong.append(f"kernel must be 'matern' or 'infinite-width', got {kernel!r}")
        if not num_initial >= 1:
            wrong.append(f"num_initial must be at least 1, got {num_initial!r}")
        one_D = torch.ones(1, 1, dtype=torch.float64)
        try:
            infinite_width_kernel(one_D, one_D, depth, weight_variance, bias_variance)
        except ValueError as error:
            wrong.append(str(error))
        if wrong:
            raise ValueError("; ".join(wrong))
        _library()
        self.kernel, self.num_initial = kernel, num_initial
        self.depth, self.weight_variance, self.bias_variance = depth, weight_variance, bias_variance
        self.seed = seed
        self._past = PastValues(box)
        self._num_drawn = 0
        self._num_searched = 0

    def _propose(self, num: int) -> Tensor:
        left = self.num_initial - len(self._past)
        if left > 0 or len(self._past) < 2:
            engine = SobolEngine(self.box.num, scramble=True, seed=self.seed)
            engine.fast_forward(self._num_drawn)
            num = min(num, max(left, 1))
            self._num_drawn += num
            return self.box.from_unit(engine.draw(num).double())
        U_ND, y_N = self._past.unit(), self._past.standard()
        model = self._model(U_ND, y_N)
        chosen, lowest = [], float(y_N.min())
        for _ in range(num):
            chosen.append(self._greatest(model, lowest))
            if len(chosen) < num:
                with torch.no_grad():
                    believed = model.posterior(chosen[-1].unsqueeze(0)).mean
                    lowest = min(lowest, float(believed))
                    model = model.condition_on_observations(chosen[-1].unsqueeze(0), believed)
        return self.box.from_unit(torch.stack(chosen))

    def _model(self, U_ND: Tensor, y_N: Tensor) -> Any:
        """botorch's process with its own priors; noise and the kernel's size are fitted, and matern's lengths."""
        botorch = _library()
        from gpytorch.kernels import Kernel, ScaleKernel  # type: ignore[import-untyped]
        from gpytorch.mlls import ExactMarginalLogLikelihood  # type: ignore[import-untyped]

        covariance = None
        if self.kernel == "infinite-width":
            options = (self.depth, self.weight_variance, self.bias_variance)

            class InfiniteWidth(Kernel):
                has_lengthscale = False

                def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
                    whole = infinite_width_kernel(x1, x2, *options)
                    return whole.diagonal(dim1=-2, dim2=-1) if diag else whole

            covariance = ScaleKernel(InfiniteWidth())
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", botorch.exceptions.InputDataWarning)  # of values that are all equal
            model = botorch.models.SingleTaskGP(U_ND, y_N.unsqueeze(1), covar_module=covariance, outcome_transform=None)
            botorch.fit.fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return model

    def _greatest(self, model: Any, lowest: float) -> Tensor:
        """Where the expected improvement below the lowest value is greatest, in the box scaled to [0, 1]. (D,)."""
        botorch = _library()
        acquisition = botorch.acquisition.analytic.LogExpectedImprovement(model, best_f=lowest, maximize=False)
        engine = SobolEngine(self.box.num, scramble=True, seed=self.seed + 1 + self._num_searched)
        self._num_searched += 1
        past_MD = self._past.unit()[self._past.y_N.argsort()[:8]]
        near = torch.tensor([0.02 * math.sqrt(self.box.num)], dtype=torch.float64)
        raw_ND = engine.draw(_NUM_LOOKED_AT).double()
        raw_ND = torch.cat([raw_ND, (past_MD.repeat(8, 1) + near * (raw_ND[: 8 * len(past_MD)] - 0.5)).clamp(0, 1)])
        with torch.no_grad():
            values_N = acquisition(raw_ND.unsqueeze(1))
        starts_N = values_N.argsort(descending=True)[:_NUM_CLIMBED]
        with torch.enable_grad():
            climbed, values = botorch.generation.gen_candidates_scipy(
                raw_ND[starts_N].unsqueeze(1), acquisition, lower_bounds=0.0, upper_bounds=1.0, options={"maxiter": 50}
            )
        return climbed[values.argmax()].reshape(-1).detach()

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        self._past.add(X_ND, y_N)

    _know = _learn

    def _state(self) -> dict[str, Any]:
        return {"past": self._past.state(), "drawn": self._num_drawn, "searched": self._num_searched}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._past.restore(state["past"])
        self._num_drawn, self._num_searched = int(state["drawn"]), int(state["searched"])


def _library() -> Any:
    try:
        import botorch
        import gpytorch  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "BayesianSearch uses botorch and gpytorch: pip install localplug-blackbox[bayesian]"
        ) from error
    import botorch.acquisition.analytic
    import botorch.exceptions
    import botorch.fit
    import botorch.generation
    import botorch.models

    return botorch
