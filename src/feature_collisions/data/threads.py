"""Calls shared out over threads: one for each device, or for some of a processor's cores.

Threads and no processes: points have nothing to say to each other, PyTorch lets go of Python's lock
while it computes, and what fails in a thread is raised where its result is asked for. There is no
process to start, to tell what the caller's model is, or to miss.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import cycle
from typing import TypeVar

import torch

_AHEAD = 2  # calls that wait in each thread; what they are given is in memory

_MOST = 4  # of a CPU; within a batch PyTorch goes on to use the other cores well

Result = TypeVar("Result")


def threads_of_cpu() -> int:
    """How many threads to compute in where there is no other device: a core each, up to four."""
    return min(_MOST, torch.get_num_threads())


class Threads:
    """Threads that share calls out; where there is one only, it is the caller's own.

    Args:
        count: how many.
        processor: whether they compute on the CPU, whose cores are then shared out, too.
    """

    def __init__(self, count: int, processor: bool) -> None:
        self.pools = [ThreadPoolExecutor(1) for _ in range(count)] if count > 1 else []
        if self.pools and processor:
            cores = torch.get_num_threads()
            for pool in self.pools:
                pool.submit(_take, max(1, cores // count)).result()
            torch.set_num_threads(cores)  # it is this thread's own, but also that of later ones

    def results(self, calls: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """What the calls give, in their order; call i is made in thread i modulo their number.

        Whatever a call raises is raised here, once those that have begun are over.
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
    """Have what this thread computes run on so many cores."""
    torch.get_num_threads()  # first: when asked later, PyTorch would set a new thread up afresh
    torch.set_num_threads(cores)
