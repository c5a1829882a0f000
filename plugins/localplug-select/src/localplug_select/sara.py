"""SaRA: fine-tune the weights that are nearly zero (arXiv:2409.06633).

    M = {i : |w_i| <= h}              the weights that hardly matter, over all parameters, biases too
    w_M <- update(w_M)                all others stay to the bit
    every `refresh` steps             M <- {i : |w_i| <= h}, the same h: what has grown beyond it is left as it is, and the
                                      rest goes on ("progressive": a second chance for what has not moved yet)
    w_M <- shrink(w_M)                singular values of the matrix w o M, see localplug_select.low_rank

Differences from the published code: there the mask is chosen anew once, the optimizer's state begins anew then and that step
is left out; updates of localplug-zo that have a state refuse a mask that changes. It compares by <, here by <=, so that a
share of weights that are exactly zero counts. It writes |w| into the masked entries before the first step after each choice;
here w stays.
"""

from collections.abc import Sequence
from typing import Any, final

from torch import Tensor

import localplug
from localplug import Distribution, Run, Selector, ZerothOrder
from localplug_select.packed import PackedMasks
from localplug_select.thresholds import kth_smallest


@final
class SaRA(Selector):
    """The weights of smallest magnitude, chosen once over the whole model, or again and again below the same threshold.

        M = {i : |w_i| <= h},  h given, or the share's quantile of |w| at the start

    The mask costs one bit a weight, in memory and in a checkpoint. A choice that would leave nothing to train is left out.

    Args:
        share: of the weights below the threshold at the start, in (0, 1]. The paper trains the smallest 10 to 20 %.
        refresh: steps after which the weights that are still below the threshold are chosen; 0 for never.
        threshold: h itself, in parameter units, > 0, in the place of `share`. The published examples have 2e-3.
        among: names or patterns (fnmatch) of the parameters to choose in; None for all.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> import torch, localplug
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        >>> engine = localplug.Engine(model, localplug.method("mezo", parameters="sara:0.1"), optimizer)
        >>> loss = engine.step(lambda: model(torch.ones(4, 8)).square().mean(), optimizer)

    Reference: Hu, Zhang, Chen, et al.: SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank
        Adaptation, ICLR 2025, arXiv:2409.06633.
    """

    def __init__(
        self,
        share: float = 0.1,
        refresh: int = 0,
        threshold: float | None = None,
        among: str | Sequence[str] | None = None,
    ) -> None:
        wrong = []
        if not 0 < share <= 1:
            wrong.append(f"share must be in (0, 1], got {share!r}")
        if not (isinstance(refresh, int) and refresh >= 0):
            wrong.append(f"refresh must be a number of steps, or 0 for never, got {refresh!r}")
        if threshold is not None and not threshold > 0:
            wrong.append(f"threshold must be positive, got {threshold!r}")
        if wrong:
            raise ValueError("sara: " + "; ".join(wrong))
        self.share, self.refresh, self.threshold = float(share), refresh, threshold
        self.among = [among] if isinstance(among, str) else among
        self.changes = refresh > 0
        self._h, self._epoch = 0.0, 0

    def describe(self) -> str:
        what = f"{self.share:g}" if self.threshold is None else f"|w| <= {self.threshold:g}"
        return f"sara:{what}" + (f":{self.refresh}" if self.refresh else "")

    def problems(self, run: Run) -> list[str]:
        if self.threshold is None:
            return []
        smallest = min(kth_smallest([p.data], 1) for _, p in run.parameters if p.numel())
        if smallest <= self.threshold:
            return []
        return [f"sara: no weight is below threshold={self.threshold:g}, the smallest is {smallest:.2g}; give share="]

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._masks = PackedMasks(run, indices)
        weights = [run.parameters[i][1].data for i in indices]
        k = max(round(self.share * sum(w.numel() for w in weights)), 1)
        self._h = kth_smallest(weights, k) if self.threshold is None else self.threshold
        self._epoch = run.step // self.refresh if self.refresh else 0
        self._masks.choose(lambda i, magnitude: magnitude <= self._h)

    def begin(self, run: Run) -> None:
        epoch = run.step // self.refresh if self.refresh else 0
        if epoch <= self._epoch:
            return
        self._epoch, before = epoch, self._masks.state_dict()
        self._masks.choose(lambda i, magnitude: magnitude <= self._h)
        if not self._masks.num():
            self._masks.load_state_dict(before)

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        return self._masks.slice(index, offset, values.numel())

    def num_elements(self, index: int) -> int:
        return self._masks.num(index)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self._masks.state_dict(), "epoch": self._epoch, "threshold": self._h}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._masks.load_state_dict(state["masks"])
        self._epoch, self._h = int(state["epoch"]), float(state["threshold"])


def sara(
    eps: float = 1e-3,
    num_directions: int = 1,
    share: float = 0.1,
    refresh: int = 0,
    low_rank: float = 0.0,
    directions: str | Distribution = "gaussian",
    backend: str = "auto",
) -> ZerothOrder:
    """SaRA by zeroth order: two-sided SPSA on the weights that are nearly zero (arXiv:2409.06633).

    Needs localplug-zo. For other estimators and updates give `parameters="sara:0.1"` to their methods.

    Args:
        eps: half-width of the finite difference, in parameter units, > 0.
        num_directions: q, independent directions for each step, >= 1.
        share, refresh: see localplug_select.sara.
        low_rank: weight of the nuclear norm, >= 0; the published code has 5e-4. See localplug_select.low_rank.
        directions: distribution of z; a name or a localplug.Distribution.
        backend: how perturbed weights are evaluated; see localplug.Perturbation.

    Raises:
        ValueError: an option is out of its range.
        UnknownName: localplug-zo is not installed.

    Example:
        >>> import localplug
        >>> localplug.method("sara", share=0.2).cost
        '2 forward passes a batch'
    """
    plain = localplug.update("sgd")
    return ZerothOrder(
        localplug.estimator("two-sided", eps=eps, num_directions=num_directions),
        localplug.update("low-rank", weight=low_rank, inner=plain) if low_rank else plain,
        localplug.distribution(directions),
        parameters=SaRA(share, refresh),
        backend=backend,
        name="sara",
    )
