"""`trainer.precision=auto`: where the device has bfloat16 and the first gradient allows it."""

import pytest
import torch
from torch import nn

from feature_collisions.search.find_corners import Search, find_corners
from feature_collisions.settings import trainer as machine
from feature_collisions.settings.search import LossSettings, StopSettings

AUTO = {"accelerator": "cpu", "precision": "auto"}
STOP = StopSettings(None, 30, 30)


def network(offset=0.0):
    """`offset`, added and taken off again, leaves nothing of the image in bfloat16."""
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)]
    with torch.no_grad():
        layers[2].bias -= layers[2].weight.sum(1) * offset
        layers[1].bias += offset
    return nn.Sequential(*layers)


@pytest.fixture
def pair():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def fast(monkeypatch, answer):
    monkeypatch.setattr(machine, "bfloat16_is_fast", lambda accelerator: answer)


@pytest.mark.filterwarnings("ignore:not converged")
def test_bfloat16_is_taken_where_it_is_fast_and_agrees(pair, monkeypatch):
    fast(monkeypatch, True)
    hull = find_corners(network(), "2", *pair, range(3), stop=STOP, trainer=AUTO)
    mixed = {"accelerator": "cpu", "precision": "bf16-mixed"}
    given = find_corners(network(), "2", *pair, range(3), stop=STOP, trainer=mixed)
    assert torch.equal(hull.corners, given.corners)
    assert hull.summary["precision"] == given.summary["precision"] == "bf16-mixed"
    assert hull.summary["precision_reason"].startswith("auto: the first gradients in bfloat16")
    assert "precision_reason" not in given.summary


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(("has_it", "offset"), [(False, 0.0), (True, 200.0)])
def test_float32_is_taken_where_it_is_not(pair, monkeypatch, has_it, offset):
    fast(monkeypatch, has_it)
    loss = LossSettings.paper(positive_form="half_square")
    settings = {"loss": loss, "stop": STOP}
    hull = find_corners(network(offset), "2", *pair, range(3), **settings, trainer=AUTO)
    full = {"accelerator": "cpu", "precision": "32-true"}
    given = find_corners(network(offset), "2", *pair, range(3), **settings, trainer=full)
    assert torch.equal(hull.corners, given.corners)
    assert hull.summary["precision"] == "32-true"
    assert hull.summary["precision_reason"].startswith("auto: ")


def test_a_search_that_was_compared_has_not_begun(pair, monkeypatch):
    fast(monkeypatch, True)
    module = Search(network(), "2", *pair, range(3), stop=STOP, trainer=AUTO).module
    assert module.step == 0
    assert module.per_batch is None
    assert module.parameterisation.pixels.grad is None
    assert torch.equal(module.parameterisation.pixels.detach(), pair[:1].expand(3, -1, -1, -1))


def test_a_model_in_float64_stays_there(pair, monkeypatch):
    fast(monkeypatch, True)
    search = Search(network().double(), "2", *pair, range(3), stop=STOP, trainer=AUTO)
    assert search.precision == {"precision": "64-true"}
