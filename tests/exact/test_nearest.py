"""The nearest point of a polytope, told by the conditions of Karush, Kuhn and Tucker."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls

from feature_collisions.errors import SettingError
from feature_collisions.exact.first_layer import Sides
from feature_collisions.exact.polytope import Windows
from feature_collisions.runs.run import load_run
from feature_collisions.search.find_corners import find_corners
from feature_collisions.settings.search import LossSettings, StopSettings
from helpers.defaults import plain_optimizer
from helpers.exact import linear_programs


class Constraints(NamedTuple):
    """equal x = value, below x <= limit, 0 <= x <= 1, all of which `inside` fulfils."""

    equal: np.ndarray
    value: np.ndarray
    below: np.ndarray
    limit: np.ndarray
    inside: np.ndarray


def problem(seed, equal=3, below=6, pixels=12):
    """Constraints that some x in [0, 1] fulfils, a few of them with equality."""
    draw = np.random.default_rng(seed)
    inside = draw.uniform(0, 1, pixels).round(1)  # some pixels at 0 and 1
    e, b = draw.normal(size=(equal, pixels)), draw.normal(size=(below, pixels))
    slack = np.maximum(0, draw.normal(size=below))
    return draw.normal(0.5, 1.5, pixels), Constraints(e, e @ inside, b, b @ inside + slack, inside)


def nearest_point(point, constraints):
    """Of one window whose pixels are all there are."""
    rows = torch.from_numpy(np.vstack([constraints.equal, constraints.below]))
    count, pixels = rows.shape
    side = torch.from_numpy(np.r_[constraints.value, constraints.limit])
    sides = Sides(torch.arange(count) < len(constraints.equal), torch.ones(count).double(), side)
    windows = Windows(rows, torch.arange(pixels)[None], torch.arange(count)[None])
    given = torch.from_numpy(point)[None, None]
    found = windows.problem(sides).nearest(given, torch.from_numpy(constraints.inside), 1e-12)
    return found.points[:, 0].numpy(), found.steps


def unexplained(point, x, constraints):
    """How much of point - x no multipliers of the right signs explain: 0 at the optimum alone."""
    near = 1e-7
    at_limit = constraints.below[constraints.below @ x >= constraints.limit - near]
    unit = np.eye(len(x))
    columns = [*constraints.equal, *-constraints.equal, *at_limit, *-unit[x <= near]]
    columns += [*unit[x >= 1 - near]]
    return nnls(np.array(columns).T, point - x)[1]


@pytest.mark.parametrize("seed", range(20))
def test_the_optimum_is_told_by_its_conditions(seed):
    point, constraints = problem(seed)
    x, steps = nearest_point(point, constraints)
    assert x.min() >= 0
    assert x.max() <= 1
    assert np.abs(constraints.equal @ x - constraints.value).max() < 1e-8
    assert (constraints.below @ x - constraints.limit).max() < 1e-8
    assert unexplained(point, x, constraints) < 1e-6
    assert steps < 50
    aside = x.clip(0.1, 0.9)  # the conditions can fail
    assert np.array_equal(aside, x) or unexplained(point, aside, constraints) > 1e-3


def test_a_general_solver_finds_the_same():
    point, constraints = problem(3)
    e, b = constraints, constraints
    general = minimize(
        lambda x: ((x - point) ** 2).sum() / 2, np.full(12, 0.5), jac=lambda x: x - point,
        method="SLSQP", bounds=[(0, 1)] * 12, options={"ftol": 1e-12, "maxiter": 500},
        constraints=[
            {"type": "eq", "fun": lambda x: e.equal @ x - e.value},
            {"type": "ineq", "fun": lambda x: b.limit - b.below @ x},
        ],
    )  # fmt: skip
    assert np.abs(nearest_point(point, constraints)[0] - general.x).max() < 1e-5


@pytest.mark.parametrize("copies", [1, 3])
def test_rows_that_say_the_same_twice_do_no_harm(copies):
    point, once = problem(5)
    e, b = np.tile(once.equal, (copies, 1)), np.tile(once.below, (copies, 1))
    value, limit = np.tile(once.value, copies), np.tile(once.limit, copies)
    again = Constraints(e, value, b, limit, once.inside)
    x = nearest_point(point, again)[0]
    assert np.abs(x - nearest_point(point, once)[0]).max() < 1e-6


def test_gradient_descent_on_the_loss_finds_the_same_corner(shift, shift_images):
    """`shift`'s hidden layer is the pixels less 1/2: Eq. 4 with `nearness`, where it is exact."""
    initial, target = shift_images
    exact = linear_programs(shift, "hidden", initial, target, [0], "near", nearness=2.0).run()
    inactive = (target.flatten() < 0.5).nonzero().flatten()
    best = initial.flatten().clone()
    best[target.flatten() >= 0.5] = target.flatten()[target.flatten() >= 0.5]
    best[inactive] = best[inactive].clamp_max(0.5)
    best[inactive[0]] = (initial.flatten()[inactive[0]] - 1 / 2).clamp(0, 0.5)
    torch.testing.assert_close(exact.corners[0].flatten(), best, rtol=0, atol=1e-6)

    # L_neg holds the other inactive units at 1/2; with one of them there is nothing to hold.
    found = find_corners(
        shift, "hidden", initial, target, [0],
        loss=LossSettings.paper(10.0, 1.0, nearness=2.0),
        optimizer=plain_optimizer(rate=0.02), stop=StopSettings(None, 2000, 2000, None, None),
        trainer={"accelerator": "cpu"},
    )  # fmt: skip
    own = inactive[0]
    assert abs(found.corners.flatten()[own] - best[own]) < 1e-2


def test_nearness_must_be_given(shift, shift_images):
    with pytest.raises(SettingError, match=r"loss\.nearness=0: objective=near .*must be above 0"):
        linear_programs(shift, "hidden", *shift_images, [0], "near")


def test_the_experiment_that_keeps_its_picture(command, tmp_path):
    """Nearer to the 3 than Eq. 2's optimum, and the same features to rounding."""
    place = tmp_path / "near"
    quick = ("corner=0..1", "wandb.mode=disabled", f"hydra.run.dir={place}")
    assert command("train.py", "experiment=mnist_near", *quick) is None
    run = load_run(place)
    assert (run.summary["objective"], run.summary["hull_relative"]) == ("near", 0.05)
    assert max(entry["positive_relative"] for entry in run.summary["corners"]) < 1e-6
    assert {entry["predicted_class"] for entry in run.summary["corners"]} == {7}
    apart = (run.corners - run.initial).flatten(1).norm(dim=1)
    assert 5.9 < apart.min() <= apart.max() < 6.4
