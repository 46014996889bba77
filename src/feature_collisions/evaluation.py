"""What `evaluation.json` holds: each measurement is one function of the hull."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import torch

from .baselines import balls, plain, simplices
from .classifiers import load_classifier
from .config import ClassifierSettings, DataSettings
from .data import DataSplit, load_data
from .differences import differences
from .edges import prove_edges
from .errors import SettingError
from .evaluate_settings import EvaluateSettings
from .features import evaluating
from .hull import SAMPLERS, Hull
from .images import save_png
from .macro import macro_entries
from .proofs import class_proof, collision_proof, depth
from .run_checks import check_figures, check_units
from .runs import Run
from .summary import summary_of
from .weights import weights_hash


def hull_of(
    run: Run, root: str | None, weights: str | None, path: str | None = None
) -> tuple[Hull, DataSplit]:
    """The hull of a run that was read, with its classifier and its data.

    Args:
        run: the run; its settings choose among the known classifiers and data sets by name, and
            can name nothing else.
        root: where the data lies now, or None where the run says.
        weights: where the weights lie now, likewise.
        path: MODULE:NAME of a classifier of the user's own. The run's is never used: importing is
            executing, and the run may be a stranger's.

    Raises:
        SettingError: when the classifier is not the one the corners were found with.
    """
    try:
        named_data, named = run.config["data"], run.config["classifier"]
        data_settings = DataSettings(
            str(named_data["name"]),
            root or named_data["root"],
            int(named_data.get("size", DataSettings.size)),
            str(named_data.get("resize", DataSettings.resize)),
        )
        settings = ClassifierSettings(
            str(named["name"]), weights or named["weights"], str(named["layer"]), path
        )
        seed = int(run.config["seed"])
        places = (named_data["root"], named["weights"])
        if not (0 <= seed < 2**63 and all(isinstance(each, str | None) for each in places)):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise SettingError(
            f"run={run.directory}: config.yaml does not say which classifier and data were used; "
            "evaluate a hull that was made in Python with Hull.sample"
        ) from None
    data_settings.check()
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
    if settings.name == "file" and path is None:
        raise SettingError(
            f"run={run.directory}: its classifier is a file of the user's own, which a run cannot "
            "name; give it with classifier.path=MODULE:NAME"
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
    return _checked_hull(model, settings.layer, run), data


def _checked_hull(model: torch.nn.Module, layer: str, run: Run) -> Hull:
    """The hull, once the classifier has been asked whether the summary can be true."""
    try:
        hull = Hull(model, layer, run.corners, run.initial, run.target, run.units, run.summary)
    except RuntimeError as error:
        raise SettingError(
            f"run={run.directory}: images of {tuple(run.target.shape)} do not pass through "
            f"{run.summary['classifier']} ({str(error).splitlines()[0]})"
        ) from None
    check_units(run.directory, run.units, _numbers(run), hull.features.preactivation)
    images = torch.stack([run.initial, run.target, *run.corners])
    with torch.inference_mode(), evaluating(model):
        parts = [hull.observed(part) for part in images.split(hull.batch)]
    logits, preactivation = (torch.cat(each) for each in zip(*parts, strict=True))
    probabilities, norm = logits.softmax(1), float(hull.features.features.norm())
    names = [entry["corner"] for entry in run.summary["corners"]]
    found = summary_of(names, run.units, preactivation[2:], hull.features, probabilities)
    check_figures(run.directory, run.summary, found, norm, probabilities)
    return hull


def _numbers(run: Run) -> list[int] | None:
    """The corners' numbers where they count the target's inactive units in flat order."""
    ordered = run.config.get("corner_order", "flat") == "flat"
    if not ordered or run.summary.get("objective") == "random":
        return None
    return [entry["corner"] for entry in run.summary["corners"]]


def evaluate(
    hull: Hull, dataset_distance: float, settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """Measure a hull (Tables 1 to 5).

    Args:
        hull: the corners and their classifier.
        dataset_distance: mean distance between two images of the data set, in the same units.
        settings: how many points, and what else to measure.
        directory: where images go.

    Returns:
        The entries of `evaluation.json`. A measurement that a hull of one corner does not allow is
        left out, and named in `left_out`.
    """
    result: dict[str, Any] = {
        "target_class": hull.target_class,
        "target_probability": hull.summary["target_probability"],
        "dataset_distance_mean": dataset_distance,
    }
    result |= sampled(hull, settings.samples, settings.seed)
    if len(hull.corners) < 2:
        names = [measure.__name__ for measure in OF_TWO_CORNERS]
        return result | {"left_out": dict.fromkeys(names, "needs two corners")}
    for measure in OF_TWO_CORNERS:
        result |= measure(hull, result, settings, directory)
    return result


def sampled(hull: Hull, samples: int, seed: int) -> dict[str, Any]:
    """Both samplers, on the float corners and on the corners as 8-bit PNGs hold them."""
    return {
        law + suffix: hull.sample(samples, law, seed, uint8)
        for suffix, uint8 in (("", False), ("_uint8", True))
        for law in SAMPLERS
    }


def distances(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """How far apart the corners are, absolutely and beside the data set's images."""
    mean = float(hull.corner_distances().mean())
    return (
        {
            "corner_distance_mean": mean,
            "relative_size": mean / known["dataset_distance_mean"],
        }
        | differences(hull)
        | macro_entries(hull)
    )


def baselines(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """What the hull is compared with (Table 5)."""
    samples, seed, steps = settings.samples, settings.seed, settings.plain.steps
    found = balls(hull, samples, seed) | simplices(hull, samples, seed)
    return found | (plain(hull, samples, seed, steps) if steps else {})


def worst_case(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """The worst point a search found: no proof that there is none worse."""
    worst = hull.worst_case(settings.worst_case.starts, settings.worst_case.steps, settings.seed)
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
    cache = platformdirs.user_cache_path("feature_collisions") / "edges"
    return {"edges": prove_edges(hull, settings.edges, cache)}


def proofs(
    hull: Hull, known: dict[str, Any], settings: EvaluateSettings, directory: Path
) -> dict[str, Any]:
    """What holds at every point of the hull, and how deep its corners are."""
    proof = {"collision": collision_proof(hull), "class": class_proof(hull, settings.proof.seconds)}
    return {"proof": proof} | (depth(hull) if settings.proof.depth else {})


Measurement = Callable[[Hull, dict[str, Any], EvaluateSettings, Path], dict[str, Any]]
OF_TWO_CORNERS: tuple[Measurement, ...] = (distances, baselines, worst_case, edges, proofs)
