"""The directions of a poll, and what a poll without success says about the slope.

Letters: D numbers, P directions. A set of directions has the cosine measure

    kappa = min over unit vectors v of max over directions d of <v, d>

which is positive if the directions span the space with positive weights: whatever the slope is, one of them goes down. If
f(x + s d) >= f(x) for all of them, and the slope of f changes by at most L times the distance, then (Kolda, Lewis, Torczon:
Optimization by Direct Search, SIAM Review 45, 2003)

    |slope of f at x| <= L s / (2 kappa)
"""

import dataclasses
import math
from typing import Literal, final

import torch
from torch import Tensor

Poll = Literal["n+1", "2n"]


@final
@dataclasses.dataclass(frozen=True)
class Certificate:
    """What the last poll has shown: none of its points is better than the best one.

    Args:
        step: s, the distance of the points, in the units of x.
        cosine_measure: kappa of the directions.
        complete: whether all of them were inside the box and evaluated; if not, the bound does not hold.
    """

    step: float
    cosine_measure: float
    complete: bool

    def slope_bound(self, lipschitz: float) -> float:
        """The largest slope that the objective can have at the best point; inf if the poll was not complete.

        Args:
            lipschitz: L, by how much the slope changes with the distance, at most.
        """
        return lipschitz * self.step / (2 * self.cosine_measure) if self.complete else math.inf


def directions(num: int, poll: Poll, generator: torch.Generator) -> Tensor:
    """Unit vectors that span the space positively, turned at random: the columns of a Householder reflection, and those in
    the other direction ("2n"), or the one against their sum ("n+1"). In random order. (P, D), float64.
    """
    v_D = torch.randn(num, dtype=torch.float64, generator=generator)
    v_D = v_D / v_D.norm()
    H_DD = torch.eye(num, dtype=torch.float64) - 2 * torch.outer(v_D, v_D)
    H_DD = H_DD * torch.where(torch.rand(num, generator=generator) < 0.5, -1.0, 1.0).double().unsqueeze(1)
    rest_PD = -H_DD if poll == "2n" else -H_DD.sum(0, keepdim=True) / math.sqrt(num)
    found_PD = torch.cat([H_DD, rest_PD])
    return found_PD[torch.randperm(len(found_PD), generator=generator)]


def cosine_measure(num: int, poll: Poll) -> float:
    """kappa of `directions`: 1/sqrt(D) for "2n", 1/sqrt(D^2 + 2 (D - 1) sqrt(D)) for "n+1"."""
    return 1 / math.sqrt(num) if poll == "2n" else 1 / math.sqrt(num**2 + 2 * (num - 1) * math.sqrt(num))
