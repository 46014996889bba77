"""How the processes of one search speak to each other: through pipes, with a limit on waiting.

Pipes end with their processes, so that a kill leaves nothing behind in /dev/shm or /tmp, as the
semaphores of a barrier would. What is sent is read as data.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

import torch

from ..errors import CollisionError

_PATIENCE = 1800.0  # seconds, as torch.distributed has it: a look may come after a compilation


@dataclass(frozen=True)
class Together:
    """One process's end of the pipes between the first process and each of the others.

    Args:
        rank: which process this is.
        pipes: of the first process one to each other, in their order; of another its own.
        patience: seconds to wait for an answer.
    """

    rank: int
    pipes: Sequence[Connection]
    patience: float = _PATIENCE

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value` in the first process, by rank; nothing in the others.

        Args:
            value: tensors and plain data.

        Raises:
            CollisionError: when a process does not answer.
        """
        if self.rank:
            self._receive(0)  # so that nobody is stuck in sending to one who does not listen
            self._send(0, value)
            return []
        for place in range(len(self.pipes)):
            self._send(place, None)
        return [value, *(self._receive(place) for place in range(len(self.pipes)))]

    def agree(self, vote: bool) -> bool:
        """Whether every process votes for it; each is told.

        Raises:
            CollisionError: when a process does not answer.
        """
        votes = self.gather(vote)
        if self.rank:
            return bool(self._receive(0))
        for place in range(len(self.pipes)):
            self._send(place, all(votes))
        return all(votes)

    def _send(self, place: int, value: Any) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        try:
            self.pipes[place].send_bytes(buffer.getbuffer())
        except OSError:  # the other end is closed
            raise self._silent(place, "has ended") from None

    def _receive(self, place: int) -> Any:
        pipe = self.pipes[place]
        try:
            if not pipe.poll(self.patience):
                raise self._silent(place, f"has not answered for {self.patience:.0f} s")
            message = pipe.recv_bytes()
        except (EOFError, ConnectionError):
            raise self._silent(place, "has ended") from None
        return torch.load(io.BytesIO(message), map_location="cpu", weights_only=True)

    def _silent(self, place: int, what: str) -> CollisionError:
        return CollisionError(
            f"trainer.devices: process {0 if self.rank else place + 1} {what}; all were ended. "
            "Checkpoints written before are kept: go on with ckpt_path=last, with "
            "trainer.devices=1 if it happens again"
        )


def pipes_of(context: SpawnContext, count: int) -> list[list[Connection]]:
    """The pipes for `count` processes, by rank, as `Together` takes them."""
    pairs = [context.Pipe() for _ in range(count - 1)]
    return [[first for first, _ in pairs], *([other] for _, other in pairs)]
