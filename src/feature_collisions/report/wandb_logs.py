"""Weights & Biases: one run per job, grouped by sweep. An evaluation resumes its job's run."""

import os
import secrets
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from pydantic import ConfigDict, Field, JsonValue

from ..data.files import refuse_link, write_json
from ..data.images import to_uint8
from ..errors import SettingError, first_line
from ..hull.hull import Hull
from ..hull.statistics import OUTCOMES
from ..runs.evaluation import Evaluation, Sample
from ..runs.records import Corner, Record, Text, read_record
from ..runs.rows import Row
from ..runs.run import Run
from ..settings.train import Settings, WandbSettings
from ..simplex import SAMPLERS
from .findings import POINTS, SETS
from .words import words_of

if TYPE_CHECKING:
    import wandb

IDENTITY = Path("wandb") / "run.json"
_PATIENCE = 30.0  # seconds to wait for W&B's server; its client waits 90


class Identity(Record):
    """Identity of a W&B run; stored in `wandb/run.json` to resume it."""

    model_config = ConfigDict(strict=True, extra="forbid")
    id: Annotated[Text, Field(pattern=r"^[\w-]+$")]
    # No path, which could lead into another account.
    project: Annotated[Text, Field(pattern=r"^[^/\\#?%:]*[^/\\#?%:\s][^/\\#?%:]*$")]
    name: Text
    group: Text
    job_type: Text


def new_id() -> str:
    """A unique id of a W&B run."""
    return secrets.token_hex(4)


def read_identity(path: Path) -> Identity | None:
    """The identity stored at `path`; None if there is none.

    Raises:
        SettingError: if the file, which is untrusted, has other content.
    """
    remedy = f"delete {path}, or leave W&B out with wandb.mode=disabled"
    return read_record(Identity, path, remedy) if path.exists() else None


def keep_identity(path: Path, identity: Identity) -> Identity:
    """The identity stored at `path`; if there is none, `identity` is stored."""
    found = read_identity(path)
    if found is None:
        write_json(path, identity.entries())
    return found or identity


def use_account(entity: str | None) -> None:
    """Set the W&B account of this process to `wandb.entity`; None changes nothing."""
    if entity:
        os.environ["WANDB_ENTITY"] = entity


def check_login(mode: str) -> None:
    """Check the key with W&B's server, before anything is computed or written.

    Raises:
        SettingError: if the key is wrong, or the server does not answer.
    """
    if mode != "online":
        return
    import wandb

    try:
        found = wandb.login(verify=True, prompt=sys.stdin.isatty())
    except (wandb.Error, ValueError, OSError) as error:
        raise SettingError(_refused(mode, error)) from None
    if not found:
        raise SettingError(_refused(mode, "no API key is configured"))


def _refused(mode: str, error: object) -> str:
    return (
        f"wandb.mode={mode}: {first_line(error)}; log in with `wandb login`, or write only files "
        "with wandb.mode=offline"
    )


@contextmanager
def wandb_run(
    mode: str,
    directory: Path,
    identity: Identity,
    config: dict[str, JsonValue] | None = None,
    tags: Sequence[str] | None = None,
) -> "Iterator[wandb.Run]":
    """Open a W&B run, new or resumed, with files in `directory`.

    Lightning's logger cannot open one for an evaluation. The run is always finished, because the
    jobs of a sweep share a process. W&B must not run git: an untrusted `.git/config` around
    `directory` can name commands. So git and the saving of code are disabled.

    Raises:
        SettingError: if W&B refuses it, or its folder is a link.
    """
    import wandb

    refuse_link(directory / "wandb")
    try:
        run = wandb.init(
            project=identity.project,
            dir=directory.absolute(),  # W&B's process may have another working directory
            id=identity.id,
            resume="allow",
            name=identity.name,
            group=identity.group,
            job_type=identity.job_type,
            mode=mode,  # type: ignore[arg-type]
            config=config,
            tags=tags,
            settings=wandb.Settings(
                silent=True, init_timeout=_PATIENCE, disable_git=True, save_code=False
            ),
        )
    except (wandb.Error, OSError) as error:
        raise SettingError(_refused(mode, error)) from None
    failed = True
    try:
        yield run
        failed = False
    finally:
        with failures_as_warnings("finish"):
            run.finish(exit_code=int(failed))


@contextmanager
def failures_as_warnings(what: str) -> Iterator[None]:
    """Turn a failure of W&B into a warning, so that no result is lost."""
    try:
        yield
    except Exception as error:  # whatever it is
        warnings.warn(
            f"W&B failed to {what} ({type(error).__name__}: {first_line(error)}); the run's "
            "files are whole",
            stacklevel=4,
        )


@contextmanager
def wandb_logger(
    settings: WandbSettings, directory: Path, name: str, group: str, config: dict[str, JsonValue]
) -> Iterator[WandbLogger | None]:
    """A logger for one job; None with `wandb.mode=disabled`.

    A resumed job resumes its W&B run. If W&B's server fails although it accepted the key, the job
    only writes files.
    """
    if settings.mode == "disabled":
        yield None
        return
    fresh = Identity(
        id=new_id(), project=settings.project, name=name, group=group, job_type="train"
    )
    identity = keep_identity(directory / IDENTITY, fresh)
    tags = settings.tags or None  # None keeps the tags of a resumed run
    with ExitStack() as stack:
        try:
            run = stack.enter_context(wandb_run(settings.mode, directory, identity, config, tags))
        except SettingError as error:
            if settings.mode == "offline":
                raise
            warnings.warn(f"{error}. Continuing with wandb.mode=offline", stacklevel=3)
            run = stack.enter_context(wandb_run("offline", directory, identity, config, tags))
        yield StepLogger(experiment=run)


_LEFT_OUT = ("experiment=", "initial=", "target=", "corner=", "pairs=", "networks=", "ckpt_path=",
             "data.root=", "classifier.weights=", "wandb.")  # fmt: skip
_LONGEST = 128  # characters of a run's name in W&B


def run_name(settings: Settings, overrides: Sequence[str]) -> str:
    """Name of a job's W&B run, different for each job of a sweep: images, corners, overrides.

    Args:
        settings: of the job.
        overrides: of its command line, NAME=VALUE.
    """
    if settings.wandb.name:
        return settings.wandb.name
    said = [each for each in overrides if not each.lstrip("+~").startswith(_LEFT_OUT)]
    name = f"{settings.name} {settings.initial} → {settings.target} corner {settings.corner}"
    return " ".join([name, *said])[:_LONGEST]


class StepLogger(WandbLogger):
    """Uses the search's steps as W&B's, so curves and sliders show them."""

    _silent = False  # since W&B failed

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log at `step`; steps that a resumed job repeats are not overwritten."""
        if self._silent:
            return
        self._silent = True
        with failures_as_warnings("log"):
            self.experiment.log(dict(metrics), step=step)
            self._silent = False


def log_hull(run: "wandb.Run", hull: Hull | Run) -> None:
    """Add the result of the search to a W&B run: image grid, table and summary."""
    import wandb

    summary = hull.summary
    names = ["initial", *(f"corner {number}" for number in summary.numbers), "target"]
    entries = summary.corners
    columns = [name for name in Corner.model_fields if any(name in entry for entry in entries)]
    images = [hull.initial, *hull.corners, hull.target]
    run.log(
        {
            "images": [
                wandb.Image(to_uint8(image), caption=name)
                for image, name in zip(images, names, strict=True)
            ],
            "corners": wandb.Table(
                list(columns), [[entry.get(name) for name in columns] for entry in entries]
            ),
        },
        step=max(run.step, summary.steps),
    )
    run.summary.update(summary.figures())


_TABLE = Path("wandb") / "table.json"


def log_evaluation(
    mode: str, run: Run, result: Evaluation, class_names: Sequence[str]
) -> str | None:
    """Add an evaluation to W&B.

    Args:
        mode: `online`, `offline` or `disabled`, set by the user, never by the run.
        run: the corners; nothing is logged unless one of their jobs is in W&B.
        result: content of `evaluation.json`.
        class_names: one per class.

    Returns:
        The name of the W&B run, or None.

    Raises:
        SettingError: if `wandb/run.json` is damaged, or W&B refuses.
    """
    first = None if mode == "disabled" else _first(run.jobs)
    if first is None:
        return None
    identity, config = first, None
    if len(run.jobs) > 1:
        corners = run.summary.numbers
        name = f"{run.summary.experiment} corners {', '.join(map(str, corners))}"
        identity = _own(run.directory / IDENTITY, first, name)
        config = run.config.entries() | {"corner": corners}
    with wandb_run(mode, run.directory, identity, config) as logged:
        if config:  # images and summary are not logged yet
            log_hull(logged, run)
        logged.log(
            _media(run.directory, result, class_names),
            step=max(logged.step, run.summary.steps + 1),
        )
        logged.summary.update(run.summary.figures() | hull_figures(result))
    return identity.name


_FIGURES = {
    "outcome": "outcome", "accuracy": "dirichlet.accuracy",
    "accuracy_lower_95": "dirichlet.accuracy_lower_95", "probability": "dirichlet.probability_mean",
    "cosine_min": "dirichlet.cosine_min", "same": "dirichlet.same",
    "feature_error": "feature_relative_max", "worst_feature_error": "worst_feature_relative",
    "relative_size": "relative_size",
    "corner_distance": "corner_distance_mean", "mean_width": "mean_width",
    "judge_size": "judge.size", "judge_initial_kept": "judge.initial_kept",
    "worst_case": "worst_case_probability", "worst_cosine": "worst_case_cosine",
    "worst_case_correct": "worst_case_correct", "ball_accuracy": "ball_accuracy",
    "edges_held": "edges.share_held", "edges_proved": "edges.share_proved",
    "class_proved": "proof.class.share_proved", "class_scale_proved": "proof.class.scale_proved",
    "class_relative_size_proved": "proof.class.relative_size_proved",
    "collision_scale_proved": "proof.collision.scale_proved",
    "collision_relative_size_proved": "proof.collision.relative_size_proved",
}  # fmt: skip
"""Figures for comparing runs, and their paths in `evaluation.json`."""
_OF_PICTURES = {"worst_case": "worst_point", "worst_features": "worst_features"}


def hull_figures(result: Evaluation) -> dict[str, str | float]:
    """Figures for comparing runs: size, accuracy, worst case; those that were measured."""
    figures = {name: result.at(path) for name, path in _FIGURES.items()}
    figures |= {f"pooled_size_{n}": size for n, size in result.pooled_sizes.items()}
    return {f"hull/{name}": value for name, value in figures.items() if value is not None}


def _media(
    directory: Path, result: Evaluation, class_names: Sequence[str]
) -> "dict[str, wandb.Table | wandb.Histogram | wandb.Image]":
    """The table, the histograms and the worst point."""
    import wandb

    words = words_of(result.output, class_names)
    names = [name for name in POINTS if name in result]
    figures = (key for key in Sample.model_fields if not key.endswith("_histogram"))
    columns = [key for key in figures if any(key in result[name] for name in names)]
    rows = [[name, *(result[name].get(key) for key in columns)] for name in names]
    rows += [[name, *(result.get(f"{name}_{key}") for key in columns)]
             for name in SETS if f"{name}_samples" in result]  # fmt: skip
    media: dict[str, wandb.Table | wandb.Histogram | wandb.Image]
    media = {"evaluation": wandb.Table(["points", *columns], rows)}
    for sampler in (sampler for sampler in SAMPLERS if sampler in result):
        counts = result[sampler][f"{words.figure}_histogram"]
        edges = np.linspace(0, 1, len(counts) + 1)
        media[f"hull/{words.figure}_{sampler}"] = wandb.Histogram(np_histogram=(counts, edges))
    for picture, caption in words.of_worst_points(result).items():
        path = directory / "images" / f"{picture}.png"
        if caption and path.exists():
            name = _OF_PICTURES[picture]
            media[f"hull/{name}"] = wandb.Image(str(path), caption=caption)
    return media


def log_rows(
    mode: str,
    directory: Path,
    runs: Sequence[Run],
    rows: Sequence[Row],
    columns: Sequence[str],
    table: str,
    picture: str,
) -> str | None:
    """Log a table over many hulls, counts of outcomes and a picture in a separate run.

    Args:
        mode: as for `log_evaluation`.
        directory: which holds the runs, and the picture where there is one.
        runs: the hulls; where no job of theirs has been in W&B, nothing is logged.
        rows: one per hull or refused run.
        columns: the rows' entries.
        table: what it is called.
        picture: the name of a PNG file in the directory.

    Returns:
        The name of the W&B run, or None.
    """
    first = None if mode == "disabled" else _first([job for run in runs for job in run.jobs])
    if first is None:
        return None
    import wandb

    identity = _own(directory / _TABLE, first, f"{directory.name}: {len(rows)} runs")
    outcomes = [row.outcome for row in rows]
    counts = {f"{table}/{name.replace(' ', '_')}": outcomes.count(name) for name in OUTCOMES}
    cells = [[row.at(name) for name in columns] for row in rows]
    logs = wandb.Table(list(columns), cells, allow_mixed_types=True)
    place = directory / f"{picture}.png"
    pictures = {picture: wandb.Image(str(place))} if place.exists() else {}
    with wandb_run(mode, directory, identity) as logged:
        logged.log({table: logs, **pictures})
        logged.summary.update(counts | {f"{table}/evaluated": len(rows)})
    return identity.name


def _first(jobs: Sequence[Path]) -> Identity | None:
    """The first stored identity of the jobs."""
    found = (read_identity(job / IDENTITY) for job in jobs)
    return next((identity for identity in found if identity), None)


def _own(path: Path, job: Identity, name: str) -> Identity:
    """Identity of a separate run next to the jobs', stored for the next evaluation."""
    fresh = job | {"id": new_id(), "name": name[:128], "job_type": "evaluation"}
    return keep_identity(path, fresh)
