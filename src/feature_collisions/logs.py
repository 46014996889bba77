"""Weights & Biases: one run a job, grouped by sweep."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from .config import WandbSettings
from .files import write_text
from .hull import Hull
from .images import to_uint8


@contextmanager
def wandb_logger(
    settings: WandbSettings, directory: Path, name: str, group: str, config: dict[str, Any]
) -> Iterator[WandbLogger | None]:
    """A logger for the time of one job, or None when `wandb.mode=disabled`.

    The run's id is kept in the directory, so that a continued job goes on in the same W&B run.
    It is always finished, for the jobs of a sweep share a process.
    """
    if settings.mode == "disabled":
        yield None
        return
    import wandb

    run = wandb.init(
        project=settings.project,
        dir=directory,
        id=_run_id(directory),
        resume="allow",
        name=name,
        group=group,
        job_type="train",
        mode=settings.mode,  # type: ignore[arg-type]
        config=config,
        settings=wandb.Settings(silent=True),
    )
    failed = True
    try:
        yield WandbLogger(experiment=run)
        failed = False
    finally:
        run.finish(exit_code=int(failed))


def _run_id(directory: Path) -> str:
    path = directory / "wandb" / "id"
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text()


def log_hull(logger: WandbLogger, hull: Hull) -> None:
    """Add the end of the search to a W&B run: the image grid, the table, the summary."""
    entries = hull.summary["corners"]
    logger.log_image(
        "images",
        [to_uint8(image) for image in (hull.initial, *hull.corners, hull.target)],
        caption=["initial", *(f"corner {entry['corner']}" for entry in entries), "target"],
    )
    logger.log_table(
        "corners", columns=list(entries[0]), data=[list(entry.values()) for entry in entries]
    )
    logger.experiment.summary.update({k: v for k, v in hull.summary.items() if k != "corners"})
