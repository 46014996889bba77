"""When bounds have to be there: what takes long looks at the clock on its way."""

import time


class OutOfTime(Exception):
    """The time for bounds is over before they are there."""


def check_time(until: float) -> None:
    """Raise OutOfTime after `until`, by the monotonic clock."""
    if time.monotonic() > until:
        raise OutOfTime
