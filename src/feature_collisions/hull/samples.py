"""Figures over sampled points of a hull."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..data.devices import device_for
from ..graph.target import TargetFeatures, positive
from ..runs.evaluation import Sample
from .outputs import Output, on_device

_MERGED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
}


class HullStatistics:
    """Figures over points of a hull (Tables 1 to 4), with constant memory.

    A figure's name ends in `sum`, `max` or `min`: so figures of two sets of points are merged. They
    are float64 or whole, on the device of the target's features, or on the CPU if it lacks float64.
    Nothing is synchronised before `compute`.

    Args:
        target: the target's features.
        output: compares the network's outputs with the target's.
    """

    def __init__(self, target: TargetFeatures, output: Output) -> None:
        self.device = device_for(target.preactivation.device)
        self.target = TargetFeatures(target.preactivation.to(self.device), target.activation)
        self.output = on_device(output, self.device)
        self.figures: dict[str, Tensor] = {}

    def update(self, outputs: Tensor, preactivation: Tensor) -> None:
        """Add points.

        Args:
            outputs: (B, D) of the network.
            preactivation: (B, N) at the target layer.
        """
        preactivation = preactivation.to(self.device)
        oriented = self.target.oriented(preactivation)
        norms = positive(oriented, self.target.values, self.target.active)
        own = {
            "samples_sum": torch.tensor(len(outputs)),
            "feature_max": self.target.error(preactivation).max().double(),
            "positive_max": norms.max().double(),
            "kept_sum": ((oriented <= 0) & ~self.target.active).sum(),
        }
        self.merge(own | self.output.figures(outputs.to(self.device)))

    def merge(self, figures: dict[str, Tensor]) -> None:
        """Add the figures of other points."""
        for name, value in figures.items():
            merged, value = _MERGED[name.rpartition("_")[2]], value.to(self.device)
            known = self.figures.get(name)
            self.figures[name] = value if known is None else merged(known, value)

    def compute(self) -> Sample:
        """The entries of one sampler in `evaluation.json`; None if undefined.

        `feature_relative_max` is the largest ||f(x) - f(t)|| / ||f(t)||. It counts inactive units
        above zero, so it is all that later layers see if no branch bypasses the layer.
        `positive_relative_max`, the largest L_pos of Eq. 2 / ||f(t)||, does not count them.
        """
        found: dict[str, Any] = {name: value.tolist() for name, value in self.figures.items()}
        samples, inactive = found["samples_sum"], int((~self.target.active).sum())
        norm = float(self.target.features.norm())
        return Sample(
            samples=samples,
            feature_relative_max=found["feature_max"] / norm if norm else None,
            positive_relative_max=found["positive_max"] / norm if norm else None,
            inactive_kept=found["kept_sum"] / (samples * inactive) if inactive else None,
        ) | self.output.entries(found)
