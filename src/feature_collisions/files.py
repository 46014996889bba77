"""Files that are always whole: written under a temporary name and renamed, read as plain data."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .errors import SettingError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`; a kill at any moment leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:  # the user knows `path`, not the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, for they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        SettingError: when the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise SettingError(f"{path}: the file is missing") from None
    except ValueError as error:
        raise SettingError(f"{path}: not a JSON file ({error})") from None


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(content))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; nothing in it can execute.

    Raises:
        SettingError: when the file is missing, truncated or of another format.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise SettingError(f"{path}: the file is missing") from None
    except (SafetensorError, OSError) as error:
        raise SettingError(f"{path}: not a whole safetensors file ({error})") from None
