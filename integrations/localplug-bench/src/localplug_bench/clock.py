"""Where the time of a step goes: contexts that are measured as they are entered and left, each second in one of them alone.

What happens deep inside is measured by wrapping, while a lap runs, the host's public Directions (perturbing) and
torch.autograd.grad (the backward passes of layer-local units): a seam there would cost every user what only the bench needs.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, final

import torch

from localplug import Directions

KINDS = ("forward", "perturbation", "backward", "update", "data", "framework")
"""forward: the model and its loss. perturbation: random directions made and added while evaluating. backward: autograd, of the
whole model or inside units. update: the method's and the optimizer's. data: batches. framework: all else of the loop."""
OBSERVATION = "observation"  # of the estimates, by an observer; no part of training
_WHOLE = ("update", OBSERVATION)  # what they do inside is theirs: an update makes the directions again
_PERTURBING = ("values", "add_", "added", "small_added", "factors")


@final
class Clock:
    """Seconds by kind. Contexts nest: an inner one takes its time from the outer one.

    Args:
        synchronize: called before each reading of the time; torch.cuda.synchronize on a GPU.

    Example:
        >>> clock = Clock()
        >>> with clock("forward"):
        ...     pass
        >>> sorted(kind for kind, seconds in clock.seconds.items() if seconds)
        ['forward']
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self.seconds = dict.fromkeys((*KINDS, OBSERVATION), 0.0)
        self._synchronize = synchronize
        self._open: list[str] = []
        self._since = 0.0

    @property
    def total(self) -> float:
        """All seconds of training."""
        return sum(self.seconds[kind] for kind in KINDS)

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        self._turn()
        self._open.append(kind)
        try:
            yield
        finally:
            self._turn()
            self._open.pop()

    def _turn(self) -> None:
        """The time until now belongs to whatever is open."""
        if self._synchronize is not None:
            self._synchronize()
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def _within(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            if not self._open or self._open[-1] in (kind, *_WHOLE):
                return function(*args, **kwargs)
            with self(kind):
                return function(*args, **kwargs)

        return measured

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While this is open, perturbing and the units' backward passes are measured, too."""
        before = {name: getattr(Directions, name) for name in _PERTURBING}
        grad = torch.autograd.grad
        try:
            for name, function in before.items():
                setattr(Directions, name, self._within("perturbation", function))
            torch.autograd.grad = self._within("backward", grad)
            yield
        finally:
            torch.autograd.grad = grad
            for name, function in before.items():
                setattr(Directions, name, function)
