"""Atomic writes, and bounded reads of untrusted files, which are never executed."""

import json
import math
import os
import pickle
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import SettingError
from .memory import free_bytes

_TEXT = 2**25  # bytes of a JSON file; a summary of 4096 corners has 2 million
_SETTINGS = 2**18  # bytes of a config.yaml; the longest have about 10,000
_DEPTH, _LONG = 20, 4096  # nesting depth; characters of one value
_LARGEST = 2**63  # no integer of a run needs more than 64 bits


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`. A kill at any moment leaves the old file or the new one.

    A link at `path` is replaced, not followed. For linked folders see `refuse_links`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # x: never follows an existing link
            file.write(content)
        os.replace(temporary, path)
    except OSError as error:  # the user knows `path`, not the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomically(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity, which are not JSON, are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def refuse_links(directory: Path) -> None:
    """Raise SettingError if a folder below a run's directory is a link.

    Call it before writing to the directory. The directory itself may be a link. W&B's links in
    `wandb` are allowed: they name its newest run, and W&B replaces them.
    """
    for place, folders, _ in os.walk(directory):
        for name in folders:
            path = Path(place, name)
            if not (path.parent.name == "wandb" and name == "latest-run"):
                refuse_link(path)


def refuse_link(path: Path) -> None:
    """Raise SettingError if `path`, a folder about to be written to, is a link."""
    if path.is_symlink():
        raise SettingError(
            path, None, "is a link to another folder", "put a folder in its place, or remove it"
        )


@contextmanager
def opened(path: str | Path, most: int | None = None) -> Iterator[BinaryIO]:
    """Open an untrusted file; it must be a regular file of limited size.

    Args:
        path: the file.
        most: largest size in bytes; None for the free memory.

    Raises:
        SettingError: if it is a pipe, a device or a folder, or too large.
        OSError: if it cannot be opened.
    """
    # Without the flag a pipe without a writer would block for ever.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode):
            raise SettingError(path, None, f"must be a regular file, is {_kind(state.st_mode)}")
        bound, rule = most, "is more than such a file may have"
        if bound is None:
            bound, rule = free_bytes(torch.device("cpu")), "is more than the free memory holds"
        if bound is not None and state.st_size > bound:
            raise SettingError(path, None, f"its size, {state.st_size:,} bytes, {rule} ({bound:,})")
    except BaseException:
        os.close(number)
        raise
    with os.fdopen(number, "rb") as file:
        yield file


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a device")


def read_text(path: str | Path, most: int | None = _TEXT) -> str:
    """Read UTF-8 text without its byte-order mark; `most` is as for `opened`.

    Raises:
        SettingError: if it cannot be opened or is not text.
    """
    try:
        with opened(path, most) as file:
            return file.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise SettingError(path, None, "the file is missing") from None
    except OSError as error:
        raise SettingError(path, None, f"cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise SettingError(path, None, f"is not UTF-8 text (at byte {error.start})") from None


def read_json(path: Path) -> Any:
    """Read JSON with finite numbers and integers of at most 64 bits.

    Raises:
        SettingError: if the file is missing or damaged.
    """
    text = read_text(path)
    try:
        value = json.loads(text, parse_constant=_no_number)
        _check_plain(value)
    except RecursionError:
        raise SettingError(path, None, "not a JSON file (nested too deep)") from None
    except ValueError as error:
        raise SettingError(path, None, f"not a JSON file ({error})") from None
    return value


def read_yaml(path: Path) -> Any:
    """Read the resolved settings of a run; `${...}` stays text.

    Raises:
        SettingError: if the file is missing or damaged, or has an alias, which could expand a few
            lines without limit.
    """
    text = read_text(path, _SETTINGS)
    try:
        _check_events(text)
        value = yaml.load(text, Loader=_LOADER)
        _check_plain(value)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(path, None, f"not a settings file ({reason})") from None
    return value


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_events(text: str) -> None:
    """Raise ValueError for YAML that is slow to load; no run's settings contain it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        reasons = {
            "an alias": isinstance(event, yaml.AliasEvent),
            "a tag": getattr(event, "tag", None) is not None,
            "nested too deep": depth > _DEPTH,
            "a value too long": len(getattr(event, "value", "")) > _LONG,
        }
        for reason, found in reasons.items():
            if found:
                raise ValueError(f"line {event.start_mark.line + 1}: {reason}")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_plain(value: Any) -> None:
    """Raise ValueError for a value that this program never writes."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r:.40} is no text")
            _check_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            _no_number(str(value))
    elif isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise ValueError("an integer of more than 64 bits")
    elif isinstance(value, str):
        value.encode()  # half a surrogate pair can be read but not written
    elif value is not None:
        raise ValueError(f"{type(value).__name__} is no setting")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors as safetensors, atomically."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(content))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file that fits into memory; it cannot contain code.

    Raises:
        SettingError: if the file is missing, truncated or of another format.
    """
    try:
        with opened(path):
            return load_file(path)
    except FileNotFoundError:
        raise SettingError(path, None, "the file is missing") from None
    except (SafetensorError, OSError) as error:
        raise SettingError(path, None, f"a damaged safetensors file ({error})") from None
    except (KeyError, ValueError, RuntimeError, OverflowError) as error:  # of types unknown here
        raise SettingError(
            path, None, f"its tensors cannot be read ({type(error).__name__}: {error})"
        ) from None


DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError,
           AttributeError, IndexError, AssertionError, OverflowError, MemoryError)  # fmt: skip
"""Errors of `load_saved` for a damaged file."""


def load_saved(
    path: Path, mmap: bool = False, stands_for: Callable[[str], Callable[..., Any]] | None = None
) -> Any:
    """Read a file of `torch.save` to the CPU: only tensors and plain values, no code.

    Args:
        path: the file.
        mmap: whether tensors stay in the file until they are used.
        stands_for: gives a class in place of each class or function that the file names; None:
            a file that names any is damaged.

    Raises:
        SettingError: if it is not a regular file, or does not fit into memory when unpacked.
        OSError: if it cannot be opened.
        Exception: one of `DAMAGED`.
    """
    with opened(path) as file:
        names: list[str] = []
        if zipfile.is_zipfile(file):
            try:
                whole = sum(member.file_size for member in zipfile.ZipFile(file).infolist())
            except zipfile.BadZipFile as error:
                raise ValueError(str(error)) from None
            free = free_bytes(torch.device("cpu"))
            if free is not None and whole > free:
                raise SettingError(
                    path,
                    None,
                    f"unpacks to {whole:,} bytes, which is more than the free memory holds "
                    f"({free:,})",
                )
            if stands_for:
                names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # torch.load takes any file named *.safetensors for one.
        named = mmap and path.suffix != ".safetensors"
        file.seek(0)
        source: Any = path if named else file
        replaced: list[Any] = [(stands_for(name), name) for name in names if stands_for]
        with torch.serialization.safe_globals(replaced):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=named)
