"""Adam, and the paper's fixed-rate descent (Algorithm 1)."""

from collections.abc import Iterable

import torch
from torch import nn

from ..settings.search import OptimizerSettings


def make_optimizer(
    settings: OptimizerSettings, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimiser that `optimizer` names.

    `descent` with `average` a > 0 steps along a running mean of the gradient, a times the old
    plus 1 - a times the new, as the authors' experiments do; the mean starts at the first gradient.
    """
    if settings.name == "adam":
        betas = (0.9, float(settings.square_average))
        return torch.optim.Adam(parameters, lr=settings.rate, betas=betas, fused=True)
    average = settings.average
    return torch.optim.SGD(parameters, lr=settings.rate, momentum=average, dampening=average)


def rate_at(settings: OptimizerSettings, step: int, max_steps: int) -> float:
    """The rate of step `step`: of its stage, or on the line from `rate` to `final_rate`."""
    if settings.stages:
        rates = [stage.rate for stage in settings.stages if step >= stage.step]
        return rates[-1] if rates else settings.rate
    share = step / max_steps
    return settings.rate * (1 - share) + settings.final_rate * share
