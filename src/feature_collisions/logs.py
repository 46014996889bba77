"""Weights & Biases: one run a job, grouped by sweep. An evaluation goes on in the job's own run."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger

from .config import WandbSettings
from .errors import SettingError
from .files import read_json, write_json
from .hull import Hull
from .images import to_uint8
from .runs import Run

if TYPE_CHECKING:
    import wandb

IDENTITY = Path("wandb") / "run.json"


@dataclass(frozen=True)
class Identity:
    """What a W&B run is called; kept in `wandb/run.json`, so that it can be gone on with."""

    id: str
    project: str
    name: str
    group: str
    job_type: str


def new_id() -> str:
    """An id that no other W&B run has."""
    return secrets.token_hex(4)


def known(path: Path) -> Identity | None:
    """The identity kept at `path`, or None where there is none.

    Raises:
        SettingError: when the file holds something else; it may be a stranger's.
    """
    if not path.exists():
        return None
    found = read_json(path)
    if not _is_identity(found):
        raise SettingError(
            f"{path}: not what train.py writes; delete it, or leave W&B out with "
            "wandb.mode=disabled"
        )
    return Identity(**found)


def _is_identity(found: Any) -> bool:
    names = {each.name for each in fields(Identity)}
    if not (isinstance(found, dict) and found.keys() == names):
        return False
    if not all(isinstance(value, str) for value in found.values()):
        return False
    if not all(value.isprintable() for value in found.values()):
        return False
    project = found["project"].strip()  # no path, which could lead into another account
    return bool(re.fullmatch(r"[\w-]+", found["id"]) and re.fullmatch(r"[^/\\#?%:]+", project))


def kept(path: Path, identity: Identity) -> Identity:
    """The identity kept at `path`; where there is none, `identity`, which is kept from now on."""
    found = known(path)
    if found is None:
        write_json(path, asdict(identity))
    return found or identity


@contextmanager
def wandb_run(
    mode: str, directory: Path, identity: Identity, config: dict[str, Any] | None = None
) -> "Iterator[wandb.Run]":
    """A W&B run, new or gone on with, whose files lie in `directory`.

    It is always finished, for the jobs of a sweep share a process.

    Raises:
        SettingError: when W&B refuses it.
    """
    import wandb

    try:
        run = wandb.init(
            project=identity.project,
            dir=directory.absolute(),  # W&B's own process may have been started elsewhere
            id=identity.id,
            resume="allow",
            name=identity.name,
            group=identity.group,
            job_type=identity.job_type,
            mode=mode,  # type: ignore[arg-type]
            config=config,
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        raise SettingError(
            f"wandb.mode={mode}: {str(error).splitlines()[0]}; log in with `wandb login`, or write "
            "files alone with wandb.mode=offline"
        ) from None
    failed = True
    try:
        yield run
        failed = False
    finally:
        run.finish(exit_code=int(failed))


@contextmanager
def wandb_logger(
    settings: WandbSettings, directory: Path, name: str, group: str, config: dict[str, Any]
) -> Iterator[WandbLogger | None]:
    """A logger for the time of one job, or None when `wandb.mode=disabled`.

    A continued job goes on in the same W&B run.
    """
    if settings.mode == "disabled":
        yield None
        return
    fresh = Identity(new_id(), settings.project, name, group, "train")
    with wandb_run(settings.mode, directory, kept(directory / IDENTITY, fresh), config) as run:
        yield StepLogger(experiment=run)


class StepLogger(WandbLogger):
    """Counts W&B's steps as the search does, so that curves and sliders say the search's steps."""

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log at `step`; what a continued job repeats is left as it is."""
        self.experiment.log(dict(metrics), step=step)


def log_hull(run: "wandb.Run", hull: Hull | Run) -> None:
    """Add the end of the search to a W&B run: the image grid, the table, the summary."""
    import wandb

    entries = hull.summary["corners"]
    names = ["initial", *(f"corner {entry['corner']}" for entry in entries), "target"]
    images = [hull.initial, *hull.corners, hull.target]
    run.log(
        {
            "images": [
                wandb.Image(to_uint8(image), caption=name)
                for image, name in zip(images, names, strict=True)
            ],
            "corners": wandb.Table(list(entries[0]), [list(entry.values()) for entry in entries]),
        },
        step=max(run.step, hull.summary["steps"]),
    )
    run.summary.update({k: v for k, v in hull.summary.items() if k != "corners"})
