"""Make repeated evaluations of one batch equal but for the weights: same dropout, buffers that advance once, no stale casts."""

import contextlib
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor, nn

RandomState = tuple[Tensor, list[Tensor]]
"""Of torch's global generators: the CPU's, and those of all CUDA devices."""
_Place = tuple[nn.Module, str]  # a buffer by where it is: a callback may put another tensor there


def random_state() -> RandomState:
    """Where torch's global generators are."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda


def restore_random_state(state: RandomState) -> None:
    """Put torch's global generators back to where they were."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


def _holds(place: _Place, value: Tensor) -> bool:
    module, name = place
    buffer = module._buffers.get(name)
    return buffer is not None and torch.equal(buffer, value)


@final
class Replay:
    """A context around one estimate; call `rewind` before each evaluation in it.

    The global random state ends where one evaluation leaves it. Buffers keep what the first evaluation wrote: the
    later ones start from it and their writes are undone. Which buffers are written (running statistics, mostly) is
    learned during the first estimate, by value: batch norm writes them without a trace in their version counters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._start: RandomState | None = None
        self._written: list[_Place] | None = None  # None until the first estimate shows it
        self._before: list[tuple[_Place, Tensor]] = []
        self._advanced: list[tuple[Tensor, Tensor]] | None = None

    def __enter__(self) -> "Replay":
        self._start = self._advanced = None
        if self._written is None:
            self._before = [
                ((module, name), buffer.clone())
                for module in self._model.modules()
                for name, buffer in module.named_buffers(recurse=False)
            ]
        return self

    def rewind(self) -> None:
        torch.clear_autocast_cache()  # an enclosing autocast keeps casts of the weights of the evaluation before
        if self._start is None:
            self._start = random_state()
            return
        restore_random_state(self._start)
        if self._written is None:
            self._written = [place for place, value in self._before if not _holds(place, value)]
            self._before = []
        if self._advanced is None:
            now = [b for module, name in self._written if (b := module._buffers.get(name)) is not None]
            self._advanced = [(b, b.clone()) for b in now]
        else:
            self._put_back()

    def _put_back(self) -> None:
        for buffer, value in self._advanced or []:
            buffer.copy_(value)

    def __exit__(self, *_: Any) -> None:
        self._put_back()
        self._before, self._advanced = [], None
        torch.clear_autocast_cache()

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the estimate that just ended can be repeated, and which leaves no trace of the repetition."""
        start = self._start
        device = next((p.device.type for p in self._model.parameters()), "cpu")
        casting = torch.autocast(  # the trainer may have left its autocast when it calls backward
            device, dtype=torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device)
        )

        @contextlib.contextmanager
        def repeat() -> Iterator[None]:
            now, buffers = random_state(), [(b, b.clone()) for b in self._model.buffers()]
            if start is not None:
                restore_random_state(start)
            try:
                with torch.no_grad(), casting:
                    yield
            finally:
                with torch.no_grad():
                    for buffer, value in buffers:
                        buffer.copy_(value)
                restore_random_state(now)

        return repeat()
