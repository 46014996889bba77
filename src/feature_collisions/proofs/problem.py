"""What proofs are about: a network, some corners, and what is claimed of their hull."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph.graph import Graph
from ..graph.target import TargetFeatures
from ..simplex import mixes


@dataclass(frozen=True)
class Problem:
    """A verification problem: does all of a hull have the target's class, and its features?

    Attributes:
        graph: of the network, as its caller uses it.
        layer: the target layer.
        corners: (K, C, H, W) whose hull it is.
        target: (C, H, W).
        features: the target's, at the layer.
        target_class: the class claimed; -1: none, as the output is features.
        limit: the largest ||f(x) - f(t)|| over ||f(t)|| claimed.
        names: the corners' numbers, by which results speak of them.
        solved: whether the corners are solutions of the layer's equations (`exact_hull`).
    """

    graph: Graph
    layer: str
    corners: Tensor
    target: Tensor
    features: TargetFeatures
    target_class: int
    limit: float
    names: tuple[int, ...]
    solved: bool = False

    def points(self, weights: Tensor) -> Tensor:
        """Interpolations of the corners: (B, K) weights to (B, C, H, W) images."""
        return mixes(weights, self.corners)

    def margins(self, classes: int, like: Tensor) -> Tensor:
        """(classes - 1, classes) rows of the output: the target's logit less each other one."""
        rows = torch.eye(classes, dtype=torch.float64, device=like.device)
        others = torch.arange(classes, device=like.device) != self.target_class
        return rows[self.target_class] - rows[others]
