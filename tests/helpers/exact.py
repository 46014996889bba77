"""Corners that push units, by position as a search takes its problem."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from feature_collisions.exact.exact_hull import ExactCorners
from feature_collisions.exact.programs import Pushed


def linear_programs(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    corners: Sequence[int],
    objective: str = "eq2",
    seed: int = 0,
    corner_order: str = "flat",
    nearness: float = 0.0,
    **others: Any,
) -> ExactCorners:
    """The problem, checked and ready to run."""
    towards = Pushed(corners, objective, corner_order, nearness)
    return ExactCorners(model, target, towards, layer, seed, initial=initial, **others)
