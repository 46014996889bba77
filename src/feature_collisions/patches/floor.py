"""What limits a composite: the search, or what its sources can say (section 4)."""

from typing import Any

from ..settings.search import LogSettings, LossSettings, OptimizerSettings, StopSettings

_STEPS = 400  # half as many left a pair at 0.34 that 400 bring to 0.25
_SEEN = 1 / 255  # a step of 8-bit pixels


def alone() -> dict[str, Any]:
    """The settings of a search for the features that sources allow, for a single corner.

    Nothing but the features counts: no unit is pushed down, no distance rewarded, no roughness
    penalised, no point between corners matched; every pixel has its own logits. What these
    steps of Adam reach is an upper bound on what the sources allow.
    """
    return {
        "loss": LossSettings(beta=0.0, hull=0),
        "optimizer": OptimizerSettings(rate=0.25),
        "stop": StopSettings(None, _STEPS, _STEPS, None, None),
        "log": LogSettings(every=_STEPS),
        "grid": None,
        "directory": None,
        "ckpt_path": None,
    }


def what_limits(largest: float, limit: float, floor: float, moved: float) -> str:
    """Whether sources or search keep features `largest` apart, where `limit` was wanted.

    Args:
        largest: of the corners and their mean, the largest ||f(x) - f(t)|| over ||f(t)||.
        limit: `stop.hull_relative`.
        floor: what a single corner comes to.
        moved: the largest difference of a pixel in [0, 1] that it came by from the start.

    Example:
        >>> what_limits(0.6, 0.3, 0.5, 0.9).split(": ")[1].split(";")[0]
        'these patches limit them as far as 400 steps tell'
    """
    apart = f"features are {largest:.3f} ||f(t)|| apart (stop.hull_relative={limit:g})"
    by_itself = f"a single corner comes to {floor:.3f} in {_STEPS} steps"
    if floor > limit and moved < _SEEN:
        return (
            f"{apart}: these patches limit them; at each pixel all of them are alike, so "
            "every composite is the same picture. Other images can say more (patches.root), or "
            "more of them (patches.neighbours)"
        )
    if floor > limit:
        return (
            f"{apart}: these patches limit them as far as {_STEPS} steps tell; {by_itself}. More "
            "steps may say more, with patches.logits=pixel; so can larger windows "
            "(patches.surround), or other images (patches.root)"
        )
    return (
        f"{apart}: the search limits them; {by_itself}. Lower loss.distance if it is above 0, "
        "raise stop.max_steps, or give pixels their own logits if they share a grid "
        "(patches.logits=pixel)"
    )
