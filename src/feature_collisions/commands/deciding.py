"""The settings that determine a result, stored with it: only an equal problem reuses a result.

Paths, logging and the distribution of work are not among them. The classifier, the images and the
patches are identified by hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import JsonValue, RootModel
from torch import Tensor, nn

from ..data.datasets import DataSplit
from ..data.files import write_json
from ..errors import SettingError
from ..networks.weights import weights_hash
from ..patches.database import patch_images
from ..runs.directories import CORNERS
from ..runs.records import read_record
from ..runs.run import Run, load_run
from ..search.checkpoints import digest
from ..settings.train import Settings

SETTINGS = "settings.json"

_LEFT_OUT = {
    "name", "pairs", "networks", "initial", "target", "ckpt_path", "rates", "wandb",
    "corners_per_batch", "classifier.weights", "classifier.path", "data.root", "patches.root",
    "log.images_every", "log.checkpoint_every", "trainer.devices", "trainer.strategy",
}  # fmt: skip


class Deciding(RootModel[dict[str, JsonValue]]):
    """What decides the result of a search, by the settings' names: what `settings.json` holds."""


def hashes(settings: Settings, model: nn.Module, data: DataSplit) -> dict[str, str]:
    """Hashes of the classifier's weights, and of the images that patches come from, if any."""
    found = {"classifier.hash": weights_hash(model)}
    if settings.parameterisation == "composite":
        images = patch_images(settings.patches, settings.data, data.train)
        found["patches.images"] = images.fingerprint(torch.arange(len(images)))
    return found


def deciding(
    settings: Settings, hashes: Mapping[str, str], initial: Tensor, target: Tensor
) -> Deciding:
    """The settings that determine the result of a search, by name.

    Args:
        settings: of the run.
        hashes: of the classifier and the patches.
        initial: (C, H, W).
        target: (C, H, W).
    """
    images = {"initial.image": digest(initial), "target.image": digest(target)}
    return Deciding({**dict(_flat(asdict(settings), "")), **hashes, **images})


def _flat(values: Mapping[str, JsonValue], prefix: str) -> Iterator[tuple[str, JsonValue]]:
    for name, value in values.items():
        full = prefix + name
        if full in _LEFT_OUT:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{full}.")
        else:
            yield full, value


def keep(directory: Path, decisive: Deciding) -> None:
    """Write the settings that determine the result to `directory`."""
    write_json(directory / SETTINGS, decisive.root)


def differences_to(directory: Path, decisive: Deciding) -> list[str]:
    """What differs from the settings in `directory`: `loss.alpha was 1.0, is 100.0`.

    Raises:
        SettingError: if the stored settings are damaged.
    """
    path = directory / SETTINGS
    if not path.exists():
        return ["its settings were not saved"]
    now, before = decisive.root, read_record(Deciding, path, f"delete {directory}").root
    return [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def finished_run(directory: Path, decisive: Deciding, max_steps: int) -> Run | None:
    """The run in `directory`, if it is complete and was found with the same settings.

    A damaged run is searched again.

    Args:
        directory: of a run that is resumed.
        decisive: the settings that determine its result now.
        max_steps: of the search.

    Raises:
        SettingError: if it was found with other settings, and no step is left to take.
    """
    if not (directory / CORNERS).exists():
        return None
    try:
        run = load_run(directory)
    except SettingError as error:
        print(f"{error}: searching again", flush=True)
        return None
    differing = differences_to(directory, decisive)
    if not differing:
        print(f"{directory}: already finished with these settings; skipping it", flush=True)
        return run
    said = "; ".join(differing)
    if run.summary.steps >= max_steps:
        raise SettingError(
            "ckpt_path",
            "last",
            f"the run in {directory} is finished ({said}) after {run.summary.steps} steps",
            f"raise stop.max_steps={max_steps}, or leave ckpt_path out to start again in another "
            "directory",
        )
    print(f"{directory}: resuming with other settings ({said})", flush=True)
    return None
