"""The contract of all searchers: ask for candidates, tell their values, read the best. Smaller values are better.

    X = searcher.ask(4)            # at most 4 candidates, at least one: (N, D), float64
    searcher.tell(X, values)       # their values, (N,), in the same order
    searcher.best                  # the best point so far, and its value
    searcher.fit(X, values)        # values of other points, known beforehand

What was asked is told before more is asked; `pending` holds it in between, also over a checkpoint. A value that is not finite
counts as worse than all others, is never `best`, and is counted and said. Letters: N points, D numbers in each.
"""

import abc
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from localplug_blackbox.box import Box

logger = logging.getLogger("localplug")

Values = Tensor | Sequence[float] | float


@final
@dataclasses.dataclass(frozen=True)
class Best:
    """The best point that has been seen.

    Args:
        x: (D,), float64.
        value: of the objective there.
    """

    x: Tensor
    value: float


class Searcher(abc.ABC):
    """Asks for the values of points, and learns from them. Subclasses give the five methods that begin with an underscore.

    Random numbers come from a generator of the searcher's own, whose state is part of `state_dict`: a search that is saved and
    loaded goes on bit by bit as it would have.

    Args:
        box: where to look.

    Attributes:
        num_evaluations: values that were told after being asked for.
        num_given: values that came by `fit`.
        num_not_finite: of both, those that were not finite.
    """

    def __init__(self, box: Box) -> None:
        if not isinstance(box, Box):
            raise TypeError(f"box must be a localplug_blackbox.Box, got {type(box).__name__}")
        self.box = box
        self.num_evaluations = 0
        self.num_given = 0
        self.num_not_finite = 0
        self._best: Best | None = None
        self._pending_ND: Tensor | None = None

    # what a subclass gives

    @abc.abstractmethod
    def _propose(self, num: int) -> Tensor:
        """At most `num` points inside the box, at least one. (N, D), float64."""

    @abc.abstractmethod
    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        """The values of what was proposed last; inf for those that were not finite."""

    @abc.abstractmethod
    def _know(self, X_ND: Tensor, y_N: Tensor) -> None:
        """Values of points that were not asked for; inf for those that were not finite."""

    @abc.abstractmethod
    def _state(self) -> dict[str, Any]:
        """All that the next proposal depends on: tensors, numbers, text, and lists and dictionaries of those."""

    @abc.abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take what `_state` gave."""

    # what a user calls

    @property
    def finished(self) -> str:
        """Why the search is over; empty while it goes on."""
        return ""

    @property
    def best(self) -> Best | None:
        """The best point so far, of those told and of those given; None before the first finite value."""
        return self._best

    @property
    def pending(self) -> Tensor | None:
        """The points that were asked for and have no values yet, (N, D); None if there are none."""
        return None if self._pending_ND is None else self._pending_ND.clone()

    @final
    def ask(self, num: int = 1) -> Tensor:
        """Points whose values are wanted, at most `num` and at least one. (N, D), float64.

        Raises:
            ValueError: num is below 1, or earlier points have no values yet, or the search is over; lists all of them.
        """
        wrong = [] if num >= 1 else [f"num must be at least 1, got {num!r}"]
        if self._pending_ND is not None:
            wrong.append(f"tell the values of the {len(self._pending_ND)} points of `pending` first")
        if self.finished:
            wrong.append(f"the search is over: {self.finished}")
        if wrong:
            raise ValueError("; ".join(wrong))
        X_ND = self._propose(num)
        self._pending_ND = X_ND.clone()
        return X_ND

    @final
    def tell(self, X: Tensor, values: Values) -> None:
        """The values of the points that were asked for last.

        Args:
            X: (N, D), as `ask` gave it.
            values: (N,); smaller is better.

        Raises:
            ValueError: X is not what was asked for, or there are not as many values; nothing is learnt then.
        """
        X_ND, y_N = self._checked(X, values)
        if self._pending_ND is None:
            raise ValueError("nothing was asked for; values of points of your own go to `fit`")
        if X_ND.shape != self._pending_ND.shape or not torch.equal(X_ND, self._pending_ND):
            raise ValueError("X must be the points that `ask` gave, in their order; values of other points go to `fit`")
        self._pending_ND = None
        self.num_evaluations += len(y_N)
        self._learn(X_ND, self._noted(X_ND, y_N))

    @final
    def fit(self, X: Tensor, values: Values) -> None:
        """Values that are known beforehand, such as those of past runs. May be called again.

        Args:
            X: (N, D), inside the box.
            values: (N,); smaller is better.

        Raises:
            ValueError: the shapes differ, a point is not inside the box, or points are pending; lists all of them.
        """
        X_ND, y_N = self._checked(X, values)
        wrong = []
        if self._pending_ND is not None:
            wrong.append(f"tell the values of the {len(self._pending_ND)} points of `pending` first")
        if outside := (~self.box.contains(X_ND)).nonzero().flatten().tolist():
            wrong.append(f"these rows of X are not inside the box: {outside}")
        if wrong:
            raise ValueError("; ".join(wrong))
        self.num_given += len(y_N)
        self._know(X_ND, self._noted(X_ND, y_N))

    @final
    def state_dict(self) -> dict[str, Any]:
        """What a search needs to go on exactly; torch.save keeps it, and torch.load(weights_only=True) reads it."""
        return {
            "searcher": type(self).__name__,
            "lower": self.box.lower_D.clone(),
            "upper": self.box.upper_D.clone(),
            "counts": [self.num_evaluations, self.num_given, self.num_not_finite],
            "best": None if self._best is None else [self._best.x.clone(), self._best.value],
            "pending": self.pending,
            "own": self._state(),
        }

    @final
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict` of a searcher that was made with the same options.

        Raises:
            ValueError: it is the state of another searcher or of another box, or parts are missing.
        """
        wrong = []
        missing = {"searcher", "lower", "upper", "counts", "best", "pending", "own"} - set(state)
        if missing:
            raise ValueError(f"the state has no {', '.join(sorted(missing))}")
        if state["searcher"] != type(self).__name__:
            wrong.append(f"the state is one of {state['searcher']}, and this is {type(self).__name__}")
        if not (torch.equal(state["lower"], self.box.lower_D) and torch.equal(state["upper"], self.box.upper_D)):
            wrong.append("the state is one of another box")
        if wrong:
            raise ValueError("; ".join(wrong))
        self._restore(state["own"])
        self.num_evaluations, self.num_given, self.num_not_finite = (int(n) for n in state["counts"])
        self._best = None if state["best"] is None else Best(state["best"][0].clone(), float(state["best"][1]))
        self._pending_ND = None if state["pending"] is None else state["pending"].clone()

    def _checked(self, X: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        X_ND = torch.as_tensor(X, dtype=torch.float64).detach().cpu()
        y_N = torch.as_tensor(values, dtype=torch.float64).detach().cpu().reshape(-1)
        wrong = []
        if X_ND.dim() != 2 or X_ND.shape[1] != self.box.num or not len(X_ND):
            wrong.append(f"X must be (N, {self.box.num}) with N at least 1, got the shape {tuple(X_ND.shape)}")
        elif len(X_ND) != len(y_N):
            wrong.append(f"there must be a value for each point, got {len(y_N)} for {len(X_ND)}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return X_ND, y_N

    def _noted(self, X_ND: Tensor, y_N: Tensor) -> Tensor:
        """Values with inf for what is not finite; counts them, says it the first time, and keeps the best."""
        finite_N = torch.isfinite(y_N)
        num_bad = int((~finite_N).sum())
        if num_bad and not self.num_not_finite:
            logger.warning(
                "%s: %d of %d values of the objective are not finite; such a point counts as worse than all others. "
                "Later ones are counted in num_not_finite and not said again",
                type(self).__name__,
                num_bad,
                len(y_N),
            )
        self.num_not_finite += num_bad
        y_N = torch.where(finite_N, y_N, torch.full_like(y_N, math.inf))
        place = int(y_N.argmin())
        if float(y_N[place]) < (math.inf if self._best is None else self._best.value):
            self._best = Best(X_ND[place].clone(), float(y_N[place]))
        return y_N


def minimize(
    objective: Callable[[Tensor], Tensor], searcher: Searcher, max_evaluations: int, *, batch: int = 1
) -> Best | None:
    """Ask and tell until the evaluations are spent or the search is over.

    Args:
        objective: of points (N, D), float64, to values (N,); smaller is better.
        searcher: goes on from where it is.
        max_evaluations: of this call, at least 1.
        batch: points asked for at once, at least 1; a searcher may give fewer.

    Returns:
        The best of all that the searcher has seen; None if no value was finite.

    Raises:
        ValueError: max_evaluations or batch is below 1, or the objective gives another number of values.

    Example:
        >>> from localplug_blackbox import Box, DirectionalAttacks, minimize
        >>> searcher = DirectionalAttacks(Box.free(3), start=[1.0, 2.0, 3.0])
        >>> minimize(lambda X: X.square().sum(1), searcher, 600).value < 1e-3
        True
    """
    wrong = [
        f"{name} must be at least 1, got {value!r}"
        for name, value in (("max_evaluations", max_evaluations), ("batch", batch))
        if not value >= 1
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    until = searcher.num_evaluations + max_evaluations
    while searcher.num_evaluations < until and not searcher.finished:
        X_ND = searcher.pending
        if X_ND is None:
            X_ND = searcher.ask(min(batch, until - searcher.num_evaluations))
        searcher.tell(X_ND, objective(X_ND))
    return searcher.best
