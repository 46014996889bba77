"""Read and write run directories. No code in them is executed."""

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.files import load_tensors, read_yaml, refuse_links, save_tensors, write_json
from ..data.images import PNG_CHANNELS, save_png
from ..errors import SettingError
from ..paths import path_of
from ..settings.train import UNTRAINED
from .directories import CONFIG, CORNERS, LOCK, is_claimed
from .records import Config, Summary, impossible, read_record


class Corners:
    """Corners with their images and summary; base of runs and hulls.

    Attributes:
        corners: (K, C, H, W) float32 in [0, 1].
        initial, target: (C, H, W).
        units: (K,) int64, the unit that each corner pushes down.
        summary: content of `summary.json`.
    """

    corners: Tensor
    initial: Tensor
    target: Tensor
    units: Tensor
    summary: Summary

    def save(self, directory: str | Path) -> None:
        """Write corners, summary and images to a run directory.

        The file of corners is written last: a directory that has it is complete.
        """
        directory = path_of(directory)
        refuse_links(directory)
        images = directory / "images"
        if len(self.target) not in PNG_CHANNELS:
            warnings.warn(
                f"images of {len(self.target)} channels are no PNG, which has 1 or 3; the corners "
                f"are in {CORNERS}",
                stacklevel=2,
            )
        save_png(images / "initial.png", self.initial)
        save_png(images / "target.png", self.target)
        for number, corner in zip(self.summary.numbers, self.corners, strict=True):
            save_png(images / f"corner_{number}.png", corner)
        write_json(directory / "summary.json", self.summary.entries())
        save_tensors(directory / CORNERS, {name: getattr(self, name) for name in _TENSORS})


_TENSORS = ("corners", "initial", "target", "units")


@dataclass
class Run(Corners):
    """One run, or the combined runs of a sweep.

    Attributes:
        directory: its path.
        corners, initial, target, units, summary: as in `Corners`.
        config: the resolved settings.
        jobs: the combined directories; for one run, its own.
    """

    directory: Path
    corners: Tensor
    initial: Tensor
    target: Tensor
    units: Tensor
    summary: Summary
    config: Config
    jobs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        self.jobs = self.jobs or (self.directory,)

    def __repr__(self) -> str:
        """One line, without pixels."""
        count, *shape = self.corners.shape
        return (
            f"Run({str(self.directory)!r}, {count} corners {tuple(shape)}, "
            f"{self.summary.classifier}, layer {self.summary.layer!r})"
        )


def load_run(directory: str | Path) -> Run:
    """Read a run directory, or combine the jobs of a sweep.

    Raises:
        SettingError: if there are no corners, or a file is damaged or contradicts others.
    """
    directory = path_of(directory)
    if not directory.is_dir():
        raise impossible(directory, "there is no such folder", "give one that train.py printed")
    if (directory / CORNERS).exists():
        return _read_one(directory)
    jobs = sorted(path.parent for path in directory.glob(f"*/{CORNERS}"))
    if not jobs:
        raise impossible(
            directory,
            f"no corners there ({CORNERS} is missing, in it and in the folders below it)",
            "give the directory that train.py printed",
        )
    return join(directory, [_read_one(job) for job in jobs])


def _read_one(directory: Path) -> Run:
    tensors = load_tensors(directory / CORNERS)
    summary = read_record(Summary, directory / "summary.json")
    if missing := [name for name in _TENSORS if name not in tensors]:
        raise impossible(directory, f"{missing[0]!r} is missing; the run is incomplete")
    path, config = directory / CONFIG, Config()
    if path.exists():
        config = read_record(Config, path, "restore the file of these corners", read_yaml)
    corners, initial, target, units = (tensors[name] for name in _TENSORS)
    run = Run(directory, corners, initial, target, units, summary, config)
    for problem in _problems(run):
        raise impossible(directory, problem)
    return run


_MOST_CORNERS = 1000  # midpoints of all edges already take gigabytes


def _problems(run: Run) -> Iterator[str]:
    """Errors in a run's tensors, and contradictions to its summary or settings."""
    corners, initial, target, units, summary = (
        run.corners, run.initial, run.target, run.units, run.summary
    )  # fmt: skip
    if corners.ndim != 4 or initial.shape != corners.shape[1:] or target.shape != initial.shape:
        yield (
            f"corners {tuple(corners.shape)}, initial {tuple(initial.shape)} and target "
            f"{tuple(target.shape)} do not fit each other"
        )
    least = 0 if summary.push == "unit" else -1
    if units.dtype != torch.int64 or units.ndim != 1 or (units < least).any():
        yield "units must be (K,) int64, one per corner, -1 where none is pushed"
    if not len(corners) == len(units) == len(summary.corners) > 0:
        yield "corners, units and summary differ in number"
    for name, image in {"a corner": corners, "initial": initial, "target": target}.items():
        if image.dtype != torch.float32 or image.numel() == 0:
            yield f"{name} must be a float32 image, is {image.dtype} {tuple(image.shape)}"
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
            yield f"{name} has pixels outside [0, 1] or NaN"
    if len(corners) > _MOST_CORNERS:
        yield f"{len(corners)} corners make too many edges to be measured; at most {_MOST_CORNERS}"
    if len(set(summary.numbers)) < len(summary.numbers):
        yield "a corner occurs twice in summary.json"
    if [entry.unit for entry in summary.corners] != units.tolist():
        yield "the units of the corners and of summary.json differ"
    scale = 1 if len(target) == 1 else 255
    if summary.distance_scale != scale:
        yield (
            f"distance_scale={summary.distance_scale} in summary.json: must be {scale} for images "
            f"of {len(target)} channels"
        )
    named = run.config.classifier
    said = {"experiment": run.config.name, "classifier": named and named.name,
            "layer": named and named.layer}  # fmt: skip
    for key, setting in said.items():
        own = key == "classifier" and setting == "file"  # reports name the user's code
        if not (own or setting is None or setting == summary[key].removesuffix(UNTRAINED)):
            yield (
                f"summary.json is of {key} {summary[key]}, config.yaml of {setting}; restore the "
                "file that belongs to these corners"
            )


_SHARED = ("experiment", "classifier", "classifier_hash", "layer", "target_class")


def join(directory: Path, runs: list[Run]) -> Run:
    """Combine jobs into one run, with corners in order."""
    first = runs[0]
    for run in runs[1:]:
        differing = [k for k in _SHARED if getattr(run.summary, k) != getattr(first.summary, k)]
        for name in ("initial", "target"):
            if not torch.equal(getattr(run, name), getattr(first, name)):
                differing.append(name)
        if differing:
            raise impossible(
                directory,
                f"{run.directory.name} and {first.directory.name} differ in "
                f"{', '.join(differing)}, so their corners do not form a hull",
                "evaluate them one by one",
            )
    entries = [entry for run in runs for entry in run.summary.corners]
    numbers = [entry.corner for entry in entries]
    if len(set(numbers)) < len(numbers):
        raise impossible(
            directory,
            "a corner occurs in several jobs, so these are several hulls",
            "evaluate them one by one",
        )
    order = sorted(range(len(entries)), key=numbers.__getitem__)
    errors = [run.summary.corner_feature_relative_max for run in runs]
    known = [error for error in errors if error is not None]
    corners = torch.cat([run.corners for run in runs])[order]
    distances = torch.pdist(corners.flatten(1)) * first.summary.distance_scale
    summary = first.summary | {
        "corner_feature_relative_max": max(known) if len(known) == len(errors) else None,
        "corner_distance_mean": float(distances.mean()),
        "corners": [entries[i] for i in order],
        "converged": all(run.summary.converged for run in runs),
        "steps": max(run.summary.steps for run in runs),
        "seconds": sum(run.summary.seconds for run in runs),
        "seconds_total": sum(run.summary.seconds_total for run in runs),
    }
    units = torch.cat([run.units for run in runs])[order]
    jobs = tuple(run.directory for run in runs)
    return Run(directory, corners, first.initial, first.target, units, summary, first.config, jobs)


def hulls_below(directory: Path) -> tuple[list[Run], dict[str, str]]:
    """The hulls in a directory.

    Jobs of a sweep that differ only in `corner` are combined into one hull.

    Returns:
        The hulls; and by path, the reasons why other runs cannot be read, for example if the
        search was killed.

    Raises:
        SettingError: if there is no run.
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
        load_run(directory)  # raises, with what is missing
    whole = not refused and len(groups) == 1
    hulls = []
    for (parent, _), runs in groups.items():
        place = directory if whole else parent / f"hull_of_{runs[0].directory.name}"
        try:
            if len(runs) > 1 and place.is_symlink():
                raise SettingError(place, None, "is a link, and links are not written to")
            hulls += [join(place, runs)] if len(runs) > 1 else runs
        except SettingError:  # the same corner twice, or other images: one hull each
            hulls += runs
    return hulls, refused


def _unfinished(directory: Path) -> dict[str, str]:
    """Runs in the directory without corners, by path, with the reason."""
    # A job that was killed before it wrote its settings has only a lock.
    traces = [*directory.rglob(CONFIG), *directory.rglob(LOCK)]
    begun = sorted({path.parent for path in traces})
    names = [each.relative_to(directory) for each in begun if not any(each.rglob(CORNERS))]
    names = [name for name in names if name.parts and "wandb" not in name.parts]
    at_work = "no corners yet: a process is using the directory; wait until it ends"
    ended = "no corners: the search did not finish; resume it with ckpt_path=last"
    return {str(name): at_work if is_claimed(directory / name) else ended for name in names}
