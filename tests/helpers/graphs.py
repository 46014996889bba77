"""Graphs of small models, by an image that they take."""

from torch import Tensor, fx, nn

from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import Observed, TargetLayer
from feature_collisions.proofs.piecewise import traced


def traced_for(model: nn.Module, images: Tensor) -> fx.GraphModule:
    """A frozen copy in float64, for images (..., C, H, W)."""
    return traced(trace(model, images.shape[-3:]))


def cut_at(model: nn.Module, layer: str, images: Tensor) -> TargetLayer:
    """The model until a layer, for images (..., C, H, W)."""
    return TargetLayer(trace(model, images.shape[-3:]), layer)


def observed_at(model: nn.Module, layer: str, images: Tensor) -> Observed:
    """The model and its layer, for images (..., C, H, W)."""
    return Observed(trace(model, images.shape[-3:]), layer)
