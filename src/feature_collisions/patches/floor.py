"""Whether the search or the sources limit a composite (section 4)."""

from typing import Any

from ..settings.search import LogSettings, LossSettings, OptimizerSettings, StopSettings

_STEPS = 400  # 200 left a pair at 0.34 that reaches 0.25 with 400
_SEEN = 1 / 255  # a step of 8-bit pixels


def alone() -> dict[str, Any]:
    """Settings of a search of a single corner for features only.

    No unit is pushed down, no distance rewarded, no variation penalised, no interior point
    matched, and every pixel has its own logits. The error after these steps of Adam is an upper
    bound on the smallest that the sources allow.
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
    """Say whether the sources or the search cause a feature error `largest` above `limit`.

    Args:
        largest: largest ||f(x) - f(t)|| / ||f(t)|| of the corners and their mean.
        limit: `stop.hull_relative`.
        floor: feature error of a single corner.
        moved: largest change of its pixels, in [0, 1], from the start.

    Example:
        >>> what_limits(0.6, 0.3, 0.5, 0.9).split(": ")[1].split(";")[0]
        'these patches limit them, judged by 400 steps'
    """
    apart = f"features are {largest:.3f} ||f(t)|| apart (stop.hull_relative={limit:g})"
    by_itself = f"a single corner comes to {floor:.3f} in {_STEPS} steps"
    if floor > limit and moved < _SEEN:
        return (
            f"{apart}: these patches limit them; all are alike at each pixel, so "
            "every composite is the same picture. Use other images (patches.root), or "
            "more of them (patches.neighbours)"
        )
    if floor > limit:
        return (
            f"{apart}: these patches limit them, judged by {_STEPS} steps; {by_itself}. More "
            "steps may help, with patches.logits=pixel, and so may larger windows "
            "(patches.surround), or other images (patches.root)"
        )
    return (
        f"{apart}: the search limits them; {by_itself}. Lower loss.distance if it is above 0, "
        "raise stop.max_steps, or give pixels their own logits if they share a grid "
        "(patches.logits=pixel)"
    )
