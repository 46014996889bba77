"""Rules that settings share; each message says the setting, its value and the rule."""

import math
from itertools import pairwise

from .errors import SettingError


def at_least(name: str, value: float, bound: float) -> None:
    """Raise SettingError unless `value` is a finite number of at least `bound`."""
    if not (math.isfinite(value) and value >= bound):
        raise SettingError(f"{name}={value}: must be a finite number of at least {bound}")


def rising(name: str, steps: list[int]) -> None:
    """Raise SettingError unless the stages' `steps` rise, from 1 or later."""
    if any(step <= before for before, step in pairwise([0, *steps])):
        raise SettingError(
            f"{name}: stages begin at steps {steps}; they must rise, from 1 or later"
        )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise SettingError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise SettingError(f"{name}={value}: must be one of {', '.join(allowed)}")
