"""What `summary.json` says of corners, however they were found."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..networks.target import TargetFeatures, logits_of
from .losses import negative, positive


def class_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, classes), the model in eval mode."""
    return logits_of(model, images).softmax(1)


def summary_of(
    corners: Sequence[int],
    units: Tensor,
    preactivation: Tensor,
    target: TargetFeatures,
    probabilities: Tensor,
) -> dict[str, Any]:
    """The classes, and each corner's figures.

    Args:
        corners: numbers of the K corners.
        units: (K,) the unit each pushed down.
        preactivation: (K, N) f0 of the corners as they are saved.
        target: the target's features.
        probabilities: (2 + K, classes) of the initial image, the target and the corners.
    """
    oriented = target.oriented(preactivation)
    norms = positive(oriented, target.values, target.active)
    negatives = negative(oriented, ~target.active, units)
    sides = target.sides(units)
    norm = float(target.features.norm())
    initial_class, target_class, *classes = probabilities.argmax(1).tolist()
    entries = [
        {
            "corner": corner,
            "unit": int(units[k]),
            "side": sides[k],
            "positive": float(norms[k]),
            "positive_relative": float(norms[k]) / norm if norm else None,
            "negative": float(negatives[k]),
            "unit_preactivation": float(preactivation[k, units[k]]),
            "predicted_class": classes[k],
            "probability": float(probabilities[k + 2, target_class]),
        }
        for k, corner in enumerate(corners)
    ]
    return {
        "initial_class": initial_class,
        "target_class": target_class,
        "target_probability": float(probabilities[1, target_class]),
        "corners": entries,
    }
