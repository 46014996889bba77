"""Reading and writing a run directory. What is read is data: nothing in it is executed."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.files import load_tensors, read_json, read_yaml, refuse_links, save_tensors, write_json
from ..data.images import PNG_CHANNELS, save_png
from ..errors import SettingError
from ..settings.paths import path_of
from .places import CONFIG, CORNERS, LOCK, is_claimed
from .run_checks import check_agreement, check_summary


def write_run(
    directory: Path,
    corners: Tensor,
    initial: Tensor,
    target: Tensor,
    units: Tensor,
    summary: dict[str, Any],
) -> None:
    """Write a run; the corners' file comes last: its presence marks a complete run."""
    refuse_links(directory)
    images = directory / "images"
    if len(target) not in PNG_CHANNELS:
        warnings.warn(
            f"images of {len(target)} channels are no PNG, which has 1 or 3; the corners are in "
            f"{CORNERS}",
            stacklevel=2,
        )
    save_png(images / "initial.png", initial)
    save_png(images / "target.png", target)
    for entry, corner in zip(summary["corners"], corners, strict=True):
        save_png(images / f"corner_{entry['corner']}.png", corner)
    write_json(directory / "summary.json", summary)
    tensors = {"corners": corners, "initial": initial, "target": target, "units": units}
    save_tensors(directory / CORNERS, tensors)


@dataclass
class Run:
    """One run, or the runs of a sweep put together.

    Attributes:
        directory: where it was read from.
        corners: (K, C, H, W) float32 in [0, 1].
        initial, target: (C, H, W).
        units: (K,) int64.
        summary: what `summary.json` holds.
        config: the resolved settings, as plain dictionaries.
        jobs: the directories that were put together; of one run its own.
    """

    directory: Path
    corners: Tensor
    initial: Tensor
    target: Tensor
    units: Tensor
    summary: dict[str, Any]
    config: dict[str, Any]
    jobs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self.jobs = self.jobs or (self.directory,)


def load_run(directory: str | Path) -> Run:
    """Read a run directory, or put a sweep's jobs together.

    Raises:
        SettingError: when there are no corners, or a file is damaged or does not fit the others.
    """
    directory = path_of(directory)
    if (directory / CORNERS).exists():
        return _read_one(directory)
    jobs = sorted(path.parent for path in directory.glob(f"*/{CORNERS}"))
    if not jobs:
        raise SettingError(
            f"run={directory}: no corners there ({CORNERS} is missing, in it and in the folders "
            "below it); give the directory that train.py printed at its end"
        )
    return join(directory, [_read_one(job) for job in jobs])


def _read_one(directory: Path) -> Run:
    tensors = load_tensors(directory / CORNERS)
    summary = read_json(directory / "summary.json")
    try:
        corners, initial, target, units = (
            tensors[name] for name in ("corners", "initial", "target", "units")
        )
        entries = len(summary["corners"])
    except (KeyError, TypeError) as error:
        raise SettingError(f"run={directory}: {error} is missing; the run is incomplete") from None
    check_summary(directory, summary)
    if corners.ndim != 4 or initial.shape != corners.shape[1:] or target.shape != initial.shape:
        raise SettingError(
            f"run={directory}: corners {tuple(corners.shape)}, initial {tuple(initial.shape)} and "
            f"target {tuple(target.shape)} do not fit each other; make the run again"
        )
    if not len(corners) == len(units) == entries > 0:
        raise SettingError(f"run={directory}: corners, units and summary differ in number")
    _check_tensors(directory, corners, initial, target, units)
    config = _read_config(directory)
    check_agreement(directory, summary, config, units, len(target))
    return Run(directory, corners, initial, target, units, summary, config)


_MOST_CORNERS = 1000  # the midpoints of all edges alone take gigabytes then


def _check_tensors(
    directory: Path, corners: Tensor, initial: Tensor, target: Tensor, units: Tensor
) -> None:
    """Raise SettingError unless these are images in [0, 1], and units."""
    images = {"a corner": corners, "initial": initial, "target": target}
    for name, image in images.items():
        if image.dtype != torch.float32 or image.numel() == 0:
            raise SettingError(
                f"run={directory}: {name} must be a float32 image, is {image.dtype} "
                f"{tuple(image.shape)}; make the run again"
            )
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
            raise SettingError(f"run={directory}: {name} has pixels outside [0, 1] or NaN")
    if units.dtype != torch.int64 or units.ndim != 1 or units.min() < 0:
        raise SettingError(
            f"run={directory}: units must be (K,) int64 of at least 0, one per corner; make the "
            "run again"
        )
    if len(corners) > _MOST_CORNERS:
        raise SettingError(
            f"run={directory}: {len(corners)} corners make too many edges to be measured; at most "
            f"{_MOST_CORNERS} are"
        )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not path.exists():
        return {}
    config = read_yaml(path)
    return config if isinstance(config, dict) else {}


_SHARED = ("experiment", "classifier", "classifier_hash", "layer", "target_class")


def join(directory: Path, runs: list[Run]) -> Run:
    """One run of all the jobs' corners, in the corners' order."""
    first = runs[0]
    for run in runs[1:]:
        differing = [k for k in _SHARED if run.summary.get(k) != first.summary.get(k)]
        for name in ("initial", "target"):
            if not torch.equal(getattr(run, name), getattr(first, name)):
                differing.append(name)
        if differing:
            raise SettingError(
                f"run={directory}: {run.directory.name} and {first.directory.name} differ in "
                f"{', '.join(differing)}, so their corners make no hull; evaluate them one by one"
            )
    entries = [entry for run in runs for entry in run.summary["corners"]]
    numbers = [entry["corner"] for entry in entries]
    if len(set(numbers)) < len(numbers):
        raise SettingError(
            f"run={directory}: a corner occurs in several jobs, so these are several hulls; "
            "evaluate them one by one"
        )
    order = sorted(range(len(entries)), key=numbers.__getitem__)
    summary = first.summary | {
        "corners": [entries[i] for i in order],
        "converged": all(run.summary["converged"] for run in runs),
        "steps": max(run.summary["steps"] for run in runs),
        "seconds": sum(run.summary["seconds"] for run in runs),
        "seconds_total": sum(run.summary["seconds_total"] for run in runs),
    }
    corners = torch.cat([run.corners for run in runs])[order]
    units = torch.cat([run.units for run in runs])[order]
    jobs = tuple(run.directory for run in runs)
    return Run(directory, corners, first.initial, first.target, units, summary, first.config, jobs)


def hulls_below(directory: Path) -> tuple[list[Run], dict[str, str]]:
    """The hulls that a directory holds.

    Jobs beside each other that differ in their `corner` alone make one hull.

    Returns:
        The hulls, and why the other runs cannot be read, by their paths; a search that was killed
        is one of these.

    Raises:
        SettingError: when there is no run at all.
    """
    groups: dict[tuple[Path, str], list[Run]] = {}
    refused = _unfinished(directory)
    for path in sorted(directory.rglob(CORNERS), key=lambda path: (len(str(path)), str(path))):
        place = path.parent
        try:
            run = load_run(place)
        except SettingError as error:
            refused[str(place.relative_to(directory))] = str(error)
            continue
        settings = {key: value for key, value in run.config.items() if key != "corner"}
        key = json.dumps(settings, sort_keys=True, default=str)
        groups.setdefault((place.parent, key), []).append(run)
    if not groups and not refused:
        load_run(directory)  # says what is missing
    whole = not refused and len(groups) == 1
    hulls = []
    for (parent, _), runs in groups.items():
        place = directory if whole else parent / f"hull_of_{runs[0].directory.name}"
        try:
            if len(runs) > 1 and place.is_symlink():
                raise SettingError(f"{place}: is a link, and nothing is written through links")
            hulls += [join(place, runs)] if len(runs) > 1 else runs
        except SettingError:  # the same corner twice, or other images: one hull each
            hulls += runs
    return hulls, refused


def _unfinished(directory: Path) -> dict[str, str]:
    """The runs below that have begun and have no corners, by their paths."""
    # A job that a kill kept from writing its settings leaves only its lock.
    traces = [*directory.rglob(CONFIG), *directory.rglob(LOCK)]
    begun = sorted({path.parent for path in traces})
    names = [each.relative_to(directory) for each in begun if not any(each.rglob(CORNERS))]
    names = [name for name in names if name.parts and "wandb" not in name.parts]
    at_work = "no corners yet: a process is at work there; wait until it ends"
    ended = "no corners: the search was not finished; continue it with ckpt_path=last"
    return {str(name): at_work if is_claimed(directory / name) else ended for name in names}
