"""Turn SIGINT and SIGTERM into one exception.

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


class Interrupted(BaseException):
    """A signal interrupted the process. It is no Exception, so `except Exception` passes it on.

    Attributes:
        signal: the signal's number.
        command: the command that resumes, if known.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        self.command: str | None = None
        self.at = time.monotonic()
        super().__init__(f"interrupted by {self.signal.name}")

    @property
    def status(self) -> int:
        """Exit status for shells and schedulers: 130 or 143."""
        return 128 + self.signal


class _State:
    """State of the process, as signals are per process."""

    interrupted: Interrupted | None = None
    waiting = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted on SIGINT and SIGTERM within the block; ignored signals stay ignored.

    Interrupted leaves the block even if a library turned it into another error.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    _State.interrupted, _State.waiting = None, False
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        interrupted, _State.interrupted = _State.interrupted, None  # a later search does not see it
        if interrupted is not None:
            raise interrupted


def is_interrupted() -> bool:
    """Whether a signal has come, within `interruptible`."""
    return _State.interrupted is not None


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Defer signals within the block; yields a function that returns whether one has come.

    Call it between two steps, where the state is consistent, and leave the block if it returns
    True. Interrupted is raised afterwards.
    """
    _State.waiting = True
    try:
        yield is_interrupted
    finally:
        _State.waiting = False
        if _State.interrupted is not None:
            raise _State.interrupted


def _stop(number: int, frame: FrameType | None) -> None:
    first = _State.interrupted
    if first is None:
        _State.interrupted = Interrupted(number)
        if not _State.waiting:
            raise _State.interrupted
    elif time.monotonic() - first.at > _ECHO:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
