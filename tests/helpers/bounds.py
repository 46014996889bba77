"""Bounds of a network's logits over one piece, by their values at its vertices."""

import torch
from torch import Tensor, fx

from feature_collisions.proofs.bounds.over_pieces import Bounds
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.relaxation import rounding


def bounds_of(network: fx.GraphModule, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Forward: lower and upper bound (K, classes)."""
    last = piece(network, corners).at[-1]
    return (last.middle - last.radius)[0], (last.middle + last.radius)[0]


def backward(network: fx.GraphModule, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Backward, by two lines: lower and upper bound (K, classes)."""
    bounds = piece(network, corners)
    rows = torch.eye(bounds.steps[-1].size, dtype=torch.float64)
    both = bounds.lower(len(bounds.steps) - 1, torch.cat([rows, -rows]))[0]
    return both[: len(rows)].T, -both[len(rows) :].T


def spread(network: fx.GraphModule, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Backward, by one line and deviations from it: lower and upper bound (K, classes)."""
    bounds = piece(network, corners)
    rows = torch.eye(bounds.steps[-1].size, dtype=torch.float64)
    below, above = bounds.spread(len(bounds.steps) - 1, rows).ends()
    return below[0].T, above[0].T


def piece(network: fx.GraphModule, corners: Tensor) -> Bounds:
    """All bounds over the simplex of corners (K, C, H, W), float64."""
    error = rounding(len(corners), corners)
    return Bounds(steps_of(network, corners[0]), corners[None], error[None])
