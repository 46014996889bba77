"""Everything follows the tensors it is given: one device through a search and all its figures."""

import pytest
import torch
from torch import nn

from feature_collisions import Hull, find_corners
from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.settings.evaluate import (
    EdgeSettings,
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WorstCaseSettings,
)
from feature_collisions.settings.search import LossSettings, StopSettings
from helpers.elsewhere import DEVICE, Elsewhere, elsewhere
from helpers.hulls import made_hull

SETTINGS = EvaluateSettings(
    samples=40,
    worst_case=WorstCaseSettings(starts=3, steps=4),
    plain=PlainSettings(3),
    edges=EdgeSettings(share=1.0, resume=False),
    proof=ProofSettings(0.2),
)
NAMES = ("a", "b", "c", "d")


@pytest.fixture(params=[True, False], ids=["float64", "no float64"])
def other(request):
    """A device with float64, as CUDA's have it, or without, as Apple's."""
    with elsewhere(float64=request.param):
        yield request.param


def moved(hull):
    return Hull(
        hull.model.to(DEVICE), hull.layer, hull.corners, hull.initial, hull.target, hull.units,
        hull.summary,
    )  # fmt: skip


def test_tensors_of_two_devices_do_not_meet():
    """What the tests below rely on."""
    with elsewhere(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=DEVICE) + torch.ones(2)
    with elsewhere(float64=False), pytest.raises(TypeError, match="no float64"):
        torch.ones(2, device=DEVICE).double()


def test_an_evaluation_finds_the_same_wherever_the_hull_lies(tmp_path, other):
    hull = made_hull(3, (1, 12, 12))
    here = evaluate(hull, lambda: 2.0, SETTINGS, tmp_path)
    there = moved(hull)
    assert isinstance(there.corners, Elsewhere)
    found = evaluate(there, lambda: 2.0, SETTINGS, tmp_path)
    assert "failed" not in here
    for result in (here, found):
        del result["proof"]["class"]["seconds"]
    assert found == here


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_search_runs_from_where_the_model_lies_and_leaves_it_there(other):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    images = torch.rand(2, 1, 8, 8)
    settings = {"loss": LossSettings(3.0, 0.1, hull=2), "stop": StopSettings(0.05, 50, 50)}
    here = find_corners(model, "1", *images, range(3), **settings)
    model.to(DEVICE)
    hull = find_corners(model, "1", *images, range(3), **settings)
    assert isinstance(model[1].weight, Elsewhere)
    assert isinstance(hull.corners, Elsewhere)
    assert hull.corners.cpu().equal(here.corners)
    del hull.summary["seconds"], hull.summary["seconds_total"]
    assert hull.summary == {key: here.summary[key] for key in hull.summary}
    assert hull.sample(50) == here.sample(50)
