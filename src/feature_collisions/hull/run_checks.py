"""What a run directory says of itself must be possible, and agree: it may be a stranger's.

What only the classifier can tell is compared with it before a hull is measured (`check_figures`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError

_COUNT = 2**53  # above any number of steps, seconds, units
_SHARE = (0.0, 1.0)
_RATHER = (-float(_COUNT), float(_COUNT))
_SUMMARY: dict[str, Any] = {
    "experiment": str, "classifier": str, "layer": str, "initial_class": int, "target_class": int,
    "target_probability": _SHARE, "distance_scale": int, "converged": bool, "steps": int,
    "seconds": (0, _COUNT), "seconds_total": (0, _COUNT), "corners": list,
}  # fmt: skip
_CORNER: dict[str, Any] = {
    "corner": int, "unit": int, "positive": (0, _COUNT), "negative": _RATHER,
    "unit_preactivation": _RATHER, "predicted_class": int, "probability": _SHARE,
}  # fmt: skip


def check_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Raise SettingError for the first entry that is missing, of another kind or out of range.

    Integers count something and are at least 0; a pair gives the range of a number.
    """
    for part, kinds in [(summary, _SUMMARY), *((each, _CORNER) for each in summary["corners"])]:
        if not isinstance(part, dict):
            raise SettingError(f"run={directory}: a corner in summary.json is no entry of its own")
        for key, kind in kinds.items():
            _check_entry(directory, key, part.get(key), kind)
    if "hull_relative" in summary:
        _check_entry(directory, "hull_relative", summary["hull_relative"], (0, _COUNT))
    _check_text(directory, summary)
    numbers = [entry["corner"] for entry in summary["corners"]]
    if len(set(numbers)) < len(numbers):
        raise SettingError(
            f"run={directory}: a corner occurs twice in summary.json; make the run again"
        )
    if any(entry.keys() != summary["corners"][0].keys() for entry in summary["corners"]):
        raise SettingError(f"run={directory}: the corners in summary.json have different entries")


def _check_entry(directory: Path, key: str, value: Any, kind: Any) -> None:
    name, allowed = getattr(kind, "__name__", "float"), kind
    if isinstance(kind, tuple):
        allowed = (int, float)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise SettingError(
            f"run={directory}: {key} in summary.json is missing or no {name}; make the run again"
        )
    low, high = kind if isinstance(kind, tuple) else (0, _COUNT)
    if isinstance(value, int | float) and not low <= value <= high:
        raise SettingError(
            f"run={directory}: {key}={value} in summary.json: must be from {low:g} to {high:g}; "
            "make the run again"
        )


def _check_text(directory: Path, value: Any) -> None:
    """Raise SettingError for line breaks and control characters in a name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_text(directory, key)
            _check_text(directory, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_text(directory, inner)
    elif isinstance(value, str) and not value.isprintable():
        raise SettingError(
            f"run={directory}: summary.json has control characters in {value!a:.60}; make the "
            "run again"
        )


def check_agreement(
    directory: Path, summary: dict[str, Any], config: dict[str, Any], units: Tensor, channels: int
) -> None:
    """Raise SettingError where summary, settings and tensors contradict each other."""
    classifier = config.get("classifier")
    named = classifier if isinstance(classifier, dict) else {}
    pairs = {
        "experiment": config.get("name"),
        "classifier": named.get("name"),
        "layer": named.get("layer"),
    }
    for key, setting in pairs.items():
        if setting is not None and setting != summary[key]:
            raise SettingError(
                f"run={directory}: summary.json is of {key} {summary[key]}, config.yaml of "
                f"{setting}; put back the file that belongs to these corners"
            )
    if [entry["unit"] for entry in summary["corners"]] != units.tolist():
        raise SettingError(
            f"run={directory}: the units of the corners and of summary.json differ; make the run "
            "again"
        )
    scale = 1 if channels == 1 else 255
    if summary["distance_scale"] != scale:
        raise SettingError(
            f"run={directory}: distance_scale={summary['distance_scale']} in summary.json: must be "
            f"{scale} for images of {channels} channels; make the run again"
        )


_ROUNDING = 0.01  # of ||f(t)||, and of probabilities: what devices and precisions differ by


def check_figures(
    directory: Path,
    summary: dict[str, Any],
    found: dict[str, Any],
    norm: float,
    probabilities: Tensor,
) -> None:
    """Raise SettingError unless the classifier gives what the summary says, up to rounding.

    Args:
        directory: the run's, for the message.
        summary: what `summary.json` holds.
        found: what `summary_of` finds now, for the same corners.
        norm: ||f(t)||.
        probabilities: (2 + K, classes) of the initial image, the target and the corners.
    """
    classes = probabilities.shape[1]
    named = [summary["initial_class"], summary["target_class"]]
    named += [entry["predicted_class"] for entry in summary["corners"]]
    likely = all(
        label < classes and float(row.max() - row[label]) <= _ROUNDING
        for label, row in zip(named, probabilities, strict=True)
    )
    if not likely or summary["target_class"] != found["target_class"]:
        raise SettingError(
            f"run={directory}: summary.json gives classes that the classifier does not (the "
            f"target is class {found['target_class']} of {classes} to it); make the run again"
        )
    pairs = [("target_probability", summary, found, 1.0)]
    for said, seen in zip(summary["corners"], found["corners"], strict=True):
        pairs += [("probability", said, seen, 1.0), ("positive", said, seen, norm)]
        pairs += [("unit_preactivation", said, seen, norm)]
        if said.get("side", seen["side"]) != seen["side"]:
            raise SettingError(
                f"run={directory}: unit {seen['unit']} is {said['side']} what the layer sees in "
                f"summary.json, and {seen['side']} it in truth; make the run again"
            )
        pairs += [("negative", said, seen, norm + abs(seen["negative"]))]
        if said.get("positive_relative") is not None:
            pairs += [("positive_relative", said, seen, 1.0)]
    for key, said, seen, scale in pairs:
        value, truth = said[key], seen[key] or 0.0
        near = isinstance(value, int | float) and abs(value - truth) <= _ROUNDING * max(
            scale, abs(truth)
        )
        if not near:
            raise SettingError(
                f"run={directory}: {key}={value} in summary.json, where the classifier gives "
                f"{truth:.6g}; make the run again"
            )


def check_units(
    directory: Path, units: Tensor, numbers: list[int] | None, preactivation: Tensor
) -> None:
    """Raise SettingError unless these are inactive units of the target, those that corners count.

    Args:
        directory: the run's, for the message.
        units: (K,) flat indices.
        numbers: of the corners, where these count inactive units in flat order.
        preactivation: (N,) how far f0(t) is within what the layer sees (`TargetFeatures.seen_by`).
            Units next to zero may be inactive or not: devices differ.
    """
    count = len(preactivation)
    if units.max() >= count:
        raise SettingError(
            f"run={directory}: unit {int(units.max())}: the layer has units 0 to {count - 1}; make "
            "the run again"
        )
    nothing = 1e-4 * float(preactivation.abs().max())
    active = units[preactivation[units] > nothing]
    if len(active):
        raise SettingError(
            f"run={directory}: unit {int(active[0])} is active in the target, and a corner pushes "
            "an inactive one down; make the run again"
        )
    if numbers is None:
        return
    least = (preactivation < -nothing).cumsum(0) - (preactivation < -nothing).int()
    most = (preactivation < nothing).cumsum(0) - (preactivation < nothing).int()
    corners = torch.tensor(numbers)
    other = (corners < least[units]) | (corners > most[units])
    if other.any():
        place = int(other.int().argmax())
        raise SettingError(
            f"run={directory}: corner {numbers[place]} of the target is not unit "
            f"{int(units[place])}; make the run again"
        )
