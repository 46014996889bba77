"""Many pairs of images, one run directory each: which of them succeed, and why the others do not.

A pair succeeds when every sampled interpolation is of the target's class and their mean
probability is within 0.05 of the target's.
"""

import errno
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..data.files import read_json, write_json, write_text
from ..data.image_set import ImageSet
from ..errors import CollisionError, SettingError
from ..hull.hull import Hull
from ..hull.places import CHECKPOINT, CORNERS
from ..hull.run import load_run
from ..hull.statistics import shortcomings
from ..report.runs import rows_table
from ..report.tables import Table, as_markdown
from ..search.summary import class_probabilities
from .deciding import differences_to
from .pairs_file import read_pairs_file, shown

OUTCOME = "outcome.json"
_COLUMNS = (
    "initial", "target", "accuracy", "probability_mean", "target_probability",
    "positive_relative_max", "corner_distance_mean", "steps", "seconds", "outcome",
)  # fmt: skip
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
    pairs = []
    for number, line in read_pairs_file(setting):
        if len(line) != 2 or not all(line):
            raise SettingError(
                f"pairs={setting}: line {number} is {shown(line)}; it must be initial,target"
            )
        try:
            for name, choice in zip(Pair._fields, line, strict=True):
                images.find(name, choice)
        except SettingError as error:
            raise SettingError(f"pairs={setting}: line {number}: {error}") from None
        except OSError as error:  # a name too long, say
            raise SettingError(
                f"pairs={setting}: line {number}, {shown(line)}: {error.strerror}"
            ) from None
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


def check_earlier(
    pairs: Sequence[Pair], directory: Path, decisive: Callable[[Pair], dict[str, Any]]
) -> None:
    """Look at what an earlier start left in `directory`.

    Args:
        pairs: the pairs.
        directory: of `run_pairs`.
        decisive: what decides a pair's hull, by the settings' names.

    Raises:
        SettingError: when a pair was searched there with other settings. Nothing of it is
            overwritten, and one table never mixes two settings.
    """
    for number, pair in enumerate(pairs):
        place = _place(directory, number, pair)
        if not any((place / name).exists() for name in (OUTCOME, CORNERS, CHECKPOINT)):
            continue
        if differing := differences_to(place, decisive(pair)):
            raise SettingError(
                f"hydra.run.dir={directory}: {place.name} was searched with other settings "
                f"({'; '.join(differing)}); go on with those, or choose another directory"
            )


def run_pairs(
    pairs: Sequence[Pair],
    directory: Path,
    search: Callable[[Pair, Path], Hull],
    samples: int = 2000,
) -> list[dict[str, Any]]:
    """Search all pairs one after another; what a pair raises is its outcome, and the next follows.

    Pairs that were finished in `directory` are not searched again; `check_earlier` says whether
    they may be there.

    Args:
        pairs: the pairs.
        directory: where `000_initial_to_target/`, one a pair, and the summary go.
        search: finds and writes a pair's hull, and what decides it.
        samples: interpolations a pair.

    Returns:
        One entry a pair, as `pairs.json` has them.

    Raises:
        OSError: when the disk is full.
    """
    places = [_place(directory, number, pair) for number, pair in enumerate(pairs)]
    known = [_known_outcome(place) for place in places]
    if count := sum(outcome is not None for outcome in known):
        print(f"{directory}: {count} of {len(pairs)} pairs were found there with these settings",
              flush=True)  # fmt: skip
    outcomes: list[dict[str, Any]] = []
    for number, (pair, place) in enumerate(zip(pairs, places, strict=True)):
        outcome, earlier = known[number], " (found earlier)"
        if outcome is None:
            outcome, earlier = _searched(pair, place, search, samples), ""
        named = {"initial": pair.initial, "target": pair.target}
        outcomes.append(named | outcome | {"directory": place.name})
        verdict = _verdict(outcome) + earlier
        print(f"pair {number}: {pair.initial} to {pair.target}: {verdict}", flush=True)
        write_json(directory / "pairs.json", outcomes)
        table = outcomes_table(outcomes)
        write_text(directory / "pairs.md", f"# {table.heading}\n\n{as_markdown(table)}\n")
    return outcomes


def evaluated(outcome: dict[str, Any]) -> bool:
    """Whether a pair's hull was found and measured, be it a success or not."""
    return "accuracy" in outcome


def _place(directory: Path, number: int, pair: Pair) -> Path:
    return directory / f"{number:03d}_{_slug(pair.initial)}_to_{_slug(pair.target)}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[-60:]


def _known_outcome(place: Path) -> dict[str, Any] | None:
    """What was found at `place`; None where it is not whole, and is to be searched again."""
    if not (place / OUTCOME).exists():
        return None
    try:
        load_run(place)
        saved = read_json(place / OUTCOME)
    except SettingError:
        return None
    return saved if isinstance(saved, dict) and evaluated(saved) else None


def _searched(
    pair: Pair, place: Path, search: Callable[[Pair, Path], Hull], samples: int
) -> dict[str, Any]:
    try:
        outcome = outcome_of(search(pair, place), samples)
        write_json(place / OUTCOME, outcome)
    except Exception as error:  # whatever it is, it must not take the other pairs with it
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = (str(error).splitlines() or [""])[0]
        return {"success": False, "reasons": [f"{type(error).__name__}: {reason}"]}
    return outcome


def outcome_of(hull: Hull, samples: int) -> dict[str, Any]:
    """Whether a hull is a success, by `samples` uniform interpolations of its corners.

    Raises:
        CollisionError: when the classifier's answers are not finite.
    """
    found, target = hull.sample(samples), hull.summary["target_probability"]
    mean, accuracy = found["probability_mean"], found["accuracy"]
    if not (math.isfinite(mean) and math.isfinite(target)):
        raise CollisionError(
            f"the classifier's probabilities are not finite (mean {mean}, the target's {target})"
        )
    reasons = shortcomings(found, target)
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


def outcomes_table(outcomes: Sequence[dict[str, Any]]) -> Table:
    """One row per pair, and how many succeeded."""
    good = sum(outcome["success"] for outcome in outcomes)
    rows = [outcome | {"outcome": _verdict(outcome)} for outcome in outcomes]
    return rows_table(f"{good} of {len(outcomes)} pairs succeeded", _COLUMNS, rows)
