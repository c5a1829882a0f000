"""A searcher whose steps a library makes, and whose state is the values that the library was told.

Such a library's own state is a pickle, which a file of others must not be; a search that is seeded is the same when it is
told the same values again. Letters: N points, D numbers.
"""

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from localplug_blackbox.box import Box
from localplug_blackbox.contract import Searcher
from localplug_blackbox.generation import Generation


class Replayed(Searcher):
    """Subclass it with the library's three answers; it may set `_start_D` in its `__init__`.

    Values that `fit` gives before the first `ask` move the start to the best of them; later ones do not change the search.
    """

    def __init__(self, box: Box) -> None:
        super().__init__(box)
        self._start_D = box.start(None)
        self._told: list[list[float]] = []
        self._search: Any = None
        self._now: Generation | None = None

    @abc.abstractmethod
    def _begun(self) -> Any:
        """The library's search at its beginning."""

    @abc.abstractmethod
    def _drawn(self, num: int) -> Tensor:
        """(N, D), the library's next points: `num` of them, or as many as it gives at once."""

    @abc.abstractmethod
    def _follow(self, values: list[float]) -> None:
        """Tell the library the values of what it has drawn."""

    def _generation(self, num: int) -> Generation:
        return Generation(self.box.clip(self._drawn(num)))

    def _propose(self, num: int) -> Tensor:
        if self._search is None:
            self._search = self._begun()
        if self._now is None:
            self._now = self._generation(num)
        return self._now.next(num)

    def _learn(self, X_ND: Tensor, y_N: Tensor) -> None:
        assert self._now is not None
        self._now.put(y_N)
        if self._now.complete:
            values = self._now.y_N.tolist()
            self._told.append(values)
            self._follow(values)
            self._now = None

    def _know(self, X_ND: Tensor, y_N: Tensor) -> None:
        place = int(y_N.argmin())
        best = self.best
        if self._search is None and best is not None and float(y_N[place]) <= best.value:
            self._start_D = X_ND[place].clone()

    def _state(self) -> dict[str, Any]:
        return {
            "start": self._start_D.clone(),
            "told": [list(values) for values in self._told],
            "now": None if self._now is None else self._now.state(),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._start_D = state["start"].clone()
        self._told, self._now, self._search = [], None, None
        if state["told"] or state["now"] is not None:
            self._search = self._begun()
        for values in state["told"]:
            self._drawn(len(values))
            self._told.append([float(v) for v in values])
            self._follow(self._told[-1])
        if state["now"] is not None:
            self._now = Generation.restored(state["now"])
            if not torch.equal(self._generation(len(self._now.X_ND)).X_ND, self._now.X_ND):
                raise ValueError(
                    "the library draws other points than those of the state: other options or another version"
                )
