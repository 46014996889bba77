"""The content of `summary.json`, for corners of any solver."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph.graph import Graph
from ..graph.probabilities import gives_probabilities
from ..graph.target import TargetFeatures, logits_of, positive, preactivation_of
from ..hull.outputs import Output
from ..runs.records import Corner, Summary
from ..settings.search import SearchSettings
from .losses import negative


def class_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (B, classes) of images (B, C, H, W), in eval mode."""
    return logits_of(model, images).softmax(1)


def summarise(
    graph: Graph,
    layer: str,
    pair: tuple[Tensor, Tensor],
    images: Tensor,
    corners: Sequence[int],
    units: Tensor,
    features: TargetFeatures,
    output: Output,
    **others: Any,
) -> Summary:
    """Figures of the corners as saved (float32), and the settings of their problem.

    Args:
        graph: graph of the classifier.
        layer: the target layer.
        pair: the initial image and the target, (C, H, W) each.
        images: (K, C, H, W), the corners.
        corners: their K indices.
        units: (K,) the unit that each pushes down.
        features: the target's, in the dtype of pre-activations.
        output: compares the network's outputs with the target's.
        others: further entries about the search.
    """
    outputs = logits_of(graph.model, torch.stack([pair[0], *images]))
    preactivation = preactivation_of(graph, layer, images, features.features.dtype)
    scale = 1 if len(pair[0]) == 1 else 255
    distances = torch.pdist(images.flatten(1)) * scale
    norm, error = float(features.features.norm()), float(features.error(preactivation).max())
    found = Summary.model_construct(
        classifier=type(graph.model).__name__,
        layer=layer,
        returns="probabilities" if gives_probabilities(graph.model) else "logits",
        distance_scale=scale,
        corner_feature_relative_max=error / norm if norm else None,
        corner_distance_mean=float(distances.mean()) if len(distances) else None,
        corners=corner_records(
            corners, units, preactivation, features, output.of_images(outputs[1:])
        ),
        **others,
    )
    return Summary.model_validate((found | output.of_pair(outputs[0])).entries())


def corner_records(
    corners: Sequence[int],
    units: Tensor,
    preactivation: Tensor,
    target: TargetFeatures,
    said: Sequence[Corner],
) -> list[Corner]:
    """Figures of each corner.

    Args:
        corners: indices of the K corners.
        units: (K,) the unit that each pushes down.
        preactivation: (K, N) f0 of the corners as saved.
        target: the target's features.
        said: outputs of the network (`Output.of_images`).
    """
    oriented = target.oriented(preactivation)
    norms = positive(oriented, target.values, target.active)
    pushed = bool((units >= 0).all())
    known = units if pushed else torch.zeros_like(units)
    negatives = negative(oriented, ~target.active, known)
    sides = target.sides(known)
    norm = float(target.features.norm())

    found = [
        Corner(corner=corner, positive=size, positive_relative=size / norm if norm else None) | each
        for corner, size, each in zip(corners, norms.tolist(), said, strict=True)
    ]
    if pushed:
        for k, entry in enumerate(found):
            entry.unit, entry.side = int(units[k]), sides[k]
            entry.negative = float(negatives[k])
            entry.unit_preactivation = float(preactivation[k, units[k]])
    return found


_USUAL_RATES = {"adam": 0.2, "sobolev": 0.01}  # of pixels
_OF_LOGITS = 0.5  # of Adam on composites
_FEW_ROWS = 10  # between which a jump of the loss is not seen


def what_to_try(settings: SearchSettings, steps: int, composite: bool = False) -> str:
    """Advice for a search of `steps` steps that did not converge.

    Args:
        settings: of the search.
        steps: taken.
        composite: whether it optimised logits of composites, whose rates are larger.
    """
    name, rate = settings.optimizer.name, settings.optimizer.rate
    usual = _OF_LOGITS if composite and name == "adam" else _USUAL_RATES.get(name, rate)
    advice = "raise stop.max_steps or lower loss.beta"
    if rate > usual:
        setting = "optimizer.rate (rates.adam)" if name == "adam" else "optimizer.rate"
        advice = f"lower {setting}: it is {rate:g}, and {usual:g} is usual; or {advice}"
    if steps < _FEW_ROWS * settings.log.every:
        few = f"log.every={max(1, steps // 50)} shows jumps of the loss"
        advice += f"; {few}, which {settings.log.every} hides"
    return advice
