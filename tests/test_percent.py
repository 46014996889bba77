"""Shares in words."""

import pytest

from feature_collisions.percent import percent, share_of


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100 %"), (0, "0 %"), (0.25, "25 %"), (0.29, "29 %"), (0.303, "30.3 %"),
        (0.9985, "99.85 %"), (0.99999, "99.999 %"), (0.00021, "0.021 %"), (-0.1, "-10 %"),
        (0.61999, "61.9 %"), (1 - 1e-16, "100 %"),
    ],
)  # fmt: skip
def test_only_nothing_and_the_whole_are_0_and_100_percent(share, text):
    assert percent(share) == text


def test_nothing_is_called_none():
    assert share_of(0.0, "the area") == "none of the area"
    assert share_of(0.125, "the area") == "12.5 % of the area"
    assert percent(0.5, "+") == "+50 %"


def test_failures_are_rounded_up():
    assert percent(0.12345, up=True) == "12.4 %"
    assert percent(0.99999, up=True) == "99.999 %"
    assert percent(0.5, up=True) == "50 %"
