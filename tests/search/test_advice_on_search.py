"""What a search that did not converge advises."""

import re

import pytest

from feature_collisions import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    SettingError,
    StopSettings,
    find_corners,
)
from feature_collisions.search.losses import check_pairs
from feature_collisions.search.summary import what_to_try
from feature_collisions.settings.search import SearchSettings


@pytest.mark.parametrize(
    ("name", "rate", "composite", "said"),
    [
        ("adam", 2.0, False, "lower optimizer.rate (rates.adam): it is 2, and 0.2 is usual"),
        ("adam", 0.2, False, ""),
        ("adam", 0.5, True, ""),
        ("adam", 0.6, True, "it is 0.6, and 0.5 is usual"),
        ("sobolev", 0.1, False, "lower optimizer.rate: it is 0.1, and 0.01 is usual"),
        ("descent", 4.0, False, ""),
    ],
)
def test_a_rate_above_the_usual_is_named(name, rate, composite, said):
    settings = SearchSettings(optimizer=OptimizerSettings(name, rate))
    advice = what_to_try(settings, 1000, composite)
    assert said in advice
    assert ("usual" in advice) == bool(said)
    assert "raise stop.max_steps or lower loss.beta" in advice
    assert "log.every" not in advice


def test_few_rows_of_the_curves_hide_jumps():
    assert "log.every=2 shows jumps of the loss, which 50 hides" in (
        what_to_try(SearchSettings(), 100)
    )
    assert "log.every" not in what_to_try(SearchSettings(log=LogSettings(every=2)), 100)


def test_a_search_warns_with_this_advice(shift, shift_images):
    stop, optimizer = StopSettings(1e-9, 3, 3, None, None), OptimizerSettings(rate=2.0)
    with pytest.warns(UserWarning, match=re.escape("(rates.adam): it is 2")):
        find_corners(shift, "hidden", *shift_images, [0, 2], stop=stop, optimizer=optimizer)


def test_too_many_corners_to_be_pushed_apart_are_refused_before_a_step(shift, shift_images):
    with pytest.raises(SettingError, match=r"corner=10000 corners: .* at most 5,051 at once"):
        check_pairs(10_000, (1, 28, 28))
    check_pairs(5051, (1, 28, 28))
    with pytest.raises(SettingError, match="at most 5,051 at once"):
        check_pairs(5052, (1, 28, 28))
    loss = LossSettings(push="apart")
    with pytest.raises(SettingError, match=r"corner=60000 corners: are pushed apart"):
        find_corners(shift, "hidden", *shift_images, range(60_000), loss=loss)
