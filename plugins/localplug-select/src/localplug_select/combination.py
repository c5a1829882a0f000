"""The best candidate by a weighted sum of scores, where the weights are searched for with few observations (RoBoT).

    s_k <- (s_k - min s_k) / (max s_k - min s_k)          each score, over the candidates
    c(v) = argmax_c sum_k v_k s_k(c),  v in [-1, 1]^M
    v_t  = argmax of the upper confidence bound of a Gaussian process on (v, f(c(v))), f what is observed
    then down the ranking of the best v, as long as the budget lasts

Reference: He, Dai, Bansal, Low: Robustifying and Boosting Training-Free Neural Architecture Search, ICLR 2024,
arXiv:2403.07591. Its code searches with the package bayesian-optimization; here the process is forty lines of linear algebra,
with the same kernel (Matern 5/2) and a bound of mean + 2.576 deviations.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

KAPPA = 2.576  # deviations above the mean
PROPOSALS = 1024  # points that the bound is compared at
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # length scales that the likelihood chooses from
NOISE = 1e-4  # variance of an observation, of the values' own


@final
@dataclasses.dataclass(frozen=True)
class Combination:
    """What `combine` found.

    Attributes:
        best: number of the best observed candidate.
        weights: v of the combination that led to it, one for each score, in [-1, 1].
        observed: {number of a candidate: what was observed}, in the order of asking.
        ranking: all candidates, those first that the combination has first.
    """

    best: int
    weights: tuple[float, ...]
    observed: dict[int, float]
    ranking: tuple[int, ...]


@torch.no_grad()
def combine(
    scores_MN: Sequence[Sequence[float]], observe: Callable[[int], float], *, budget: int, seed: int = 0
) -> Combination:
    """Search the weights of a combination of scores, and with it the best candidate.

    Args:
        scores_MN: M scores of N candidates each; what is not finite counts as the score's lowest.
        observe: the number of a candidate -> how good it is, higher is better; asked once for each.
        budget: candidates that may be observed, >= 1.
        seed: of the proposals.

    Raises:
        ValueError: there is no score or no candidate, their numbers differ, or the budget is below 1.

    Example:
        >>> good = [0.1, 0.4, 0.2, 0.9, 0.3]
        >>> combine([[5, 4, 3, 2, 1], [1, 4, 2, 9, 3]], good.__getitem__, budget=5).best
        3
    """
    if not scores_MN or not len(scores_MN[0]) or len({len(row) for row in scores_MN}) != 1 or budget < 1:
        raise ValueError(
            f"combine needs scores with one number for each candidate and a budget of at least 1, got scores of "
            f"{[len(row) for row in scores_MN]} candidates and budget={budget!r}"
        )
    s_MN = torch.stack([_normalised(torch.tensor(row, dtype=torch.float64)) for row in scores_MN])
    generator = torch.Generator().manual_seed(seed)
    observed: dict[int, float] = {}
    tried: list[tuple[Tensor, int]] = []

    def ask(number: int) -> None:
        if number not in observed:
            observed[number] = float(observe(number))

    for turn in range(max(budget - 1, 1)):
        proposals = torch.rand(PROPOSALS, len(s_MN), generator=generator, dtype=torch.float64) * 2 - 1
        v = proposals[0] if turn == 0 else _next(tried, observed, proposals)
        tried.append((v, int((v @ s_MN).argmax())))
        ask(tried[-1][1])
    v = max(tried, key=lambda pair: observed[pair[1]])[0]
    ranking = (v @ s_MN).argsort(descending=True, stable=True).tolist()
    for number in ranking:
        if len(observed) >= budget:
            break
        ask(number)
    best = max(observed, key=lambda number: observed[number])
    return Combination(best, tuple(v.tolist()), observed, tuple(ranking))


def _normalised(row: Tensor) -> Tensor:
    finite = row[row.isfinite()]
    if not finite.numel() or finite.max() == finite.min():
        return torch.zeros_like(row)
    return torch.where(row.isfinite(), (row - finite.min()) / (finite.max() - finite.min()), 0.0)


def _next(tried: list[tuple[Tensor, int]], observed: dict[int, float], proposals: Tensor) -> Tensor:
    """The proposal with the largest upper confidence bound."""
    v_TM, y_T = torch.stack([v for v, _ in tried]), torch.tensor([observed[c] for _, c in tried], dtype=torch.float64)
    spread = float(y_T.std(correction=0))
    y_T = (y_T - y_T.mean()) / (spread or 1.0)
    fits = [_fitted(v_TM, y_T, scale) for scale in SCALES]
    scale, factor, weights = max(fits, key=lambda fit: _likelihood(fit[1], y_T, fit[2]))
    k_PT = _matern(proposals, v_TM, scale)
    mean = k_PT @ weights
    variance = 1 - torch.linalg.solve_triangular(factor, k_PT.T, upper=False).square().sum(0)
    return proposals[int((mean + KAPPA * variance.clamp(min=0).sqrt()).argmax())]


def _fitted(v_TM: Tensor, y_T: Tensor, scale: float) -> tuple[float, Tensor, Tensor]:
    k_TT = _matern(v_TM, v_TM, scale) + NOISE * torch.eye(len(y_T), dtype=y_T.dtype)
    factor = torch.linalg.cholesky(k_TT)
    return scale, factor, torch.cholesky_solve(y_T.unsqueeze(1), factor).squeeze(1)


def _likelihood(factor: Tensor, y_T: Tensor, weights: Tensor) -> float:
    """log p(y), without its constant."""
    return float(-0.5 * y_T @ weights - factor.diagonal().log().sum())


def _matern(a: Tensor, b: Tensor, scale: float) -> Tensor:
    r = math.sqrt(5) * torch.cdist(a, b) / scale
    return (1 + r + r.square() / 3) * torch.exp(-r)
