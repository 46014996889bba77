"""The problem of a proof: a network, corners, and statements about their hull."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..graph.graph import Graph
from ..graph.target import TargetFeatures
from ..simplex import mixes


@dataclass(frozen=True)
class Problem:
    """A verification problem: does all of a hull have the target's class and features?

    Attributes:
        graph: graph of the caller's network.
        layer: the target layer.
        corners: (K, C, H, W) of the hull.
        target: (C, H, W).
        features: the target's features at the layer.
        target_class: the class to prove; -1 if the output is features.
        limit: the limit of ||f(x) - f(t)|| / ||f(t)|| to prove.
        names: indices of the corners in results.
        solved: whether the corners solve the layer's equations (`exact_hull`).
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
        """Rows (classes - 1, classes) of the output: the target's logit minus each other one."""
        rows = torch.eye(classes, dtype=torch.float64, device=like.device)
        others = torch.arange(classes, device=like.device) != self.target_class
        return rows[self.target_class] - rows[others]


class Cover(NamedTuple):
    """Subdomains that cover the hull, or a part of it, and what is known of each.

    Attributes:
        least: (K,) the part is all weights of at least these; zeros for the whole hull.
        weights: (n, K, K) of the subdomains' vertices.
        holds: (n,) whether the statement is known to hold on each.
    """

    least: Tensor
    weights: Tensor
    holds: Tensor


Keep = Callable[[list[Cover]], None]
"""Takes a cover of the hull, then one of the part that the proved size rests on, if any."""
