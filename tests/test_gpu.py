"""Every path on a real GPU finds what it finds on the CPU; skipped where there is none."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from feature_collisions import Hull, find_corners, load_run
from feature_collisions.data.devices import without_tf32
from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.patches.composite import Sources
from feature_collisions.patches.database import PatchDatabase
from feature_collisions.patches.nearest_patches import exact_search
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.evaluate import EvaluateSettings, PlainSettings, ProofSettings
from feature_collisions.settings.search import LossSettings, StopSettings
from helpers.defaults import stop_at_once
from helpers.hulls import made_hull

pytestmark = pytest.mark.gpu
STOP = StopSettings(0.05, 100, 100)


@pytest.fixture(autouse=True)
def exact():
    with without_tf32():
        yield


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip


def assert_near(found, expected, where=""):
    """Figures of two devices: numbers to a thousandth, everything else the same."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_near(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for k, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_near(one, other, f"{where}[{k}]")
    elif "probability_histogram[" in where:
        assert abs(found - expected) <= 2, where  # a point between two bins
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-3), where
    else:
        assert found == expected, where


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(
    "settings", [{}, {"loss": LossSettings.paper(3.0, 0.1, hull=4, output=0.1)}]
)
def test_a_search_finds_the_same(settings, tmp_path):
    model, images = network(), torch.rand(2, 3, 32, 32)
    trainer = {"precision": "64-true"}
    found = []
    for place in ("cpu", "cuda"):
        directory = tmp_path / place
        hull = find_corners(
            model.to(place), "6", *images, range(3), stop=STOP, trainer=trainer,
            directory=directory, channels_last=place == "cuda", **settings,
        )  # fmt: skip
        assert hull.corners.device.type == place
        assert model[0].weight.device.type == place
        hull.save(directory)
        found.append(load_run(directory))
    torch.testing.assert_close(found[1].corners, found[0].corners, rtol=0, atol=1e-3)
    assert torch.equal(found[0].units, found[1].units)


def test_a_model_on_a_gpu_is_searched_with_images_on_the_cpu():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 32), nn.ReLU(inplace=True), nn.Linear(32, 4)
    model = nn.Sequential(*layers).cuda()
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    stop = stop_at_once(0.05, max_steps=200, probability=None)
    hull = find_corners(model, "1", *images, range(3), stop=stop)
    assert model[1].weight.is_cuda
    assert hull.sample(100)["accuracy"] == 1
    assert hull.corners.is_cuda
    assert hull.worst_case(2, 3).image.is_cuda
    assert prove_class(hull.problem)["share_proved"] > 0


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_every_precision_runs(precision):
    images = torch.rand(2, 3, 32, 32, device="cuda")
    trainer = {"accelerator": "gpu", "precision": precision}
    hull = find_corners(network(), "6", *images, range(2), stop=STOP, trainer=trainer)
    assert hull.corners.isfinite().all()
    assert hull.corners.dtype == torch.float32


def test_an_evaluation_finds_the_same(tmp_path):
    settings = EvaluateSettings(
        samples=500, plain=PlainSettings(20), proof=ProofSettings(0.0, False)
    )
    settings.edges = replace(settings.edges, share=1.0, resume=False)
    hull = made_hull(3, (1, 12, 12))
    expected = evaluate(hull, lambda: {1: 2.0}, settings, tmp_path)
    there = Hull(
        hull.model.cuda(), hull.layer, hull.corners, hull.initial, hull.target, hull.units,
        hull.summary,
    )  # fmt: skip
    found = evaluate(there, lambda: {1: 2.0}, settings, tmp_path)
    assert not found.failed
    found, expected = found.entries(), expected.entries()
    worst = [result.pop("worst_case_weights") for result in (found, expected)]
    torch.testing.assert_close(*map(torch.tensor, worst), rtol=0, atol=0.05)
    for result in (found, expected):
        for edge in result["edges"]["edges"]:
            edge.pop("rounding")
    assert_near(found, expected)


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("grid", [None, 4])
def test_a_search_of_composites_finds_the_same(grid):
    model, images = network(), torch.rand(2, 3, 32, 32)
    places = torch.tensor([(r, c) for r in range(-2, 32, 8) for c in range(-2, 32, 8)])
    sources = Sources(torch.rand(len(places), 3, 14, 14), *places.unbind(1), (32, 32))
    stop = StopSettings(None, 10, 10)
    loss = LossSettings.paper(
        3.0, 0.1
    )  # at the start R's slope is the sign of what rounding leaves
    found = [
        find_corners(model.to(place), "6", *images, range(3), loss=loss, stop=stop, sources=sources,
                     grid=grid).corners.cpu()
        for place in ("cpu", "cuda")
    ]  # fmt: skip
    torch.testing.assert_close(*found, rtol=0, atol=1e-3)


def test_a_patch_search_finds_the_same(tmp_path):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(60, 3, 8, 8, generator=generator)
    images = nn.functional.interpolate(coarse, 64, mode="bilinear")
    images = (255 * images).to(torch.uint8)
    database = PatchDatabase(images, None, torch.arange(60), 16, 4, tmp_path)
    queries = torch.rand(20, 3, 16, 16, generator=generator)
    left_out = torch.zeros(60, dtype=torch.bool)
    expected = exact_search(database, queries, 2, left_out, False)
    found = exact_search(database, queries.cuda(), 2, left_out, False)
    assert torch.equal(found.image, expected.image)
    torch.testing.assert_close(found.distance, expected.distance)
