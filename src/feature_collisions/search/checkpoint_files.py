"""How checkpoints are written and read: one file, by one process or by several that share corners.

The file is the same whoever wrote it, so that any number of processes goes on from it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from .together import Together

_BY_CORNER = ("state_dict", "optimizer_states")  # every tensor in them has a corner a row


class CheckpointFile(TorchCheckpointIO):
    """Writes to the path that it is given, and nowhere else.

    Lightning's own writes into the system's folder for temporary files first, where a kill leaves
    it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write `checkpoint`."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)


class JointCheckpointFile(CheckpointFile):
    """One file for all processes: the first one joins what each has of its corners.

    Args:
        together: this process's way to the others.
        rows: of each process, its corners' places among all.
    """

    def __init__(self, together: Together, rows: Sequence[Sequence[int]]) -> None:
        self.together, self.rows = together, rows

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write all processes' checkpoints as one; each of them must call this."""
        parts = self.together.gather(checkpoint)
        if parts:
            super().save_checkpoint(join_checkpoints(parts, self.rows), path)

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Read this process's part."""
        whole = super().load_checkpoint(path, *args, **options)
        own = list(self.rows[self.together.rank])
        return whole | {name: _rows_of(whole[name], own) for name in _BY_CORNER}


def join_checkpoints(
    parts: Sequence[dict[str, Any]], rows: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The checkpoint that one process with all the corners would have written.

    Args:
        parts: one a process.
        rows: of each, its corners' places among all.
    """
    counters = [part["collision"] for part in parts]
    units = [counter["problem"]["units"] for counter in counters]
    joint = counters[0] | {
        name: max(counter[name] for counter in counters) for name in ("seconds", "seconds_total")
    }
    joint["problem"] = joint["problem"] | {
        "units": join_rows([torch.tensor(each) for each in units], rows).tolist()
    }
    joined = {name: _joined([part[name] for part in parts], rows) for name in _BY_CORNER}
    return dict(parts[0]) | joined | {"collision": joint}


def join_rows(parts: Sequence[Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Put the rows of `parts` (k_r, ...) in their places: (K, ...)."""
    whole = parts[0].new_empty(sum(map(len, rows)), *parts[0].shape[1:])
    for part, places in zip(parts, rows, strict=True):
        whole[list(places)] = part
    return whole


def _joined(parts: Sequence[Any], rows: Sequence[Sequence[int]]) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], rows) for key in first}
    if isinstance(first, list):
        return [_joined(each, rows) for each in zip(*parts, strict=True)]
    return join_rows(parts, rows) if isinstance(first, Tensor) and first.ndim else first


def _rows_of(whole: Any, places: list[int]) -> Any:
    if isinstance(whole, dict):
        return {key: _rows_of(value, places) for key, value in whole.items()}
    if isinstance(whole, list):
        return [_rows_of(value, places) for value in whole]
    return whole[places] if isinstance(whole, Tensor) and whole.ndim else whole
