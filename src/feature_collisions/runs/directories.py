"""Paths of runs: this run's directory, the checkpoint it resumes, the newest run."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import SettingError

CORNERS = "collision.safetensors"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
CONFIG = "config.yaml"
LOCK = ".lock"


@contextmanager
def claimed(directory: Path, setting: str) -> Iterator[None]:
    """Lock a run directory within the block; this process may already hold the lock.

    It is a system lock, so it ends with a killed process.

    Args:
        directory: created if missing.
        setting: name of the directory's setting, for messages.

    Raises:
        SettingError: if another process holds the lock.
        OSError: if the directory is not writable.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise SettingError(path, None, "must be a regular file", "delete it")
    lock = FileLock(path, is_singleton=True)  # the owner may lock it again
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise SettingError(
            setting,
            directory,
            "another process is using it",
            f"wait until it ends, or name another directory with {setting}=DIR",
        ) from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(directory)) from error
    try:
        yield
    finally:
        lock.release()


def place_of_run(
    ckpt_path: str | None, output: Path, sweep: bool, named: bool = False
) -> tuple[Path, Path | None]:
    """The run's directory, and the checkpoint to resume, if any.

    Args:
        ckpt_path: a checkpoint's path; `last` for the newest run next to `output`, resumed in place
            (from its start if it has no checkpoint).
        output: the directory that Hydra made for this job.
        sweep: whether the job is part of a sweep.
        named: whether the command names the directory of the sweep or run; a job that never started
            begins there.

    Raises:
        SettingError: if there is nothing to resume, or a run would be overwritten.
    """
    if ckpt_path != "last":
        for name in (CORNERS, CHECKPOINT):
            if (output / name).exists():
                setting = f"hydra.sweep.dir={output.parent}" if sweep else f"hydra.run.dir={output}"
                where = f"job {output.name}" if sweep else "it"
                with claimed(output, "hydra.sweep.dir" if sweep else "hydra.run.dir"):
                    raise SettingError(
                        setting,
                        None,
                        f"there is a run in {where} ({name})",
                        "continue it with ckpt_path=last or choose another directory",
                    )
        return output, Path(ckpt_path) if ckpt_path else None
    begun = named or (output / CONFIG).exists()
    place = output if begun else _newest_beside(output, sweep)
    checkpoint = place / CHECKPOINT
    return place, checkpoint if checkpoint.exists() else None


def _newest_beside(output: Path, sweep: bool) -> Path:
    wrong = partial(SettingError, "ckpt_path", "last")
    if sweep:
        raise wrong(
            "with -m the sweep must be named",
            "add hydra.sweep.dir=DIR, the directory of the sweep to continue",
        )
    configs = sorted(output.parent.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise wrong(
            f"there is no earlier run in {output.parent}",
            "leave ckpt_path out, or name the run's directory with hydra.run.dir=DIR",
        )
    remove_if_empty(output)  # Hydra made it for a new run, but this one is resumed
    newest = configs[-1]
    if begun := _without_settings(output.parent, newest.stat().st_mtime):
        instead = f"continue {newest.parent} with hydra.run.dir={newest.parent}"
        if is_claimed(begun):
            raise wrong(
                f"another process is using the newest run, {begun}",
                f"wait until it ends, or {instead}",
            )
        raise wrong(
            f"the newest run, {begun}, was killed before it wrote its settings, so there is "
            "nothing to continue",
            f"delete it and start it again, or {instead}",
        )
    return newest.parent


def _without_settings(root: Path, since: float) -> Path | None:
    """The newest directory below `root` with only a lock, if it is newer than `since`."""
    locks = [
        path
        for path in root.glob(f"*/{LOCK}")
        if path.stat().st_mtime > since and {e.name for e in path.parent.iterdir()} <= _AT_FIRST
    ]
    return max(locks, key=lambda path: path.stat().st_mtime).parent if locks else None


_AT_FIRST = {LOCK, ".hydra"}  # files of a job before it writes its settings


def is_claimed(directory: Path) -> bool:
    """Whether this or another process has locked a run directory."""
    path = directory / LOCK
    if path.is_symlink() or not path.is_file():  # untrusted; opening it could change a file
        return False
    lock = FileLock(path, is_singleton=True)
    if lock.is_locked:
        return True
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # another user's directory
        return False


def remove_if_empty(directory: Path) -> None:
    """Remove a directory that Hydra made if its run wrote nothing and no process has locked it."""
    if not directory.is_dir() or any(each.name != LOCK for each in directory.iterdir()):
        return
    try:
        with claimed(directory, "hydra.run.dir"):
            (directory / LOCK).unlink()
    except SettingError:
        return
    directory.rmdir()


def newest_run(root: Path) -> Path:
    """The newest run with corners below `root`; if it is part of a sweep or of many pairs, all.

    Raises:
        SettingError: if there is none.
    """
    found = sorted(root.rglob(CORNERS), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SettingError(
            "run",
            None,
            f"no run with corners below {root}/",
            "run train.py, or give run=DIR, the folder that hydra.run.dir or hydra.sweep.dir named",
        )
    directory = found[-1].parent
    if begun := _without_settings(directory.parent, found[-1].stat().st_mtime):
        why = "is still running" if is_claimed(begun) else "was killed before it saved anything"
        warnings.warn(f"run: the newest, {begun}, {why}; taking {directory}", stacklevel=2)
    while any((directory.parent / name).exists() for name in ("pairs.json", "multirun.yaml")):
        directory = directory.parent
    return directory
