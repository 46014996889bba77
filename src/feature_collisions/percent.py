"""Shares as people write them: `99.85 %`, `none of the area`."""

import math


def percent(share: float, sign: str = "", up: bool = False) -> str:
    """A share in percent, rounded down to a tenth, and further near 0 and 100 %.

    Only nothing is `0 %`, and only the whole is `100 %`.

    Args:
        share: of 1.
        sign: `+` also writes the sign of positive shares.
        up: round up, for a share of failures.

    Example:
        >>> percent(1.0), percent(0.25), percent(0.9985), percent(0.00021)
        ('100 %', '25 %', '99.85 %', '0.021 %')
    """
    size = abs(share)
    left = min(size, abs(1 - size))  # to the nearer end, of which two digits are shown
    digits = max(1, -1 - math.floor(math.log10(left))) if left > 1e-12 else 1
    scaled = size * 100 * 10**digits
    shown = (math.ceil(scaled - 1e-6) if up else math.floor(scaled + 1e-6)) / 10**digits
    text = f"{math.copysign(shown, share):{sign}.{digits}f}"
    return f"{text.rstrip('0').rstrip('.')} %"


def share_of(share: float, whole: str) -> str:
    """`none of the area`, or `12.5 % of the area`."""
    return f"{percent(share) if share else 'none'} of {whole}"
