"""Masks by magnitude: the weights of smallest, or of largest, absolute value.

    M = {i : |w_i| <= h},  h the share's quantile of |w| over the model, or of each parameter          "smallest"
    M = {i : |w_i| >= h},  h the (1 - share)'s                                                         "largest"

The smallest are what SaRA trains (arXiv:2409.06633) and pruning removes; the largest are its opposite, to compare with.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

from torch import Tensor

from localplug import Run, Selector
from localplug_select.packed import PackedMasks
from localplug_select.thresholds import kth_smallest


@final
class Magnitude(Selector):
    """The share of the weights with the smallest or the largest magnitude, chosen at the start and every `refresh` steps.

        M = {i : |w_i| <= h}  or  {i : |w_i| >= h},  h a quantile of |w| measured at each choice

    The mask costs one bit a weight, in memory and in a checkpoint. Equal magnitudes at the threshold are all in.

    Args:
        share: of the weights that are trained, in (0, 1].
        refresh: steps after which it is chosen anew from the present weights; 0 for never.
        which: "smallest" or "largest".
        by: what the quantile is taken over: "model", all of `among` together, or "parameter", each by itself.
        among: names or patterns (fnmatch) of the parameters to choose in; None for all.

    Raises:
        ValueError: an option is out of its range; lists all of them.

    Example:
        >>> import localplug
        >>> localplug.method("mezo", parameters="magnitude:0.05").describe()[-52:]
        'trains the smallest 0.05 of the model, back-end auto'

    Reference: Hu, Zhang, Chen, et al.: SaRA, ICLR 2025, arXiv:2409.06633, for the smallest.
    """

    def __init__(
        self,
        share: float = 0.1,
        refresh: int = 0,
        which: Literal["smallest", "largest"] = "smallest",
        by: Literal["model", "parameter"] = "model",
        among: str | Sequence[str] | None = None,
    ) -> None:
        wrong = []
        if not 0 < share <= 1:
            wrong.append(f"share must be in (0, 1], got {share!r}")
        if not (isinstance(refresh, int) and refresh >= 0):
            wrong.append(f"refresh must be a number of steps, or 0 for never, got {refresh!r}")
        if which not in ("smallest", "largest"):
            wrong.append(f'which must be "smallest" or "largest", got {which!r}')
        if by not in ("model", "parameter"):
            wrong.append(f'by must be "model" or "parameter", got {by!r}')
        if wrong:
            raise ValueError("magnitude: " + "; ".join(wrong))
        self.share, self.refresh, self.which, self.by = float(share), refresh, which, by
        self.among = [among] if isinstance(among, str) else among
        self.changes = refresh > 0
        self._epoch = 0

    def describe(self) -> str:
        of = "the model" if self.by == "model" else "each parameter"
        every = f", chosen anew every {self.refresh} steps" if self.refresh else ""
        return f"the {self.which} {self.share:.2g} of {of}{every}"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run, self._masks = run, PackedMasks(run, indices)
        self._epoch = run.step // self.refresh if self.refresh else 0
        self._choose()

    def begin(self, run: Run) -> None:
        epoch = run.step // self.refresh if self.refresh else 0
        if epoch > self._epoch:
            self._epoch = epoch
            self._choose()

    def _choose(self) -> None:
        indices = list(self._masks.bits)
        groups = [indices] if self.by == "model" else [[i] for i in indices]
        thresholds = {
            i: h for group in groups if group for i, h in dict.fromkeys(group, self._threshold(group)).items()
        }
        if self.which == "smallest":
            self._masks.choose(lambda i, magnitude: magnitude <= thresholds[i])
        else:
            self._masks.choose(lambda i, magnitude: magnitude >= thresholds[i])

    def _threshold(self, indices: Sequence[int]) -> float:
        weights = [self._run.parameters[i][1].data for i in indices]
        num = sum(w.numel() for w in weights)
        k = max(round(self.share * num), 1)
        return kth_smallest(weights, k if self.which == "smallest" else num - k + 1)

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        return self._masks.slice(index, offset, values.numel())

    def num_elements(self, index: int) -> int:
        return self._masks.num(index)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self._masks.state_dict(), "epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._masks.load_state_dict(state["masks"])
        self._epoch = int(state["epoch"])
