"""Check that an untrusted run directory agrees with its classifier.

Whether its files agree with each other is checked when they are read (`runs.run`).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..hull.outputs import output_of
from ..runs.records import Corner, impossible
from ..runs.run import Run

_ROUNDING = 0.01  # relative to ||f(t)||, and of probabilities: devices and precisions differ


def check_figures(run: Run, found: Sequence[Corner], norm: float, outputs: Tensor) -> None:
    """Raise SettingError unless the classifier confirms the summary, up to rounding.

    Args:
        run: the run with the summary.
        found: figures of the same corners, computed now.
        norm: ||f(t)||.
        outputs: (2 + K, D) of the initial image, the target and the corners.
    """
    summary = run.summary
    if summary.output == "classes":
        _check_classes(run, outputs.softmax(1))
    of_pair = output_of(summary.output, outputs[1]).of_pair(outputs[0])
    scales = dict.fromkeys(("positive", "negative", "unit_preactivation"), norm)
    for said, seen in zip((summary, *summary.corners), (of_pair, *found), strict=True):
        for name, true in seen.items():
            value = getattr(said, name)
            if value is None or not isinstance(true, float | str):
                continue
            if isinstance(true, str):
                wrong, truth = value != true, true
            else:
                size = max(scales.get(name, 1.0), abs(true))
                wrong, truth = not abs(value - true) <= _ROUNDING * size, f"{true:.6g}"
            if wrong:
                rule = f"{name}={value} in summary.json, where the classifier gives {truth}"
                raise impossible(run.directory, rule)


def _check_classes(run: Run, probabilities: Tensor) -> None:
    """Raise SettingError unless the classifier gives the summary's classes."""
    summary, classes = run.summary, probabilities.shape[1]
    named = [summary.initial_class, summary.target_class]
    named += [entry.predicted_class for entry in summary.corners]
    likely = all(
        label < classes and float(row.max() - row[label]) <= _ROUNDING
        for label, row in zip(named, probabilities, strict=True)
    )
    truth = int(probabilities[1].argmax())
    if not likely or summary.target_class != truth:
        raise impossible(
            run.directory,
            "summary.json gives classes that the classifier does not (the target is class "
            f"{truth} of {classes} to it)",
        )


def check_units(
    directory: Path, units: Tensor, numbers: list[int] | None, preactivation: Tensor
) -> None:
    """Raise SettingError unless these are the inactive units of the target that corners count.

    Args:
        directory: of the run, for the message.
        units: (K,) flat indices.
        numbers: indices of the corners, if they count inactive units in flat order.
        preactivation: (N,) distance of f0(t) from the edge (`TargetFeatures.seen_by`). Units near
            zero may be active or inactive: devices differ.
    """
    wrong = partial(impossible, directory)
    count = len(preactivation)
    if units.max() >= count:
        raise wrong(f"unit {int(units.max())}: the layer has units 0 to {count - 1}")
    nothing = 1e-4 * float(preactivation.abs().max())
    active = units[preactivation[units] > nothing]
    if len(active):
        rule = f"unit {int(active[0])} is active in the target, and a corner pushes an inactive one"
        raise wrong(f"{rule} down")
    if numbers is None:
        return
    least = (preactivation < -nothing).cumsum(0) - (preactivation < -nothing).int()
    most = (preactivation < nothing).cumsum(0) - (preactivation < nothing).int()
    corners = torch.tensor(numbers)
    other = (corners < least[units]) | (corners > most[units])
    if other.any():
        place = int(other.int().argmax())
        raise wrong(f"corner {numbers[place]} of the target is not unit {int(units[place])}")
