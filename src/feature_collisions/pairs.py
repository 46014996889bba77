"""Many pairs of images, one run directory each: which of them succeed, and why the others do not.

A pair succeeds when every sampled interpolation is of the target's class and their mean
probability is within 0.05 of the target's.
"""

import csv
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .errors import SettingError
from .files import read_json, read_text, write_json, write_text
from .hull import Hull
from .image_sets import ImageSet
from .runs import read_run
from .summary import class_probabilities
from .tables import markdown_table

OUTCOME = "outcome.json"
_NEAR = 0.05
_DRAWS = 100  # a pair, before no more are expected
_RULE = (
    "give a CSV file with initial,target a line, random:N, or random:N:P for targets that the "
    "classifier gives a probability above P"
)


class Pair(NamedTuple):
    """An initial and a target image, as the settings of these names have them."""

    initial: str
    target: str


def parse_pairs(setting: str, images: ImageSet, seed: int, model: nn.Module) -> list[Pair]:
    """Read `pairs`: a CSV file, or `random:N`, N pairs of images of two classes.

    Args:
        setting: `random:N:P` draws among targets that `model` gives some class more than P.
        images: where they are drawn from.
        seed: decides the draw.
        model: the classifier.

    Raises:
        SettingError: for a file without pairs, or a line that names no two images; it is numbered.
    """
    if setting.split(":")[0] == "random":
        form = re.fullmatch(r"random:(\d+)(?::(0?\.\d+))?", setting)
        if not form or int(form[1]) < 1:
            raise SettingError(
                f"pairs={setting}: N must be a whole number of at least 1, and P lie in [0, 1); "
                f"{_RULE}"
            )
        return _random_pairs(setting, int(form[1]), float(form[2] or 0), images, seed, model)
    try:
        lines = list(csv.reader(read_text(setting).splitlines(), skipinitialspace=True))
    except (SettingError, csv.Error) as error:
        raise SettingError(f"pairs={setting}: cannot be read ({error}); {_RULE}") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line == ["initial", "target"]):
            continue
        if len(line) != 2 or not all(line):
            raise SettingError(
                f"pairs={setting}: line {number} is {','.join(line)}; it must be initial,target"
            )
        try:
            for name, choice in zip(Pair._fields, line, strict=True):
                images.find(name, choice)
        except SettingError as error:
            raise SettingError(f"pairs={setting}: line {number}: {error}") from None
        pairs.append(Pair(*line))
    if not pairs:
        raise SettingError(f"pairs={setting}: there is no pair in it; {_RULE}")
    return pairs


def _random_pairs(
    setting: str, count: int, least: float, images: ImageSet, seed: int, model: nn.Module
) -> list[Pair]:
    labels = images.labels.tolist()
    if len(set(labels)) < 2:
        raise SettingError(f"pairs={setting}: needs images of two classes or more")
    generator = torch.Generator().manual_seed(seed)
    pairs: list[Pair] = []
    for _ in range(_DRAWS * count):
        first, second = torch.randint(len(labels), (2,), generator=generator).tolist()
        if labels[first] == labels[second]:
            continue
        if least and class_probabilities(model, images[second][None]).max() <= least:
            continue
        pairs.append(Pair(_name(images, labels, first), _name(images, labels, second)))
        if len(pairs) == count:
            return pairs
    raise SettingError(
        f"pairs={setting}: only {len(pairs)} of {_DRAWS * count} draws have such a target; lower P"
    )


def _name(images: ImageSet, labels: Sequence[int], index: int) -> str:
    """The image as `CLASS`, or `CLASS:N` where it is not the first of its class."""
    label = labels[index]
    rank = labels[:index].count(label)
    return images.class_names[label] + (f":{rank}" if rank else "")


def run_pairs(
    pairs: Sequence[Pair],
    directory: Path,
    search: Callable[[Pair, Path], Hull],
    samples: int = 2000,
) -> list[dict[str, Any]]:
    """Search all pairs one after another; what a pair raises is its outcome, and the next follows.

    Args:
        pairs: the pairs.
        directory: where `000_initial_to_target/`, one a pair, and the summary go. Pairs that were
            finished there are not searched again.
        search: finds and writes a pair's hull.
        samples: interpolations a pair.

    Returns:
        One entry a pair, as `pairs.json` has them.
    """
    outcomes: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        place = directory / f"{number:03d}_{_slug(pair.initial)}_to_{_slug(pair.target)}"
        outcome = _outcome(pair, place, search, samples)
        print(f"pair {number}: {pair.initial} to {pair.target}: {_verdict(outcome)}", flush=True)
        outcomes.append(outcome | {"directory": place.name})
        write_json(directory / "pairs.json", outcomes)
        write_text(directory / "pairs.md", summary_table(outcomes))
    return outcomes


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[-60:]


def _outcome(
    pair: Pair, place: Path, search: Callable[[Pair, Path], Hull], samples: int
) -> dict[str, Any]:
    named: dict[str, Any] = {"initial": pair.initial, "target": pair.target}
    try:
        if (place / OUTCOME).exists():
            read_run(place)  # it is whole, or it is searched again
            saved: dict[str, Any] = read_json(place / OUTCOME)
            return named | saved
    except SettingError:
        pass
    try:
        outcome = measure(search(pair, place), samples)
    except Exception as error:  # whatever it is, it must not take the other pairs with it
        reason = (str(error).splitlines() or [""])[0]
        return named | {"success": False, "reasons": [f"{type(error).__name__}: {reason}"]}
    write_json(place / OUTCOME, outcome)
    return named | outcome


def measure(hull: Hull, samples: int) -> dict[str, Any]:
    """Whether a hull is a success, by `samples` uniform interpolations of its corners."""
    found, target = hull.sample(samples), hull.summary["target_probability"]
    mean, accuracy = found["probability_mean"], found["accuracy"]
    assert mean is not None
    assert accuracy is not None
    reasons = []
    if accuracy < 1:
        wrong = samples - round(accuracy * samples)
        reasons.append(f"{wrong} of {samples} interpolations are of another class")
    if abs(mean - target) > _NEAR:
        reasons.append(f"mean probability {mean:.3f}, the target's is {target:.3f}")
    distances = hull.corner_distances()
    return {
        "success": not reasons,
        "reasons": reasons,
        "search": hull.summary.get("unmet", []),
        "samples": samples,
        "accuracy": accuracy,
        "probability_mean": mean,
        "target_probability": target,
        "corner_distance_mean": float(distances.mean()) if len(distances) else None,
        "positive_relative_max": found["positive_relative_max"],
        "steps": hull.summary["steps"],
        "seconds": hull.summary["seconds"],
    }


def _verdict(outcome: dict[str, Any]) -> str:
    return "success" if outcome["success"] else "; ".join(outcome["reasons"])


def summary_table(outcomes: Sequence[dict[str, Any]]) -> str:
    """The pairs as Markdown, with the share that succeeded.

    The largest L_pos of the interpolations is over ||f(t)||: how near the features really are.
    """
    header = ["initial", "target", "accuracy", "mean probability", "target's", "largest L_pos",
              "distance", "steps", "seconds", "outcome"]  # fmt: skip
    rows = [
        [
            outcome["initial"],
            outcome["target"],
            _cell(outcome.get("accuracy"), "{:.2%}"),
            _cell(outcome.get("probability_mean"), "{:.3f}"),
            _cell(outcome.get("target_probability"), "{:.3f}"),
            _cell(outcome.get("positive_relative_max"), "{:.3f}"),
            _cell(outcome.get("corner_distance_mean"), "{:,.0f}"),
            _cell(outcome.get("steps"), "{}"),
            _cell(outcome.get("seconds"), "{:.0f}"),
            _verdict(outcome),
        ]
        for outcome in outcomes
    ]
    good = sum(outcome["success"] for outcome in outcomes)
    return f"{good} of {len(outcomes)} pairs succeeded\n\n{markdown_table(header, rows)}\n"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
