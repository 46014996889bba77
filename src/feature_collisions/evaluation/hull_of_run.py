"""The hull of a run directory, with its classifier and data; the run is untrusted and checked.

The run's settings can only choose known classifiers and data sets by name. The hash of the weights
decides which of several candidate networks the corners belong to.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..data.datasets import DataSplit, load_data
from ..data.devices import CPU, explain_out_of_memory
from ..errors import SettingError, first_line
from ..evaluation.run_checks import check_figures, check_units
from ..graph.graph import evaluating
from ..graph.logits import device_of
from ..hull.hull import Hull
from ..networks.classifiers import load_classifier
from ..networks.weights import weights_hash
from ..runs.records import impossible
from ..runs.run import Run
from ..search.summary import corner_records
from ..settings.evaluate import EvaluateSettings
from ..settings.output import check_output
from ..settings.train import FOLDERS, ClassifierSettings, DataSettings
from ..settings.trainer import devices_of


def hull_of(run: Run, settings: EvaluateSettings) -> tuple[Hull, DataSplit]:
    """The hull of a run, and its data (`classifier_of`)."""
    model, data = classifier_of(run, settings)
    return checked_hull(model, run, settings), data


def classifier_of(run: Run, settings: EvaluateSettings) -> tuple[nn.Module, DataSplit]:
    """Load the classifier and the data of a run.

    Args:
        run: the run.
        settings: current paths of data, weights and the user's classifier, if they differ from the
            run's; and `trainer` from `check_trainer`, with devices and precision. Empty: the CPU,
            in the model's precision.

    Raises:
        SettingError: if the corners were not found with this classifier.
    """
    wrong = partial(impossible, run.directory)
    data_settings, classifiers, seed = _named(run, settings)
    expected = run.summary.classifier_hash
    if not expected:
        raise wrong(
            "summary.json has no classifier_hash, so it is unknown which weights the "
            "corners belong to",
            "search again",
        )
    if data_settings.root and not Path(data_settings.root).is_dir():
        raise SettingError(
            "data.root",
            data_settings.root,
            "the run's data is missing",
            "give its folder with data.root=DIR",
        )
    # Nothing is downloaded to a folder that a run directory names.
    download = settings.data.root is not None or data_settings.root is None
    data = load_data(data_settings, download=download)
    if run.target.shape != data.test.size:
        raise wrong(
            f"its images are {tuple(run.target.shape)}, those of its data {data.test.size}",
            "restore the config.yaml of these corners",
        )
    model = _matching(run, classifiers, data, seed)
    place, double = _places(settings)[0], settings.trainer.get("precision") == "64-true"
    with explain_out_of_memory(place):
        model.to(place, torch.float64 if double else None)
    if run.config.channels_last:
        model.to(memory_format=torch.channels_last)
    return model, data


def _places(settings: EvaluateSettings) -> list[torch.device]:
    """The devices among which a hull's points are divided."""
    return devices_of(settings.trainer) if settings.trainer else [CPU]


def _matching(
    run: Run, classifiers: Sequence[ClassifierSettings], data: DataSplit, seed: int
) -> nn.Module:
    """The first classifier with the weights that the corners were found with.

    Raises:
        SettingError: if there is none, with the reason of the first one.
    """
    expected, first = run.summary.classifier_hash, None
    for classifier in classifiers:
        try:
            model = load_classifier(classifier, data, seed)
        except SettingError as error:
            first = first or error
            continue
        if (found := weights_hash(model)) == expected:
            return model
        network = ", or the network with classifier.path=MODULE:NAME" if classifier.path else ""
        first = first or impossible(
            run.directory,
            f"its corners were found with other weights (hash {expected}, here {found})",
            f"give the file with classifier.weights=FILE{network} (a survey's as a list of them)",
        )
    assert first
    raise first


def _named(
    run: Run, settings: EvaluateSettings
) -> tuple[DataSettings, list[ClassifierSettings], int]:
    """The data, the candidate classifiers, and the seed.

    The user's settings take precedence over the run's.
    """
    place, named, seed = run.config.data, run.config.classifier, run.config.seed
    if place is None or named is None or seed is None:
        raise impossible(
            run.directory,
            "config.yaml does not say which classifier and data were used",
            "evaluate a hull that was made in Python with Hull.sample",
        )
    data = DataSettings(place.name, settings.data.root or place.root, place.size, place.resize)
    output, library = run.summary.output, named.library
    classifier = ClassifierSettings(
        named.name, named.weights, named.layer, None, named.train, library, output
    )
    data.validate()
    classifier.validate()
    name = Path(named.weights or "").name
    files = sorted(settings.classifier.files, key=lambda file: Path(file).name != name)
    networks = [*(replace(classifier, weights=file, train=False) for file in files), classifier]
    paths: list[str] = []
    if library in FOLDERS and named.path:
        paths = [*settings.classifier.paths, named.path]
    elif classifier.name == "file":
        paths = _own_code(run, named.path, settings.classifier.path)
    if paths:
        networks = [replace(network, path=path) for path in paths for network in networks]
    return data, networks, seed


def _own_code(run: Run, path: str | None, given: str | list[str] | None) -> list[str]:
    """The user's names that match this run; a run directory names no code to execute.

    Args:
        run: for messages.
        path: MODULE:NAME in the run.
        given: the user's names, each with or without ::FILE: one for all networks, or a list that
            contains the run's.
    """
    wrong = partial(impossible, run.directory)
    named = given if isinstance(given, list) else [given] if given else []
    found = [each for each in named if each.partition("::")[0] == path]
    found = found or ([given] if isinstance(given, str) else [])
    if found:
        return found
    if named:
        raise wrong(
            f"its classifier was {path}, which is not in classifier.path=[{','.join(named)}]",
            "add it",
        )
    raise wrong(
        "its classifier is a user's code",
        "name it with classifier.path=MODULE:NAME, or those of a survey with "
        "'classifier.path=[MODULE:NAME,MODULE:NAME]'",
    )


def checked_hull(model: nn.Module, run: Run, settings: EvaluateSettings) -> Hull:
    """The hull, after the classifier has confirmed the summary.

    Args:
        model: from `classifier_of`.
        run: the run.
        settings: `trainer` has the devices.
    """
    layer = run.summary.layer
    if run.config.channels_last:
        run.corners = run.corners.contiguous(memory_format=torch.channels_last)
    try:
        with explain_out_of_memory(device_of(model)):
            if settings.output.threshold is not None:
                check_output(run.summary.output, settings.output.threshold)
                run.summary = run.summary | {"threshold": settings.output.threshold}
            held = run.corners, run.initial, run.target, run.units, run.summary
            hull = Hull(model, layer, *held, others=_places(settings)[1:])
    except RuntimeError as error:
        raise impossible(
            run.directory,
            f"images of {tuple(run.target.shape)} do not pass through "
            f"{run.summary.classifier} ({first_line(error)})",
        ) from None
    if hull.summary.push == "unit":
        check_units(run.directory, run.units, _numbers(run), hull.features.seen_by.cpu())
    images = torch.stack([hull.initial, hull.target, *hull.corners])
    with torch.inference_mode(), evaluating(model):
        parts = [hull.observe(part) for part in images.split(hull.evaluator.batch_size)]
    logits, preactivation = (torch.cat(each) for each in zip(*parts, strict=True))
    said = hull.output.of_images(logits[2:])
    found = corner_records(run.summary.numbers, hull.units, preactivation[2:], hull.features, said)
    check_figures(run, found, float(hull.features.features.norm()), logits)
    return hull


def _numbers(run: Run) -> list[int] | None:
    """The corners' indices, if they count the target's inactive units in flat order."""
    flat = run.config.corner_order == "flat"
    return run.summary.numbers if flat and run.summary.objective != "random" else None
