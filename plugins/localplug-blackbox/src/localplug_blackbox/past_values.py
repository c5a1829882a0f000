"""The values that a search by past values has: points in the box scaled to [0, 1], and values of mean 0 and deviation 1.

Letters: N points, D numbers.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from localplug_blackbox.box import Box


@final
class PastValues:
    """Grows with every finite value that a search sees. Points with other values are counted and left out."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.X_ND = torch.zeros(0, box.num, dtype=torch.float64)
        self.y_N = torch.zeros(0, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.y_N)

    def add(self, X_ND: Tensor, y_N: Tensor) -> None:
        finite_N = torch.isfinite(y_N)
        self.X_ND = torch.cat([self.X_ND, X_ND[finite_N]])
        self.y_N = torch.cat([self.y_N, y_N[finite_N]])

    def unit(self) -> Tensor:
        """The points in the box scaled to [0, 1]. (N, D)."""
        return self._box.to_unit(self.X_ND)

    def standard(self) -> Tensor:
        """(y - mean) / deviation; 0 for equal values. (N,)."""
        centred_N = self.y_N - self.y_N.mean()
        deviation = float(self.y_N.std()) if len(self) > 1 else 0.0
        return centred_N / deviation if deviation > 0 else centred_N

    def state(self) -> dict[str, Any]:
        return {"X": self.X_ND.clone(), "y": self.y_N.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.X_ND, self.y_N = state["X"].clone(), state["y"].clone()


def spread(candidates_ND: Tensor, scores_N: Tensor, num: int, distance: float) -> Tensor:
    """The best `num` by score (smaller is better) that keep a distance from each other; nearer ones where there are no more."""
    order = scores_N.argsort().tolist()
    chosen: list[int] = []
    for place in order:
        if len(chosen) == num:
            break
        if all(float((candidates_ND[place] - candidates_ND[c]).norm()) >= distance for c in chosen):
            chosen.append(place)
    chosen += [place for place in order if place not in chosen][: num - len(chosen)]
    return candidates_ND[chosen]
