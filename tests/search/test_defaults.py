"""What `find_corners` does unless it is told otherwise: it must mean something for any network."""

import warnings
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from feature_collisions import LossSettings, OptimizerSettings, StopSettings, find_corners
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LogSettings, SearchSettings
from helpers.settings import settings


def perceptron():
    """What the first page about own networks took, with its two images of noise."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    return nn.Sequential(nn.Flatten(), *layers), *torch.rand(2, 1, 8, 8)


def convolutions():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(784, 10),
    )  # fmt: skip
    return model, *torch.rand(2, 3, 16, 16)


def test_one_thing_has_one_default():
    """From Python, from the classes and from the command line, where no experiment says more."""
    python = {each.name: each for each in fields(Search)}
    for each in fields(SearchSettings):
        assert python[each.name].default_factory is each.default_factory
        assert python[each.name].default == each.default
    small = settings("experiment=small_pixel", "classifier.path=a:b", "corner=0")
    assert small.loss == LossSettings()
    assert small.optimizer == OptimizerSettings()
    assert small.stop == StopSettings()
    imagenet = settings("experiment=squeezenet_pixel", "corner=0")
    assert imagenet.loss == replace(LossSettings(), hull_edges=0)  # measured: they only cost size
    assert imagenet.optimizer == replace(OptimizerSettings(), rate=0.12)
    assert imagenet.stop == replace(StopSettings(), positive_relative=0.2, max_steps=1500)


def test_a_search_ends_when_sizes_have_levelled_off_unless_it_is_told_to_stop_early():
    model, initial, target = perceptron()
    loose = {"positive_relative": 10.0, "probability": None, "max_steps": 60}
    for least, steps in ((None, 60), (0, 20)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the initial image meets the goal
            hull = find_corners(
                model, "1", initial, target, range(2), log=LogSettings(every=20),
                stop=StopSettings(min_steps=least, **loose),
            )  # fmt: skip
        assert hull.summary.steps == steps


def test_a_goal_that_is_met_before_the_first_step_is_told():
    """`positive=5` was the default; here L_pos is 0.68 at the start, and the class is the same."""
    model, initial, target = perceptron()
    absolute = StopSettings(5.0, max_steps=50, positive_relative=None, probability=None)
    message = r"initial image meets the goal before .* L_pos is 0\.67\d, where .* is 1\.34"
    with pytest.warns(UserWarning, match=message):
        find_corners(model, "1", initial, target, range(3), stop=absolute)
    with warnings.catch_warnings():  # where nothing is asked for, nothing can be met
        warnings.simplefilter("error")
        no_goal = StopSettings(None, 5, 5, None, None)
        find_corners(model, "1", initial, target, range(3), stop=no_goal)


@pytest.mark.parametrize("layer", ["hidden1", "hidden2"])
def test_digits_collide_by_default(classifier, digits, layer):
    initial, target = (digits.test.find("", digit).image for digit in (3, 7))
    assert_collides(find_corners(classifier, layer, initial, target))


@pytest.mark.parametrize(
    ("made", "layer"),
    [(perceptron, "1"), (perceptron, "auto"), (convolutions, "0"), (convolutions, "auto")],
)
def test_networks_of_any_features_collide_by_default(made, layer):
    model, initial, target = made()
    assert_collides(find_corners(model, layer, initial, target))


def assert_collides(hull):
    """The corners, and what lies between them, where features are as large as they may be."""
    assert hull.summary["converged"]
    assert hull.summary["steps"] >= 500
    assert max(entry["positive_relative"] for entry in hull.summary["corners"]) < 0.1
    found = hull.sample(1000)
    assert found["accuracy"] == 1
    assert found["positive_relative_max"] < 0.15
    assert found["probability_mean"] == pytest.approx(hull.summary["target_probability"], abs=0.05)
    assert hull.corner_distances().min() > 0.1


def test_the_layer_that_auto_takes_is_named():
    model, initial, target = convolutions()
    stop = StopSettings(None, 5, 5, None, None)
    assert find_corners(model, "auto", initial, target, stop=stop).summary["layer"] == "2"


def test_one_default_may_be_changed_alone():
    loss = LossSettings(beta=0.01)
    assert (loss.beta, loss.alpha, loss.hull) == (0.01, 100, 2)
    assert LossSettings.paper(beta=0.01).alpha == 1
    assert [StopSettings(max_steps=steps).least for steps in (1, 1000)] == [1, 1000]
