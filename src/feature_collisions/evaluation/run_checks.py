"""Check that an untrusted run directory agrees with its classifier.

Whether its files agree with each other is checked when they are read (`runs.run`).
"""

from collections.abc import Iterator, Sequence
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
    output = output_of(summary.output, outputs[1])
    pairs = [
        (name, summary[name], value, 1.0)
        for name, value in output.of_pair(outputs[0]).figures().items()
        if isinstance(value, float)
    ]
    for said, seen in zip(summary.corners, found, strict=True):
        pairs += _figures(said, seen, norm)
    for name, value, true, scale in pairs:
        if not abs(value - true) <= _ROUNDING * max(scale, abs(true)):
            rule = f"{name}={value} in summary.json, where the classifier gives {true:.6g}"
            raise impossible(run.directory, rule)
    for said, seen in zip(summary.corners, found, strict=True):
        if said.side not in (None, seen.side):
            raise impossible(
                run.directory,
                f"unit {seen.unit} is {said.side} what the layer sees in summary.json, and "
                f"{seen.side} it in truth",
            )


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


def _figures(said: Corner, seen: Corner, norm: float) -> Iterator[tuple[str, float, float, float]]:
    """A corner's figures: name, value in the summary, true value, and scale."""
    yield "probability", said.probability, seen.probability, 1
    yield "cosine", said.cosine or 0.0, seen.cosine or 0.0, 1
    yield "output_relative", said.output_relative or 0.0, seen.output_relative or 0.0, 1
    yield "positive", said.positive, seen.positive, norm
    yield "unit_preactivation", said.unit_preactivation, seen.unit_preactivation, norm
    yield "negative", said.negative, seen.negative, norm + abs(seen.negative)
    if said.positive_relative is not None:
        yield "positive_relative", said.positive_relative, seen.positive_relative or 0.0, 1


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
    count = len(preactivation)
    if units.max() >= count:
        raise impossible(
            directory, f"unit {int(units.max())}: the layer has units 0 to {count - 1}"
        )
    nothing = 1e-4 * float(preactivation.abs().max())
    active = units[preactivation[units] > nothing]
    if len(active):
        rule = f"unit {int(active[0])} is active in the target, and a corner pushes an inactive one"
        raise impossible(directory, f"{rule} down")
    if numbers is None:
        return
    least = (preactivation < -nothing).cumsum(0) - (preactivation < -nothing).int()
    most = (preactivation < nothing).cumsum(0) - (preactivation < nothing).int()
    corners = torch.tensor(numbers)
    other = (corners < least[units]) | (corners > most[units])
    if other.any():
        place = int(other.int().argmax())
        raise impossible(
            directory, f"corner {numbers[place]} of the target is not unit {int(units[place])}"
        )
