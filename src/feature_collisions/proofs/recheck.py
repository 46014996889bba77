"""Recheck the class on a segment in interval arithmetic.

A walk finds breakpoints in floating point. If a network amplifies rounding, it can miss some, and
logits at a few points do not reveal it. Bounds that include rounding do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .bounds.over_pieces import Bounds
from .bounds.relaxation import rounding
from .bounds.steps import Step

_TOGETHER = 64
_NARROWEST = 2.0**-24  # of a segment
_PIECES = 2048  # for one stretch


def unconfirmed(
    steps: Sequence[Step],
    ends: Tensor,
    target_class: int,
    intervals: Sequence[tuple[float, float]],
    pieces: int = _PIECES,
) -> float:
    """Length of the intervals on which no positive bound on the class's margin is found.

    Args:
        steps: of the network, float64.
        ends: (2, C, H, W) of the segment, float64.
        target_class: the class.
        intervals: parts of the segment, from 0 to 1.
        pieces: largest number of pieces to bound; the rest counts as not confirmed.
    """
    classes = torch.arange(steps[-1].size, device=ends.device)
    rows = torch.eye(len(classes), dtype=torch.float64, device=ends.device)
    rows = rows[target_class] - rows[classes != target_class]
    waiting = [(low, high) for low, high in intervals if high > low]
    lost, count = 0.0, 0
    while waiting:
        now, waiting = waiting[-_TOGETHER:], waiting[:-_TOGETHER]
        if count >= pieces:
            return lost + sum(high - low for low, high in (*now, *waiting))
        count += len(now)
        shares = ends.new_tensor(now).view(-1, 2, *[1] * (ends.ndim - 1))
        points = ends[0] + shares * (ends[1] - ends[0])
        error = rounding(4, ends.abs().sum(0).expand_as(points))
        bounds = Bounds(steps, points, error)
        held = (bounds.lower(len(steps) - 1, rows).amin((1, 2)) > 0).tolist()
        for (low, high), good in zip(now, held, strict=True):
            middle = (low + high) / 2
            if not good and high - low > _NARROWEST:
                waiting += [(low, middle), (middle, high)]
            elif not good:
                lost += high - low
    return lost
