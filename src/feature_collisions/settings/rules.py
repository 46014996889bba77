"""Rules that settings share; each message says the setting, its value and the rule."""

import math
import sys
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from ..errors import SettingError

STEPS = 10**9  # more than anybody waits for
SEED = 2**32 - 1  # what every generator takes
SIDE = 4096  # pixels of an image's side: one of 16,384 takes 3 GB


def at_least(name: str, value: Any, bound: float, most: float = math.inf) -> None:
    """Raise SettingError unless `value` is a finite number from `bound` to `most`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and bound <= value <= min(most, sys.float_info.max)):
        limit = "" if most == math.inf else f" and at most {most}"
        raise SettingError(name, value, f"must be a finite number of at least {bound}{limit}")


def whole(name: str, value: Any, bound: int, most: int) -> None:
    """Raise SettingError unless `value` is a whole number from `bound` to `most`."""
    at_least(name, value, bound, most)
    if not isinstance(value, Integral):
        raise SettingError(name, value, "must be a whole number, without a decimal point")


def rising(name: str, steps: list[int]) -> None:
    """Raise SettingError unless the stages' `steps` rise, from 1 or later."""
    for number, step in enumerate(steps):
        whole(f"{name}[{number}].step", step, 0, STEPS)
    if any(step <= before for before, step in pairwise([0, *steps])):
        raise SettingError(
            name, None, f"stages begin at steps {steps}", "they must rise, from 1 or later"
        )


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise SettingError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise SettingError(name, value, f"must be one of {', '.join(allowed)}")
