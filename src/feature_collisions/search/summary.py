"""What `summary.json` says of corners, however they were found."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.graph import Graph
from ..graph.probabilities import gives_probabilities
from ..graph.target import TargetFeatures, logits_of, positive, preactivation_of
from ..runs.records import Corner, Summary
from .losses import negative


def class_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, classes), the model in eval mode."""
    return logits_of(model, images).softmax(1)


OF_UNITS = ("unit", "side", "negative", "unit_preactivation")
"""What a corner's entry has where it pushes a unit."""


def summarise(
    graph: Graph,
    layer: str,
    pair: tuple[Tensor, Tensor],
    images: Tensor,
    corners: Sequence[int],
    units: Tensor,
    features: TargetFeatures,
    **others: Any,
) -> Summary:
    """The figures of corners as they are saved (float32), and the problem that they solve.

    Args:
        graph: of the classifier.
        layer: the target layer.
        pair: the initial image and the target, (C, H, W) each.
        images: (K, C, H, W), the corners.
        corners: their K numbers.
        units: (K,) the unit each pushed down.
        features: the target's, in the dtype that pre-activations are computed in.
        others: what is known of the search.
    """
    probabilities = class_probabilities(graph.model, torch.stack([*pair, *images]))
    preactivation = preactivation_of(graph, layer, images, features.features.dtype)
    scale = 1 if len(pair[0]) == 1 else 255
    distances = torch.pdist(images.flatten(1)) * scale
    norm, error = float(features.features.norm()), float(features.error(preactivation).max())
    initial_class, target_class = probabilities[:2].argmax(1).tolist()
    return Summary(
        classifier=type(graph.model).__name__,
        layer=layer,
        returns="probabilities" if gives_probabilities(graph.model) else "logits",
        initial_class=initial_class,
        target_class=target_class,
        target_probability=float(probabilities[1, target_class]),
        distance_scale=scale,
        corner_feature_relative_max=error / norm if norm else None,
        corner_distance_mean=float(distances.mean()) if len(distances) else None,
        corners=corner_records(corners, units, preactivation, features, probabilities),
        **others,
    )


def corner_records(
    corners: Sequence[int],
    units: Tensor,
    preactivation: Tensor,
    target: TargetFeatures,
    probabilities: Tensor,
) -> list[Corner]:
    """Each corner's figures.

    Args:
        corners: numbers of the K corners.
        units: (K,) the unit each pushed down.
        preactivation: (K, N) f0 of the corners as they are saved.
        target: the target's features.
        probabilities: (2 + K, classes) of the initial image, the target and the corners.
    """
    oriented = target.oriented(preactivation)
    norms = positive(oriented, target.values, target.active)
    pushed = bool((units >= 0).all())
    known = units if pushed else torch.zeros_like(units)
    negatives = negative(oriented, ~target.active, known)
    sides = target.sides(known)
    norm, target_class = float(target.features.norm()), int(probabilities[1].argmax())

    def of_unit(k: int) -> dict[str, Any]:
        if not pushed:
            return {}
        return {
            "unit": int(units[k]),
            "side": sides[k],
            "negative": float(negatives[k]),
            "unit_preactivation": float(preactivation[k, units[k]]),
        }

    return [
        Corner(
            corner=corner,
            positive=float(norms[k]),
            positive_relative=float(norms[k]) / norm if norm else None,
            predicted_class=int(probabilities[k + 2].argmax()),
            probability=float(probabilities[k + 2, target_class]),
            **of_unit(k),
        )
        for k, corner in enumerate(corners)
    ]
