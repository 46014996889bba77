"""Checkpoints: their compatibility, writing and reading.

A checkpoint is one file with all corners. It does not depend on the number of processes, so any
number can resume from it. It is read as data.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from pydantic import JsonValue
from torch import Tensor, nn

from ..data.files import DAMAGED, load_saved, write_atomically
from ..errors import SettingError
from ..networks.weights import weights_hash
from ..settings.search import OptimizerSettings


def problem_of(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    units: Tensor,
    optimizer: OptimizerSettings,
) -> dict[str, JsonValue]:
    """The properties in which a checkpoint must agree; loss weights and limits may change."""
    return {
        "classifier": weights_hash(model),
        "layer": layer,
        "initial": f"image {digest(initial)}",
        "target": f"image {digest(target)}",
        "units": units.tolist(),
        "optimizer": optimizer.name,
    }


def digest(tensor: Tensor) -> str:
    """Hash of a tensor's values in eight hexadecimal digits."""
    return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()[:8]


def check_checkpoint(path: Path, problem: Mapping[str, JsonValue]) -> None:
    """Raise SettingError unless `path` is a checkpoint of this problem; no code in it is executed.

    Args:
        path: the checkpoint.
        problem: from `problem_of`.
    """
    try:
        saved = load_saved(path, mmap=True)
        needed = ("problem", "step", "seconds", "seconds_total")
        found, *_ = [saved["collision"][name] for name in needed]
    except FileNotFoundError:
        raise SettingError("ckpt_path", path, "there is no such file") from None
    except (*DAMAGED, OSError):
        raise SettingError(
            "ckpt_path",
            path,
            "not a whole checkpoint of feature_collisions",
            "give another, or leave ckpt_path out",
        ) from None
    differing = [
        f"{key} was {found.get(key)}, is {value}"
        for key, value in problem.items()
        if found.get(key) != value
    ]
    if differing:
        raise SettingError(
            "ckpt_path",
            path,
            f"a checkpoint of another experiment ({'; '.join(differing)})",
            "continue it with its own settings, or leave ckpt_path out",
        )


class CheckpointFile(TorchCheckpointIO):
    """Writes a temporary file and renames it, so a kill leaves a complete checkpoint.

    Lightning's own writes into the system's folder for temporary files, where a kill leaves it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write `checkpoint`."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getbuffer())


BY_CORNER = ("state_dict", "optimizer_states")  # every tensor in them has a row per corner


def map_rows(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor in the entries BY_CORNER of a checkpoint."""
    if isinstance(value, dict):
        return {key: map_rows(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [map_rows(each, change) for each in value]
    return change(value) if isinstance(value, Tensor) and value.ndim else value
