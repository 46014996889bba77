"""When a search is over: what every corner must have reached."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..settings.search import StopSettings


@dataclass(frozen=True)
class Goal:
    """What the corners must have reached, as `stop` says.

    Args:
        stop: the limits.
        norm: ||f(t)||, which `stop.positive_relative` is relative to.
        target_class: the class the classifier gives the target.
        target_probability: the probability it gives that class there.
    """

    stop: StopSettings
    norm: float
    target_class: int
    target_probability: float

    def late(self, positive: Tensor) -> dict[str, Tensor]:
        """Which corners' features are too far off, by reason.

        Args:
            positive: (K,) L_pos, the norm.

        Returns:
            (K,) bool by reason; `{}` in a reason stands for the corners it is true of.
        """
        stop, reasons = self.stop, {}
        if stop.positive is not None:
            reason = f"L_pos of corners {{}} is not under stop.positive={stop.positive:g}"
            reasons[reason] = ~(positive < stop.positive)
        if stop.positive_relative is not None:
            limit = stop.positive_relative
            reason = f"L_pos of corners {{}} is not under stop.positive_relative={limit:g} ||f(t)||"
            reasons[reason] = ~(positive < limit * self.norm)
        return reasons

    def misclassified(self, probabilities: Tensor) -> dict[str, Tensor]:
        """Which corners the classifier tells from the target, by reason.

        Args:
            probabilities: (K, classes).
        """
        if self.stop.probability is None:
            return {}
        off = (probabilities[:, self.target_class] - self.target_probability).abs()
        limit = self.stop.probability
        reason = f"the probability of corners {{}} is not within stop.probability={limit:g} "
        return {
            "corners {} are not of the target's class": (
                probabilities.argmax(1) != self.target_class
            ),
            reason + "of the target's": ~(off <= limit),
        }


def unmet(reasons: dict[str, Tensor], corners: Sequence[int]) -> list[str]:
    """The reasons that are true of some corner, with those corners named."""
    return [
        reason.format([corner for corner, true in zip(corners, late.tolist(), strict=True) if true])
        for reason, late in reasons.items()
        if late.any()
    ]


def all_met(reasons: dict[str, Tensor]) -> bool:
    """Whether no reason is true of any corner."""
    return not reasons or not bool(torch.stack(list(reasons.values())).any())
