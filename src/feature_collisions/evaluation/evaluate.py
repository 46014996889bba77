"""The measurements of `evaluation.json`: each is one function of the hull."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from ..checking.certificate import Kind, Statement, write_certificate
from ..checking.check import check
from ..data.caches import cache_path
from ..data.devices import explain_out_of_memory
from ..data.files import write_json
from ..data.images import pooled_distance, save_png
from ..errors import SettingError, first_line
from ..exact.hidden import hidden_dimensions, rounded
from ..exact.programs import depth
from ..hull.distances import mean_width
from ..hull.hull import Hull
from ..hull.statistics import limit_of
from ..hull.worst_case import Goal, WorstCase
from ..proofs.collision import prove_collision
from ..proofs.edges import prove_edges
from ..proofs.faces import prove_faces
from ..proofs.problem import Keep
from ..proofs.whole_hull import prove_class
from ..runs.evaluation import Evaluation, Proof
from ..runs.records import first_problem
from ..settings.evaluate import EvaluateSettings
from ..settings.trainer import MIXED
from ..simplex import SAMPLERS
from .baselines import balls, dimension, other_images, plain, simplices
from .differences import differences
from .judge import Judge
from .macro import visible

EVALUATION = "evaluation.json"
_OF_TARGET = ("target_class", "target_probability", "initial_cosine", "threshold")


def evaluate(
    hull: Hull,
    dataset_distances: Callable[[], Mapping[int, float]],
    settings: EvaluateSettings,
    directory: Path,
    seconds: dict[str, float] | None = None,
    judge: Judge | None = None,
    images: Callable[[], Tensor] | None = None,
) -> Evaluation:
    """Measure a hull (Tables 1 to 5).

    `evaluation.json` is written after each measurement; `unfinished` lists the remaining ones.

    Args:
        hull: the corners and their classifier.
        dataset_distances: returns the mean distances between two images of the data set, in the
            same units, after averaging over squares of pixels, by side of the square; NaN if there
            are no two images.
        settings: number of points, and further settings.
        directory: folder for `evaluation.json` and images.
        seconds: filled with the time of each measurement.
        judge: another network that judges the corners.
        images: returns images (n, C, H, W) of the data set, whose features are compared with the
            target's.

    Returns:
        The content of `evaluation.json`. `left_out` lists measurements that need more than one
        corner; `failed` lists those that failed, with the reason.
    """
    result = Evaluation(
        output=hull.output.kind,
        **{key: hull.summary[key] for key in _OF_TARGET if key in hull.summary},
        distance_scale=hull.summary.distance_scale,
        activation=hull.following.activation.name,
        past=list(hull.following.past),
    )
    if len(hull.corners) == 1:
        result.left_out = dict.fromkeys(_of_two_corners(hull), "needs two corners")
    subject = Subject(hull, settings, directory, dataset_distances, judge, images)
    measurements = _allowed(subject)
    left = list(measurements)
    for name, measure in measurements.items():
        started = time.perf_counter()
        try:
            with explain_out_of_memory(hull.corners.device):
                result |= measure(subject._replace(known=result))
        except Exception as error:  # of any kind; the other measurements are kept
            result = result.with_failure(name, reason_of(error))
        left.remove(name)
        if seconds is not None:
            seconds[name.replace("_", " ")] = time.perf_counter() - started
        unfinished = {"unfinished": left} if left else {}
        write_json(directory / EVALUATION, result.entries() | unfinished)
    return result


def reason_of(error: Exception) -> str:
    """Describe an error in one line of printable characters."""
    if isinstance(error, ValidationError):
        return first_problem(error)
    line = first_line(error)
    text = line if isinstance(error, SettingError) else f"{type(error).__name__}: {line}"
    return "".join(character if character.isprintable() else " " for character in text)[:300]


class Subject(NamedTuple):
    """What a measurement is given.

    Attributes:
        hull: the corners and their classifier.
        settings: how many points, and what else to measure.
        directory: where images go; None: nothing is kept, proofs in the user's cache neither.
        distances: as `evaluate` takes them; None: unknown.
        judge: another network that judges the corners.
        images: as `evaluate` takes them; None: there is no data set.
        known: what was measured before.
    """

    hull: Hull
    settings: EvaluateSettings
    directory: Path | None = None
    distances: Callable[[], Mapping[int, float]] | None = None
    judge: Judge | None = None
    images: Callable[[], Tensor] | None = None
    known: Evaluation = Evaluation()

    @property
    def half(self) -> torch.dtype | None:
        """Half precision for searches: the user's choice.

        For `auto`, which `check_trainer` keeps if the device has native bfloat16 arithmetic, it is
        bfloat16 if the search for the corners used it.
        """
        asked = self.settings.trainer.get("precision", "")
        if asked == "auto" and self.hull.summary.precision == "bf16-mixed":
            asked = "bf16-mixed"
        return MIXED.get(asked)

    def cache(self, kind: str) -> Path | None:
        """Where proofs are kept for the next time."""
        return cache_path(kind) if self.directory else None


Measurement = Callable[[Subject], Evaluation]


def measured(subject: Subject, names: Collection[str]) -> Evaluation:
    """What those of the measurements `names` find that the hull allows; one that fails raises."""
    for name, measure in _allowed(subject).items():
        if name in names:
            subject = subject._replace(known=subject.known | measure(subject))
    return subject.known


def _allowed(subject: Subject) -> dict[str, Measurement]:
    """The measurements of a hull, by their names: fewer of one corner, and without a judge."""
    found = dict(SAMPLED)
    if subject.distances:
        found = {"dataset_distance": _dataset_distance} | found
    if subject.images:
        found["dataset_features"] = _dataset_features
    if len(subject.hull.corners) > 1:
        found |= _of_two_corners(subject.hull)
    return found | {"judge": _judge} if subject.judge else found


def _of_two_corners(hull: Hull) -> Mapping[str, Measurement]:
    return OF_TWO_CORNERS if hull.output.kind == "classes" else OF_FEATURES


def _judge(subject: Subject) -> Evaluation:
    """What another network says of the corners."""
    assert subject.judge
    return Evaluation(judge=subject.judge.verdict(subject.hull))


def _dataset_distance(subject: Subject) -> Evaluation:
    """Mean distance between two images of the data set; None if there are no two."""
    assert subject.distances
    found = subject.distances()
    distances = {square: None if math.isnan(d) else d for square, d in found.items()}
    return Evaluation(
        dataset_distance_mean=distances[1],
        dataset_distances_pooled={str(square): d for square, d in distances.items()},
    )


def _dataset_features(subject: Subject) -> Evaluation:
    """How near the target's features those of other images are."""
    assert subject.images
    return Evaluation(dataset_features=other_images(subject.hull, subject.images()))


def _sample(sampler: str, uint8: bool, subject: Subject) -> Evaluation:
    """Sample the hull of the float corners, or of the corners in the 8-bit PNGs."""
    settings = subject.settings
    count = settings.beside if uint8 else settings.samples
    found = subject.hull.sample(count, sampler, settings.seed, uint8)
    return Evaluation() | {_entry(sampler, uint8): found}


def _entry(sampler: str, uint8: bool) -> str:
    return sampler + ("_uint8" if uint8 else "")


def _outcome(subject: Subject) -> Evaluation:
    """Outcome by the uniform sample and the largest feature error seen."""
    if (sample := subject.known.dirichlet) is None:
        return Evaluation()
    known = [subject.known.at(f"{sampler}.feature_relative_max") for sampler in SAMPLERS]
    sampled = [error for error in known if error is not None]
    if sampled:
        sample |= {"feature_relative_max": max(sampled)}
    name, reasons = subject.hull.outcome(sample, subject.known.worst_feature_relative)
    at_corners = subject.hull.summary.corner_feature_relative_max or 0.0
    return Evaluation(
        outcome=name,
        outcome_reasons=reasons,
        hull_relative=limit_of(subject.hull.summary),
        feature_relative_max=max(*sampled, at_corners) if sampled else None,
    )


def _distances(subject: Subject) -> Evaluation:
    """Distances between corners, relative to the data set's, and from the initial image."""
    hull, other = subject.hull, subject.known.dataset_distance_mean
    mean, scale = float(hull.corner_distances().mean()), hull.summary.distance_scale
    width = mean_width(hull.corners, subject.settings.seed) * scale
    found = Evaluation(
        corner_distance_mean=mean,
        mean_width=width,
        relative_width=width / other if other else None,
        degenerate=dimension(hull.corners) < len(hull.corners) - 1,
        initial_distance_mean=float(hull.initial_distances().mean()),
        relative_size=mean / other if other else None,
        pooled_sizes={
            square: pooled_distance(hull.corners, int(square)) * scale / distance
            for square, distance in subject.known.dataset_distances_pooled.items()
            if distance
        },
    )
    if other == 0:
        found.relative_size_reason = "all images of the data set are equal"
    elif other is None:
        found.relative_size_reason = "the distance between two images of the data set is unknown"
    return found


def _plain(subject: Subject) -> Evaluation:
    """The hull of plain solutions of Eq. 1."""
    hull, settings = subject.hull, subject.settings
    if not (steps := settings.plain.steps):
        return Evaluation()
    return plain(hull, settings.beside, settings.seed, steps, subject.half)


def _searched(subject: Subject, of: Goal, picture: str) -> WorstCase:
    """The worst point that a search found; there may be a worse one."""
    given, seed = subject.settings.worst_case, subject.settings.seed
    worst = subject.hull.worst_case(given.starts, given.steps, seed, subject.half, of)
    if subject.directory:
        save_png(subject.directory / "images" / picture, worst.image)
    return worst


def _worst_features(subject: Subject) -> Evaluation:
    """The largest feature error that a search found; of one corner there is nothing to search."""
    if len(subject.hull.corners) == 1:
        return Evaluation()
    worst = _searched(subject, "features", "worst_features.png")
    return Evaluation(
        worst_feature_relative=worst.feature_relative,
        worst_feature_weights=worst.weights.tolist(),
    )


def _worst_case(subject: Subject) -> Evaluation:
    """The worst output that a search found."""
    worst = _searched(subject, "output", "worst_case.png")
    found = Evaluation(worst_case_weights=worst.weights.tolist())
    if worst.cosine is not None:
        return found | Evaluation(
            worst_case_cosine=worst.cosine, worst_case_output_relative=worst.output_relative
        )
    return found | Evaluation(
        worst_case_probability=worst.probability,
        worst_case_correct=worst.correct,
        worst_case_class=worst.predicted_class,
    )


def _edges(subject: Subject) -> Evaluation:
    """The edges between corners, walked as far as the settings allow."""
    found = prove_edges(subject.hull.problem, subject.settings.edges, cache_path("edges"))
    return Evaluation(edges=found)


def _proved(subject: Subject, name: str, found: Proof) -> Evaluation:
    """The entry `proof` with another statement, and the size of its proved part."""
    size = subject.known.relative_size
    if found.scale_proved is not None:
        found.relative_size_proved = None if size is None else found.scale_proved * size
    return Evaluation(proof=subject.known.proof | {name: found})


def _collision_proof(subject: Subject) -> Evaluation:
    """Bound on the feature error at every point of the hull."""
    seconds = subject.settings.proof.seconds
    problem, keep = subject.hull.problem, _keep(subject, "collision")
    found = prove_collision(problem, seconds, subject.cache("hulls"), keep)
    return _proved(subject, "collision", found)


def _class_proof(subject: Subject) -> Evaluation:
    """Whether every point of the hull is of the target's class."""
    worst = subject.known.worst_case_weights
    suspects = [] if worst is None else [worst]
    seconds = subject.settings.proof.seconds
    problem, keep = subject.hull.problem, _keep(subject, "class")
    found = prove_class(problem, seconds, subject.cache("hulls"), suspects, keep)
    return _proved(subject, "class_", found)


def _keep(subject: Subject, kind: Kind) -> Keep | None:
    """Writes the certificate of a proof; None where there is no run directory."""
    if subject.directory is None:
        return None
    return partial(write_certificate, subject.directory, Statement(subject.hull.problem, kind))


def _checked(kind: Kind, subject: Subject) -> Evaluation:
    """What the certificate in the run directory shows to a checker that did not find it."""
    name = "class_" if kind == "class" else kind
    proof = getattr(subject.known.proof, name)
    if not (subject.settings.proof.check and subject.directory and proof):
        return Evaluation()
    checked = check(subject.directory, Statement(subject.hull.problem, kind))
    return Evaluation(proof=subject.known.proof | {name: proof | {"checked": checked}})


def _faces(subject: Subject) -> Evaluation:
    """Status of the hull's triangles, if the class is not proved on the whole hull."""
    of_class = subject.known.proof.class_
    if len(subject.hull.corners) < 3 or (of_class and of_class.outcome == "proved"):
        return Evaluation()
    found = prove_faces(subject.hull.problem, subject.settings.proof.seconds)
    return Evaluation(proof=subject.known.proof | {"faces": found})


def _depth(subject: Subject) -> Evaluation:
    """L_neg of the corners as a share of Eq. 2's optimum."""
    found = depth(subject.hull) if subject.settings.proof.depth else None
    return Evaluation(depth=found) if found else Evaluation()


SAMPLED: dict[str, Measurement] = {
    _entry(sampler, uint8): partial(_sample, sampler, uint8)
    for uint8 in (False, True)
    for sampler in SAMPLERS
} | {
    "worst_features": _worst_features,
    "outcome": _outcome,
    "hidden": lambda it: hidden_dimensions(it.hull, it.settings.proof.seconds),
    "rounding": lambda it: rounded(it.hull),
}
OF_TWO_CORNERS: dict[str, Measurement] = {
    "distances": _distances,
    "looks": lambda it: differences(it.hull) | visible(it.hull),
    "balls": lambda it: balls(it.hull, it.settings.beside, it.settings.seed),
    "simplices": lambda it: simplices(it.hull, it.settings.beside, it.settings.seed),
    "plain": _plain,
    "worst_case": _worst_case,
    "edges": _edges,
    "collision_proof": _collision_proof,
    "collision_check": partial(_checked, "collision"),
    "class_proof": _class_proof,
    "class_check": partial(_checked, "class"),
    "faces": _faces,
    "depth": _depth,
}
OF_FEATURES = {
    name: measure for name, measure in OF_TWO_CORNERS.items()
    if name not in ("edges", "class_proof", "class_check", "faces")
}  # fmt: skip
"""Measurements for an encoder, which has no classes."""
