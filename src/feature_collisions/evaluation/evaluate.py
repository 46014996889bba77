"""What `evaluation.json` holds: each measurement is one function of the hull."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.caches import cache_path
from ..data.datasets import DataSplit, load_data
from ..data.devices import CPU, sparing
from ..data.files import write_json
from ..data.images import save_png
from ..errors import SettingError
from ..hull.hull import SAMPLERS, Hull
from ..hull.run import Run
from ..hull.run_checks import check_figures, check_units
from ..networks.classifiers import is_remembered, load_classifier
from ..networks.graph import evaluating
from ..networks.logits import device_of
from ..networks.weights import weights_hash
from ..proofs.edges import prove_edges
from ..proofs.faces import prove_faces
from ..proofs.linear_program import depth
from ..proofs.whole_hull import prove_class, prove_collision
from ..search.summary import summary_of
from ..settings.evaluate import EvaluateSettings
from ..settings.train import ClassifierSettings, DataSettings
from ..settings.trainer import MIXED, first_device
from .baselines import balls, plain, simplices
from .differences import differences
from .macro import macro_entries

EVALUATION = "evaluation.json"


def hull_of(
    run: Run,
    root: str | None,
    weights: str | None,
    path: str | None = None,
    trainer: dict[str, Any] | None = None,
) -> tuple[Hull, DataSplit]:
    """The hull of a run that was read, with its classifier and its data (`classifier_of`)."""
    model, data = classifier_of(run, root, weights, path, trainer)
    return checked_hull(model, run), data


def classifier_of(
    run: Run,
    root: str | None,
    weights: str | None,
    path: str | None = None,
    trainer: dict[str, Any] | None = None,
) -> tuple[torch.nn.Module, DataSplit]:
    """The classifier and the data of a run that was read.

    Args:
        run: the run; its settings choose among the known classifiers and data sets by name, and
            can name nothing else.
        root: where the data lies now, or None where the run says.
        weights: where the weights lie now, likewise.
        path: MODULE:NAME of a classifier of the user's own. Importing is executing, and the run may
            be a stranger's: the run's own is used where this user has named it before, and its
            file is the same.
        trainer: arguments of Lightning's Trainer that say where the hull is measured and in which
            precision; None: on the CPU in the model's own.

    Raises:
        SettingError: when the classifier is not the one the corners were found with.
    """
    try:
        named_data, named = run.config["data"], run.config["classifier"]
        data_settings = DataSettings(
            str(named_data["name"]),
            root or named_data["root"],
            None if (size := named_data.get("size", 224)) is None else int(size),
            str(named_data.get("resize", DataSettings.resize)),
        )
        settings = ClassifierSettings(
            str(named["name"]),
            weights or named["weights"],
            str(named["layer"]),
            path,
            weights is None and named.get("train") is True,
            str(named.get("library", ClassifierSettings.library)),
        )
        seed = int(run.config["seed"])
        paths = (named_data["root"], named["weights"])
        if not (0 <= seed < 2**63 and all(isinstance(each, str | None) for each in paths)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise SettingError(
            f"run={run.directory}: config.yaml does not say which classifier and data were used; "
            "evaluate a hull that was made in Python with Hull.sample"
        ) from None
    data_settings.check()
    settings.check()
    expected = run.summary.get("classifier_hash")
    if not expected:
        raise SettingError(
            f"run={run.directory}: summary.json has no classifier_hash, so nothing tells which "
            "weights the corners belong to; make the run again"
        )
    if data_settings.root and not Path(data_settings.root).is_dir():
        raise SettingError(  # nothing is downloaded to a place that a run directory names
            f"data.root={data_settings.root}: the run's data is not there; say where it lies now "
            "with data.root=DIR"
        )
    own = named.get("path")
    if settings.name == "file" and path is None and isinstance(own, str) and is_remembered(own):
        settings.path = own
    if settings.name == "file" and settings.path is None:
        raise SettingError(
            f"run={run.directory}: its classifier is code of a user's own, and train.py has not "
            "imported it in this folder, as it is now, at your word; name it with "
            "classifier.path=MODULE:NAME"
        )
    data = load_data(data_settings, download=root is not None or data_settings.root is None)
    if run.target.shape != data.test.size:
        raise SettingError(
            f"run={run.directory}: its images are {tuple(run.target.shape)}, those of its data "
            f"{data.test.size}; put back the config.yaml that belongs to these corners"
        )
    model = load_classifier(settings, data, seed)
    found = weights_hash(model)
    if found != expected:
        raise SettingError(
            f"run={run.directory}: its corners were found with other weights (hash {expected}, "
            f"here {found}); give the file with classifier.weights=FILE"
        )
    place = CPU if trainer is None else first_device(trainer)
    wide = torch.float64 if trainer and trainer["precision"] == "64-true" else None
    with sparing(place):
        model.to(place, wide)
    if run.config.get("channels_last") is True:
        model.to(memory_format=torch.channels_last)
    return model, data


def checked_hull(model: torch.nn.Module, run: Run) -> Hull:
    """The hull, once the run's classifier has been asked whether the summary can be true."""
    layer = run.summary["layer"]
    if run.config.get("channels_last") is True:
        run.corners = run.corners.contiguous(memory_format=torch.channels_last)
    try:
        with sparing(device_of(model)):
            hull = Hull(model, layer, run.corners, run.initial, run.target, run.units, run.summary)
    except RuntimeError as error:
        raise SettingError(
            f"run={run.directory}: images of {tuple(run.target.shape)} do not pass through "
            f"{run.summary['classifier']} ({str(error).splitlines()[0]})"
        ) from None
    check_units(run.directory, run.units, _numbers(run), hull.features.seen_by.cpu())
    images = torch.stack([hull.initial, hull.target, *hull.corners])
    with torch.inference_mode(), evaluating(model):
        parts = [hull.observe(part) for part in images.split(hull.at_once)]
    logits, preactivation = (torch.cat(each) for each in zip(*parts, strict=True))
    probabilities, norm = logits.softmax(1), float(hull.features.features.norm())
    names = [entry["corner"] for entry in run.summary["corners"]]
    found = summary_of(names, hull.units, preactivation[2:], hull.features, probabilities)
    check_figures(run.directory, run.summary, found, norm, probabilities)
    return hull


def _numbers(run: Run) -> list[int] | None:
    """The corners' numbers where they count the target's inactive units in flat order."""
    ordered = run.config.get("corner_order", "flat") == "flat"
    if not ordered or run.summary.get("objective") == "random":
        return None
    return [entry["corner"] for entry in run.summary["corners"]]


def evaluate(
    hull: Hull, dataset_distance: Callable[[], float], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """Measure a hull (Tables 1 to 5).

    `evaluation.json` is written after each measurement; while some are still to come, they are
    named in its `unfinished`.

    Args:
        hull: the corners and their classifier.
        dataset_distance: gives the mean distance between two images of the data set, in the same
            units; NaN where it has no two.
        settings: how many points, and what else to measure.
        directory: where `evaluation.json` and images go.

    Returns:
        The entries of `evaluation.json`. A measurement that a hull of one corner does not allow is
        left out, and named in `left_out`; one that fails is named in `failed`, with the reason.
    """
    result: dict[str, Any] = {
        "target_class": hull.target_class,
        "target_probability": hull.summary["target_probability"],
    }
    two = len(hull.corners) > 1
    measurements = {"dataset_distance": partial(_dataset_distance, dataset_distance)} | SAMPLED
    if two:
        measurements |= OF_TWO_CORNERS
    else:
        result["left_out"] = dict.fromkeys(OF_TWO_CORNERS, "needs two corners")
    left = list(measurements)
    for name, measure in measurements.items():
        try:
            with sparing(hull.corners.device):
                found = measure(hull, result, settings, directory)
            json.dumps(found, allow_nan=False)
        except Exception as error:  # whatever it is, the other measurements must not be lost
            result.setdefault("failed", {})[name] = reason_of(error)
        else:
            result |= found
        left.remove(name)
        write_json(directory / EVALUATION, result | ({"unfinished": left} if left else {}))
    return result


def reason_of(error: Exception) -> str:
    """Say in one line of printable characters what went wrong."""
    line = (str(error).strip().splitlines() or [""])[0]
    text = line if isinstance(error, SettingError) else f"{type(error).__name__}: {line}"
    return "".join(character if character.isprintable() else " " for character in text)[:300]


def _dataset_distance(
    distance_of_two: Callable[[], float],
    hull: Hull,
    known: dict[str, Any],
    settings: EvaluateSettings,
    directory: Path,
) -> dict[str, Any]:
    """None where the data set has no two images."""
    distance = distance_of_two()
    return {"dataset_distance_mean": None if math.isnan(distance) else distance}


def _sampled(law: str, uint8: bool) -> "Measurement":
    """A sampler on the float corners, or on the corners as 8-bit PNGs hold them."""

    def measure(
        hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
    ) -> dict[str, Any]:
        count = settings.beside if uint8 else settings.samples
        found = hull.sample(count, law, settings.seed, uint8)
        return {law + ("_uint8" if uint8 else ""): found}

    return measure


def outcome(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """Which of the three outcomes the hull has, by the uniform sample, and why it is no better."""
    if "dirichlet" not in known:
        return {}
    name, reasons = hull.outcome(known["dirichlet"])
    return {"outcome": name, "outcome_reasons": reasons}


def distances(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """How far apart the corners are, also beside the data set's images, and from the initial."""
    mean, other = float(hull.corner_distances().mean()), known.get("dataset_distance_mean")
    found: dict[str, Any] = {
        "corner_distance_mean": mean,
        "initial_distance_mean": float(hull.initial_distances().mean()),
        "relative_size": mean / other if other else None,
    }
    if other == 0:
        found["relative_size_reason"] = "all images of the data set are equal"
    elif other is None:
        found["relative_size_reason"] = "the distance between two images of the data set is unknown"
    return found


def looks(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """How different the corners look."""
    return differences(hull) | macro_entries(hull)


def ball(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """Balls of the hull's size (Table 5)."""
    return balls(hull, settings.beside, settings.seed)


def turned_simplices(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """The corners' simplex, turned at random."""
    return simplices(hull, settings.beside, settings.seed)


def plain_hull(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """The hull of plain Eq. 1 solutions."""
    steps = settings.plain.steps
    half = MIXED.get(settings.trainer.get("precision", ""))
    return plain(hull, settings.beside, settings.seed, steps, half) if steps else {}


def worst_case(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """The worst point a search found: no proof that there is none worse."""
    given, half = settings.worst_case, MIXED.get(settings.trainer.get("precision", ""))
    worst = hull.worst_case(given.starts, given.steps, settings.seed, half)
    save_png(directory / "images" / "worst_case.png", worst.image)
    return {
        "worst_case_probability": worst.probability,
        "worst_case_correct": worst.correct,
        "worst_case_class": worst.predicted_class,
        "worst_case_weights": worst.weights.tolist(),
    }


def edges(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """The edges between corners, walked exactly as far as the settings allow."""
    return {"edges": prove_edges(hull, settings.edges, cache_path("edges"))}


def collision(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """What holds of the features at every point of the hull."""
    found = prove_collision(hull, settings.proof.seconds, cache_path("hulls"))
    return {"proof": known.get("proof", {}) | {"collision": found}}


def of_class(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """Whether every point of the hull is the target's class."""
    worst = known.get("worst_case_weights")
    suspects = [] if worst is None else [worst]
    found = prove_class(hull, settings.proof.seconds, cache_path("hulls"), suspects)
    return {"proof": known.get("proof", {}) | {"class": found}}


def faces(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """Which parts of the hull's triangles are the target's class, where not all of it is proved."""
    proof = known.get("proof", {})
    if len(hull.corners) < 3 or proof.get("class", {}).get("outcome") == "proved":
        return {}
    return {"proof": proof | {"faces": prove_faces(hull, settings.proof.seconds)}}


def corners_depth(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """How deep the corners are."""
    return depth(hull) if settings.proof.depth else {}


Measurement = Callable[[Hull, dict[str, Any], EvaluateSettings, Path], dict[str, Any]]
SAMPLED: dict[str, Measurement] = {
    law + suffix: _sampled(law, uint8)
    for suffix, uint8 in (("", False), ("_uint8", True))
    for law in SAMPLERS
} | {"outcome": outcome}
OF_TWO_CORNERS: dict[str, Measurement] = {
    "distances": distances, "looks": looks, "balls": ball, "simplices": turned_simplices,
    "plain": plain_hull, "worst_case": worst_case, "edges": edges, "collision_proof": collision,
    "class_proof": of_class, "faces": faces, "depth": corners_depth,
}  # fmt: skip
