"""Searches that stop at a collision, by Adam as PyTorch has it."""

from typing import Any

from feature_collisions.settings.search import OptimizerSettings, StopSettings


def plain_optimizer(
    name: str = "adam", rate: float = 0.1, *rest: Any, **given: Any
) -> OptimizerSettings:
    """Adam's own decay of squares, and a rate of 0.1, where nothing else is given."""
    return OptimizerSettings(name, rate, *rest, **{"square_average": 0.999} | given)


def stop_at_once(positive: float | None = None, **given: Any) -> StopSettings:
    """At the first look at which all corners have collided."""
    return StopSettings(positive, **{"min_steps": 0} | given)
