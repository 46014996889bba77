"""Rules of settings: each is written once, in the type of its field.

`alpha: Annotated[float, AtLeast(0)]` is a float for Hydra and type checkers. `Group.check` also
requires it to be finite and at least 0.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from ..errors import SettingError

STEPS = 10**9  # more than any search takes
SEED = 2**32 - 1  # the largest seed of all generators
SIDE = 4096  # pixels of an image's side; an image of 16,384 takes 3 GB


def at_least(name: str, value: Any, bound: float, most: float = math.inf) -> None:
    """Raise SettingError unless `value` is a finite number from `bound` to `most`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and bound <= value <= min(most, sys.float_info.max)):
        limit = "" if most == math.inf else f" and at most {most}"
        rule = f"must be a finite number of at least {bound}{limit}"
        raise SettingError(name, str(value), rule)


def whole(name: str, value: Any, bound: int, most: int) -> None:
    """Raise SettingError unless `value` is a whole number from `bound` to `most`."""
    at_least(name, value, bound, most)
    if not isinstance(value, Integral):
        raise SettingError(name, value, "must be a whole number, without a decimal point")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise SettingError unless `value` is one of `allowed`."""
    if value not in allowed:
        rule = f"must be one of {', '.join(map(str, allowed))}"
        raise SettingError(name, str(value), rule)


Rule = Callable[[str, Any], None]
"""Raises SettingError for a setting, by its name and value."""


def AtLeast(low: float, high: float = math.inf) -> Rule:
    """A finite number from `low` to `high`."""
    return lambda name, value: at_least(name, value, low, high)


def Whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`."""
    return lambda name, value: whole(name, value, low, high)


def OneOf(*allowed: Any) -> Rule:
    """One of several words or numbers."""
    return lambda name, value: one_of(name, value, allowed)


def Share(usual: str, above_0: bool = False, below_1: bool = False) -> Rule:
    """A number in [0, 1], without open ends; `usual` is a suggestion for the message."""
    ends = f"{'(' if above_0 else '['}0, 1{')' if below_1 else ']'}"

    def check(name: str, value: Any) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        end = (value == 0 and above_0) or (value == 1 and below_1)
        if not number or end or not 0 <= value <= 1:
            raise SettingError(name, str(value), f"must be in {ends}", usual)

    return check


NonNegative = Annotated[float, AtLeast(0)]
Limit = Annotated[float | None, AtLeast(0)]
Steps = Annotated[int, Whole(1, STEPS)]
Side = Annotated[int, Whole(1, SIDE)]
WandbMode = Annotated[str, OneOf("online", "offline", "disabled")]
Order = Annotated[str, OneOf("flat", "inactive_first")]
Seed = Annotated[int, Whole(0, SEED)]


class Group:
    """A dataclass of settings.

    Attributes:
        group: its name on the command line: `loss` of `loss.alpha`.
    """

    group: ClassVar[str] = ""

    def validate(self) -> None:
        """Raise SettingError for the first setting that breaks the rule of its type.

        Subclasses check rules across settings.
        """
        check_fields(self, self.group and f"{self.group}.")


def check_fields(settings: object, prefix: str) -> None:
    """Check the fields of a dataclass, and of the groups and stages in it, by their types' rules.

    Args:
        settings: a dataclass.
        prefix: prefix of the fields' names on the command line.
    """
    for field, hint in get_type_hints(type(settings), include_extras=True).items():
        value, name = getattr(settings, field), f"{prefix}{field}"
        if isinstance(hint, type) and issubclass(hint, Group):
            if not isinstance(value, hint):
                kind = hint.__name__
                remedy = f"give feature_collisions.{kind}(...)"
                raise SettingError(name, str(value), f"must be a {kind}", remedy)
            value.validate()
        for number, stage in enumerate(value if isinstance(value, list) else []):
            if is_dataclass(stage):
                check_fields(stage, f"{name}[{number}].")
        for rule in getattr(hint, "__metadata__", ()):
            if value is not None or type(None) not in get_args(hint.__origin__):
                rule(name, value)


def check_rising(name: str, stages: Sequence[Any]) -> None:
    """Raise SettingError unless the stages' steps increase and start at 1 or later."""
    steps = [stage.step for stage in stages]
    if any(step <= before for before, step in pairwise([0, *steps])):
        rule = f"stages begin at steps {steps}"
        raise SettingError(name, None, rule, "they must increase and start at 1 or later")
