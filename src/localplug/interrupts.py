"""Ctrl-C at a bad moment: held back until the weights are the model's own again, or a step is done as a whole.

Torch runs no forward hook after a KeyboardInterrupt, so that one which strikes during the framework's own forward call
would leave that call's surroundings behind: perturbed copies in the model's modules, and gradients switched off.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, final


@final
class HeldInterrupt:
    """Holds back SIGINT while it is held; a second one in that time is let through at once.

    Only in the main thread, and only where Python code handles the signal: elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self._theirs: Any = None
        self._came: tuple[int, FrameType | None] | None = None

    def hold(self) -> None:
        """From now on an interrupt waits."""
        if self._theirs is not None or threading.current_thread() is not threading.main_thread():
            return
        theirs = signal.getsignal(signal.SIGINT)
        if callable(theirs):
            self._theirs, self._came = theirs, None
            signal.signal(signal.SIGINT, self._wait)

    def _wait(self, number: int, frame: FrameType | None) -> None:
        if self._came is not None and (handle := self.let_go()) is not None:
            handle()
        else:
            self._came = (number, frame)

    def let_go(self) -> Callable[[], None] | None:
        """Handle interrupts as before. Returns what raises the one that came meanwhile, or None."""
        if self._theirs is None:
            return None
        theirs, came = self._theirs, self._came
        self._theirs = self._came = None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, theirs)
        return None if came is None else lambda: theirs(*came)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """While this is open an interrupt waits; it is raised when it closes."""
    interrupt = HeldInterrupt()
    interrupt.hold()
    try:
        yield
    finally:
        raises = interrupt.let_go()
        if raises is not None:
            raises()
