"""Run calls in threads: one per device, or one per group of CPU cores.

Threads suffice, since PyTorch releases Python's lock while it computes. They start faster than
processes, share the caller's model, and pass exceptions on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import cycle
from typing import TypeVar

import torch

_AHEAD = 2  # calls queued per thread; their arguments are in memory

_MOST = 4  # threads of a CPU; PyTorch uses the other cores within a batch

Result = TypeVar("Result")


def threads_of_cpu() -> int:
    """Number of threads on a CPU: one per core, at most four."""
    return min(_MOST, torch.get_num_threads())


class Threads:
    """Threads that run calls; a single one is the caller's thread.

    Args:
        count: number of threads.
        processor: whether they compute on the CPU; its cores are then divided among them.
    """

    def __init__(self, count: int, processor: bool) -> None:
        self.pools = [ThreadPoolExecutor(1) for _ in range(count)] if count > 1 else []
        if self.pools and processor:
            cores = torch.get_num_threads()
            for pool in self.pools:
                pool.submit(_take, max(1, cores // count)).result()
            torch.set_num_threads(cores)  # for this thread and those it starts later

    def results(self, calls: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Results of the calls, in order; call i runs in thread i modulo `count`.

        An exception of a call is raised here, after the running calls have finished.
        """
        if not self.pools:
            for call in calls:
                yield call()
            return
        begun: deque[Future[Result]] = deque()
        try:
            for pool, call in zip(cycle(self.pools), calls, strict=False):
                begun.append(pool.submit(call))
                if len(begun) == _AHEAD * len(self.pools):
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
            wait(begun)


def _take(cores: int) -> None:
    """Let this thread compute on `cores` cores."""
    torch.get_num_threads()  # first, or PyTorch would initialise the thread again later
    torch.set_num_threads(cores)
