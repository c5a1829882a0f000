"""What chooses single elements of parameters: the class that plugins implement, and the choices that the host has itself.

Smallest      |w| <= h, h the given share's quantile of |w| in each matrix at the start (Sparse-MeZO, arXiv:2402.15751)
RandomShare   a random share of each parameter, drawn once or anew every so many steps
GivenMasks    boolean tensors of the user's
"""

import abc
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug import noise
from localplug.contract import Run


class Selector(abc.ABC):
    """Which elements of the parameters a run trains, and when that is decided anew.

    What is not chosen is neither perturbed nor changed, nor decayed. The choice is a pure function of the weights at the moment
    of choosing, of run.seed and of the step: every worker makes the same one, and so does a resumed run with `state_dict`.

    Attributes:
        among: patterns (fnmatch) of the names of the parameters that it chooses in; None for all. The others stay as they are.
        changes: whether the choice may differ from step to step; updates that add up past directions refuse it then.
    """

    among: Sequence[str] | None = None
    changes: bool = False

    @abc.abstractmethod
    def describe(self) -> str:
        """The name and the options in force, in a few words."""

    def problems(self, run: Run) -> list[str]:
        """Every reason why it cannot be used here; each says what to do."""
        return []

    @abc.abstractmethod
    def setup(self, run: Run, indices: Sequence[int]) -> None:
        """Called once, before the first step: choose.

        Args:
            indices: numbers in run.parameters of those that match `among`.
        """

    def begin(self, run: Run) -> None:  # noqa: B027 (most choose once)
        """Step run.step begins: the weights are what the step before has left. Here is the place to choose anew.

        Called before each estimate and before the update of a step, so perhaps several times, and not in a step whose estimate
        was not finite where a log is replayed: compare run.step with the step of the last choice.
        """

    @abc.abstractmethod
    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        """Which of some elements are chosen. bool, shaped like `values`; None for all of them.

        Args:
            values: the unperturbed weights there, one-dimensional, from element `offset` of parameter `index` on, counted row
                by row. Any cutting of a parameter must give the same elements.
        """

    @abc.abstractmethod
    def num_elements(self, index: int) -> int:
        """Elements of a parameter that are chosen now; about, where counting would cost a pass."""

    def state_dict(self) -> dict[str, Any]:
        """What the present weights, the seed and the step do not give; numbers and tensors only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (some have no state)
        """Take back what `state_dict` gave, after `setup`.

        Raises:
            ValueError: it is not that, or of another model.
        """


@final
class Smallest(Selector):
    """Of each matrix the share with the smallest magnitude at the start, and whatever moves below that later; vectors whole.

    Args:
        share: in (0, 1].
    """

    changes = True

    def __init__(self, share: float) -> None:
        self.share = share
        self._thresholds: dict[str, float] = {}

    def describe(self) -> str:
        return f"smallest:{self.share:g}"

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run
        for name, parameter in (run.parameters[i] for i in indices):
            if parameter.dim() > 1:
                self._thresholds.setdefault(name, _quantile(parameter.data.abs(), self.share))

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        threshold = self._thresholds.get(self._run.parameters[index][0])
        return None if threshold is None else values.abs() <= threshold

    def num_elements(self, index: int) -> int:
        parameter = self._run.parameters[index][1]
        return round(parameter.numel() * self.share) if parameter.dim() > 1 else parameter.numel()

    def state_dict(self) -> dict[str, Any]:
        return {"thresholds": dict(self._thresholds)} if self._thresholds else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        given = state.get("thresholds", {})
        wrong = [n for n, h in given.items() if n not in self._thresholds or not isinstance(h, int | float)]
        if wrong:
            raise ValueError(f"the saved thresholds are no numbers, or of other parameters: {wrong[:3]}")
        self._thresholds.update(given)


@final
class RandomShare(Selector):
    """A random share of each parameter.

    Args:
        share: in (0, 1].
        every: steps after which it is drawn anew; 0 for never.
    """

    def __init__(self, share: float, every: int = 0) -> None:
        self.share, self.every = share, every
        self.changes = every > 0

    def describe(self) -> str:
        return f"random:{self.share:g}" + (f":{self.every}" if self.every else "")

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        self._run = run

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        epoch = step // self.every if self.every else 0
        key = noise.stream(self._run.seed, epoch, MASKS, self._run.parameters[index][0])
        return noise.uniform(key, offset, values.numel(), values.device) < self.share

    def num_elements(self, index: int) -> int:
        return round(self._run.parameters[index][1].numel() * self.share)


@final
class GivenMasks(Selector):
    """The elements where a mask is true.

    Args:
        masks: {pattern: bool, shaped like the parameters whose names match it}.

    Raises:
        ValueError: they are no boolean tensors.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        if wrong := [n for n, m in masks.items() if not (isinstance(m, Tensor) and m.dtype == torch.bool)]:
            raise ValueError(f"parameters: the masks must be boolean tensors; these are not: {wrong}")
        self.among, self._given = list(masks), dict(masks)
        self._masks: dict[int, Tensor] = {}

    def describe(self) -> str:
        return f"masked elements of {len(self._given)} names"

    def problems(self, run: Run) -> list[str]:
        found = []
        for pattern, mask in self._given.items():
            wrong = [n for n, p in run.parameters if matches(n, pattern) and p.shape != mask.shape]
            if wrong:
                found.append(f"parameters: the mask for {pattern!r} has shape {tuple(mask.shape)}, unlike {wrong[:3]}")
        return found

    def setup(self, run: Run, indices: Sequence[int]) -> None:
        for i in indices:
            name, parameter = run.parameters[i]
            for pattern, mask in self._given.items():
                if matches(name, pattern):
                    self._masks[i] = mask.to(parameter.device).reshape(-1)

    def mask(self, index: int, values: Tensor, offset: int, step: int) -> Tensor | None:
        return self._masks[index][offset : offset + values.numel()]

    def num_elements(self, index: int) -> int:
        return int(self._masks[index].sum())


MASKS = -2
"""The number of the noise stream that masks are drawn from; directions count from 0, rounding takes -1."""


def matches(name: str, pattern: str) -> bool:
    """Whether a parameter's name is meant by a pattern, or is it to the letter."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _quantile(values: Tensor, share: float) -> float:
    flat = values.float().reshape(-1)
    return float(flat.kthvalue(max(round(share * flat.numel()), 1)).values)
