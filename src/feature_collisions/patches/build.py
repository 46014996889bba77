"""Build the patch database in the cache: one append-only file, renamed when complete."""

import contextlib
import errno
import itertools
import math
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from pydantic import JsonValue
from torch import Tensor
from tqdm import tqdm

from ..data.files import write_json, write_text
from ..data.image_set import ImageSet
from ..data.images import quiet_decoders
from ..errors import SettingError
from ..runs.records import Count, Record, read_record
from ..settings.patches import PatchSettings

_BATCH = 64  # images read at once


Key = Mapping[str, JsonValue]
"""What a database is made of: settings and files."""


class _Built(Record):
    """`database.json`: what a complete database is made of, and the rows of its images."""

    key: dict[str, JsonValue]
    rows: list[Count]


def locked(folder: Path) -> AbstractContextManager[Any]:
    """Hold a folder's lock, a system lock that ends with the process.

    A read-only folder needs no lock.
    """
    lock = FileLock(folder / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print("another process is building the patch database; waiting for it", flush=True)
        return lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return contextlib.nullcontext()


def reduced(image: Tensor, reduction: int) -> Tensor:
    """Mean over `reduction` x `reduction` pixels: (C, size, size) in [0, 1] to (C, s, s) uint8.

    Cutting a window and reducing it commute.
    """
    return (F.avg_pool2d(image, reduction) * 255).round().to(torch.uint8)


def reduced_images(
    folder: Path,
    key: Key,
    settings: PatchSettings,
    images: ImageSet,
    drawn: Tensor,
) -> tuple[Tensor, Tensor]:
    """Map the reduced images at `drawn` from `folder`; build them there first if necessary.

    An interrupted build is resumed, a damaged file is built again. A second process waits. Images
    that cannot be read are skipped, with one warning and a list in `broken.txt`.

    Returns:
        (M, C, s, s) uint8, memory-mapped, and the indices (M,) of those that could be read.

    Raises:
        SettingError: if no image can be read, or the disk is too small.
    """
    side = settings.size // settings.reduction
    shape = images.size[0], side, side
    with locked(folder):
        rows = _built(folder, key, math.prod(shape))
        if rows is None:
            rows = _build(folder, key, settings, images, drawn)
    count = len(rows) * math.prod(shape)
    mapped = torch.from_file(str(folder / "images.u8"), size=count, dtype=torch.uint8)
    return mapped.view(-1, *shape), drawn[rows]


def _built(folder: Path, key: Key, one: int) -> list[int] | None:
    """Rows of the images in `folder`; None unless it has a complete database."""
    path = folder / "images.u8"
    if not path.exists():
        return None
    with contextlib.suppress(SettingError):
        built = read_record(_Built, folder / "database.json")
        if built.key == key and path.stat().st_size == len(built.rows) * one:
            return built.rows
    warnings.warn(
        f"{path}: is incomplete, or does not match database.json; the patch "
        "database is built again",
        stacklevel=4,
    )
    path.unlink()
    return None


def _build(
    folder: Path,
    key: Key,
    settings: PatchSettings,
    images: ImageSet,
    drawn: Tensor,
) -> list[int]:
    """Append every image to `images.part`, rename it `images.u8`, and return the rows read."""
    part = folder / "images.part"
    one = images.size[0] * (settings.size // settings.reduction) ** 2
    try:
        with part.open("ab") as file:
            done, broken = _progress(file, folder, one)
            _check_space(folder, (len(drawn) - done) * one)
            _append(file, folder, settings, images, drawn, done, broken)
            os.fsync(file.fileno())
        rows = [row for row in range(len(drawn)) if row not in broken]
        write_json(folder / "database.json", {"key": key, "rows": rows})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SettingError(
            part,
            None,
            f"the disk is full after {part.stat().st_size // one} of {len(drawn)} images",
            "make room and start again to resume; or delete the file and lower patches.fraction",
        ) from None
    if not rows:
        part.unlink()
        raise SettingError("patches", None, "none of the chosen images can be read", broken[0])
    if broken:
        _report(broken, len(drawn), folder)
    os.replace(part, folder / "images.u8")
    return rows


def _progress(file: IO[bytes], folder: Path, one: int) -> tuple[int, dict[int, str]]:
    """Number of images that an interrupted build has finished, and which of them are broken.

    A broken image is listed before later images are written, so the file's length determines the
    progress. Half an image is cut off.
    """
    whole = file.tell() // one
    file.truncate(whole * one)
    listed = dict[int, str]()
    if whole and (folder / "broken.txt").exists():
        lines = (folder / "broken.txt").read_text().splitlines()
        listed = {int(row): reason for row, reason in (line.split("\t", 1) for line in lines)}
    done = 0
    while whole:
        whole -= done not in listed
        done += 1
    return done, {row: reason for row, reason in listed.items() if row < done}


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SettingError(
            folder,
            None,
            f"the patch database takes {needed / 1000000000.0:.2f} GB more, "
            f"{free / 1000000000.0:.2f} GB are free",
            "make room, lower patches.fraction, or set XDG_CACHE_HOME to another disk",
        )


def _append(
    file: IO[bytes],
    folder: Path,
    settings: PatchSettings,
    images: ImageSet,
    drawn: Tensor,
    done: int,
    broken: dict[int, str],
) -> None:
    """Write the images from number `done`, in order; add unreadable ones to `broken`."""

    def read(index: int) -> bytes | str:
        try:
            image = images.at_side(index, settings.size)
        except SettingError as error:
            return str(error)
        return reduced(image, settings.reduction).numpy().tobytes()

    rows = iter(range(done, len(drawn)))
    progress = tqdm(
        total=len(drawn), initial=done, desc="Reducing images", unit="image", mininterval=0.5
    )
    with quiet_decoders(), ThreadPoolExecutor(os.cpu_count()) as threads, progress:
        while batch := list(itertools.islice(rows, _BATCH)):
            found = list(threads.map(read, drawn[batch].tolist()))
            unread = {row: it for row, it in zip(batch, found, strict=True) if isinstance(it, str)}
            if unread:
                broken.update(unread)
                _list(broken, folder)
            file.write(b"".join(it for it in found if isinstance(it, bytes)))
            file.flush()
            progress.update(len(batch))


def _list(broken: dict[int, str], folder: Path) -> None:
    lines = (f"{row}\t{' '.join(reason.split())}\n" for row, reason in broken.items())
    write_text(folder / "broken.txt", "".join(lines))


def _report(broken: dict[int, str], drawn: int, folder: Path) -> None:
    warnings.warn(
        f"{len(broken)} of {drawn} images for patches cannot be read and are skipped; "
        f"{folder / 'broken.txt'} lists them. The first: {next(iter(broken.values()))}",
        stacklevel=5,
    )
