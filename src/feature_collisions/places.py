"""Where runs lie: the directory of this one, the checkpoint it continues from, the newest one."""

from pathlib import Path

from .errors import SettingError

CORNERS = "collision.safetensors"
CHECKPOINT = Path("checkpoints") / "last.ckpt"
CONFIG = "config.yaml"


def place_of_run(ckpt_path: str | None, output: Path, sweep: bool) -> tuple[Path, Path | None]:
    """The run's directory and the checkpoint to continue from, if any.

    Args:
        ckpt_path: a checkpoint's path; `last` for the newest run beside `output`, continued in
            place (from its start if it was killed before its first checkpoint).
        output: the directory Hydra made for this job.
        sweep: whether the job is one of a sweep's.

    Raises:
        SettingError: when there is nothing to continue, or a run would be overwritten.
    """
    if ckpt_path != "last":
        for name in (CORNERS, CHECKPOINT):
            if (output / name).exists():
                raise SettingError(
                    f"hydra.run.dir={output}: there is a run in it ({name}); continue it with "
                    "ckpt_path=last or choose another directory"
                )
        return output, Path(ckpt_path) if ckpt_path else None
    place = output if (output / CONFIG).exists() else _newest_beside(output, sweep)
    checkpoint = place / CHECKPOINT
    return place, checkpoint if checkpoint.exists() else None


def _newest_beside(output: Path, sweep: bool) -> Path:
    if sweep:
        raise SettingError(
            "ckpt_path=last: with -m the sweep must be named; add hydra.sweep.dir=DIR, the "
            "directory of the sweep to continue"
        )
    configs = sorted(output.parent.glob(f"*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise SettingError(
            f"ckpt_path=last: there is no earlier run in {output.parent}; leave ckpt_path out, or "
            "name the run's directory with hydra.run.dir=DIR"
        )
    remove_if_empty(output)  # Hydra made it for a new run, which this is not
    return configs[-1].parent


def remove_if_empty(directory: Path) -> None:
    """Remove the directory that Hydra made for a run that wrote nothing."""
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def newest_run(root: Path) -> Path:
    """The newest run with corners below `root`; for one of many pairs or of a sweep, all of them.

    Raises:
        SettingError: when there is none.
    """
    found = sorted(root.rglob(CORNERS), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SettingError(f"run: no run with corners below {root}/; run train.py, or give run=DIR")
    directory = found[-1].parent
    while any((directory.parent / name).exists() for name in ("pairs.json", "multirun.yaml")):
        directory = directory.parent
    return directory
