"""How a process ends that is told to: SIGINT and SIGTERM become one exception.

A second signal ends the process at once. The commands install this; the Python API does not.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO = 0.5  # seconds; `timeout` and some schedulers send each signal twice


class Stopped(BaseException):
    """The process was told to end. No `except Exception` may take it for a failure.

    Attributes:
        signal: which told it.
        command: what to type to go on, where that is known.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.command: str | None = None
        self.at = time.monotonic()
        super().__init__(f"stopped by {self.signal.name}")

    @property
    def status(self) -> int:
        """The exit status by which shells and schedulers know the signal: 130 or 143."""
        return 128 + self.signal


class _State:
    """Of the process, as signals are."""

    stopped: Stopped | None = None
    waiting = False


@contextmanager
def stopping() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise Stopped within the block; ignored signals stay ignored.

    Stopped leaves the block even where a library turned it into its own error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told of signals
        return
    _State.stopped, _State.waiting = None, False
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        stopped, _State.stopped = _State.stopped, None  # a later search is not told of it
        if stopped is not None:
            raise stopped


def told_to_end() -> bool:
    """Whether a signal has come, within `stopping`."""
    return _State.stopped is not None


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Let a signal wait within the block; gives the question whether one has come.

    The block should ask between two steps, where its state is whole, and leave if so. Stopped is
    raised behind it.
    """
    _State.waiting = True
    try:
        yield told_to_end
    finally:
        _State.waiting = False
        if _State.stopped is not None:
            raise _State.stopped


def _stop(number: int, frame: FrameType | None) -> None:
    first = _State.stopped
    if first is None:
        _State.stopped = Stopped(number)
        if not _State.waiting:
            raise _State.stopped
    elif time.monotonic() - first.at > _ECHO:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
