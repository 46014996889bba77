"""The settings that determine a result, stored with it: only an equal problem reuses a result.

Paths, logging and the distribution of work are not among them. The classifier, the images and the
patches are identified by hashes.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.datasets import DataSplit
from ..data.files import read_json, write_json
from ..errors import SettingError
from ..networks.weights import weights_hash
from ..patches.database import patch_images
from ..runs.directories import CORNERS
from ..runs.run import Run, load_run
from ..search.checkpoints import digest
from ..settings.train import Settings

SETTINGS = "settings.json"

_LEFT_OUT = {
    "name", "pairs", "networks", "initial", "target", "ckpt_path", "rates", "wandb",
    "corners_per_batch", "classifier.weights", "classifier.path", "data.root", "patches.root",
    "log.images_every", "log.checkpoint_every", "trainer.devices", "trainer.strategy",
}  # fmt: skip


def hashes(settings: Settings, model: nn.Module, data: DataSplit) -> dict[str, Any]:
    """Hashes of the classifier's weights, and of the images that patches come from, if any."""
    found = {"classifier.hash": weights_hash(model)}
    if settings.parameterisation == "composite":
        images = patch_images(settings.patches, settings.data, data.train)
        found["patches.images"] = images.fingerprint(torch.arange(len(images)))
    return found


def deciding(
    settings: Settings, hashes: dict[str, Any], initial: Tensor, target: Tensor
) -> dict[str, Any]:
    """The settings that determine the result of a search, by name.

    Args:
        settings: of the run.
        hashes: of the classifier and the patches.
        initial: (C, H, W).
        target: (C, H, W).
    """
    images = {"initial.image": digest(initial), "target.image": digest(target)}
    return dict(_flat(asdict(settings), "")) | hashes | images


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        full = prefix + name
        if full in _LEFT_OUT:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{full}.")
        else:
            yield full, value


def keep(directory: Path, decisive: dict[str, Any]) -> None:
    """Write the settings that determine the result to `directory`."""
    write_json(directory / SETTINGS, decisive)


def differences_to(directory: Path, decisive: dict[str, Any]) -> list[str]:
    """Differences to the settings in `directory`, such as `loss.alpha was 1.0, is 100.0`.

    Raises:
        SettingError: if the stored settings are damaged.
    """
    path = directory / SETTINGS
    if not path.exists():
        return ["its settings were not saved"]
    kept = read_json(path)
    if not isinstance(kept, dict):
        raise SettingError(path, None, "not what train.py writes", f"delete {directory}")
    return [
        f"{name} was {kept.get(name)}, is {decisive.get(name)}"
        for name in dict.fromkeys([*kept, *decisive])
        if kept.get(name) != decisive.get(name)
    ]


def finished_run(directory: Path, decisive: dict[str, Any], max_steps: int) -> Run | None:
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
