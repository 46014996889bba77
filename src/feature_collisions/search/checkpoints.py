"""Checkpoints: what one must agree on to be continued from, and how it is written and read.

One file, by one process or by several that share corners: it is the same whoever wrote it, so that
any number of processes goes on from it. It is read as data.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from ..data.files import DAMAGED, load_saved
from ..errors import SettingError
from ..networks.weights import weights_hash
from ..settings.search import OptimizerSettings
from .together import Together


def problem_of(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    units: Tensor,
    optimizer: OptimizerSettings,
) -> dict[str, Any]:
    """What a checkpoint must agree on; loss weights and limits may change on the way."""
    return {
        "classifier": weights_hash(model),
        "layer": layer,
        "initial": f"image {digest(initial)}",
        "target": f"image {digest(target)}",
        "units": units.tolist(),
        "optimizer": optimizer.name,
    }


def digest(tensor: Tensor) -> str:
    """Eight hexadecimal digits of a tensor's values."""
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()[:8]


def check_checkpoint(path: Path, problem: dict[str, Any]) -> None:
    """Raise SettingError unless `path` is a checkpoint of this problem; nothing in it is executed.

    Args:
        path: the checkpoint.
        problem: what it must agree on.
    """
    try:
        saved = load_saved(path, mmap=True)
        needed = ("problem", "step", "seconds", "seconds_total")
        found, *_ = [saved["collision"][name] for name in needed]
    except FileNotFoundError:
        raise SettingError(f"ckpt_path={path}: there is no such file") from None
    except (*DAMAGED, OSError):
        raise SettingError(
            f"ckpt_path={path}: not a whole checkpoint of feature_collisions; give another, or "
            "leave ckpt_path out to start anew"
        ) from None
    differing = [
        f"{key} was {found.get(key)}, is {value}"
        for key, value in problem.items()
        if found.get(key) != value
    ]
    if differing:
        raise SettingError(
            f"ckpt_path={path}: a checkpoint of another experiment ({'; '.join(differing)}); "
            "continue it with its own settings, or leave ckpt_path out to start anew"
        )


_BY_CORNER = ("state_dict", "optimizer_states")  # every tensor in them has one row per corner


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
