"""Everything follows the tensors it is given: one device through a search and all its figures."""

import pytest
import torch
from torch import nn

from feature_collisions import Hull, find_corners, load_run
from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.evaluation.lattice import explored
from feature_collisions.evaluation.survey import measure
from feature_collisions.exact.programs import depth
from feature_collisions.patches import composite_kernel
from feature_collisions.patches.composite import Sources
from feature_collisions.patches.database import PatchDatabase
from feature_collisions.patches.nearest_patches import exact_search
from feature_collisions.proofs.faces import prove_faces
from feature_collisions.report.report import write_report
from feature_collisions.settings.evaluate import (
    EdgeSettings,
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WorstCaseSettings,
)
from feature_collisions.settings.search import (
    LogSettings,
    LossSettings,
    StopSettings,
)
from helpers.clocks import count_pieces
from helpers.defaults import plain_optimizer
from helpers.elsewhere import DEVICE, Elsewhere, elsewhere, searching_there
from helpers.exact import linear_programs
from helpers.hulls import NAMES, collided, evaluated, made_hull
from helpers.searches import APART

SETTINGS = EvaluateSettings(
    samples=40,
    worst_case=WorstCaseSettings(starts=3, steps=4),
    plain=PlainSettings(3),
    edges=EdgeSettings(share=1.0, resume=False),
    proof=ProofSettings(0.2),
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Modes of PyTorch's, which `elsewhere` is made of, hold in one thread."""
    for module in ("hull.evaluator", "proofs.judge"):
        monkeypatch.setattr(f"feature_collisions.{module}.threads_of_cpu", lambda: 1)
    count_pieces(monkeypatch)  # two runs are compared: no wall time may part them


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


def timeless(found):
    """What was found, without how long it took."""
    if isinstance(found, dict):
        return {key: timeless(each) for key, each in found.items() if key != "seconds"}
    return found


def test_tensors_of_two_devices_do_not_meet():
    """What the tests below rely on."""
    with elsewhere(), pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device=DEVICE) + torch.ones(2)
    with elsewhere(float64=False), pytest.raises(TypeError, match="no float64"):
        torch.ones(2, device=DEVICE).double()


def test_an_evaluation_finds_the_same_wherever_the_hull_lies(tmp_path, other):
    hull = made_hull(3, (1, 12, 12))
    here = evaluate(hull, lambda: {1: 2.0}, SETTINGS, tmp_path)
    there = moved(hull)
    assert isinstance(there.corners, Elsewhere)
    found = evaluate(there, lambda: {1: 2.0}, SETTINGS, tmp_path)
    assert "failed" not in here
    assert timeless(found.entries()) == timeless(here.entries())


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_search_runs_from_where_the_model_lies_and_leaves_it_there(other):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    images = torch.rand(2, 1, 8, 8)
    settings = {"loss": LossSettings.paper(3.0, 0.1, hull=2), "stop": StopSettings(0.05, 50, 50)}
    here = find_corners(model, "1", *images, range(3), **settings)
    sampled = here.sample(50)
    model.to(DEVICE)
    hull = find_corners(model, "1", *images, range(3), **settings)
    assert isinstance(model[1].weight, Elsewhere)
    assert isinstance(hull.corners, Elsewhere)
    assert hull.corners.cpu().equal(here.corners)
    timed = {"seconds": 0.0, "seconds_total": 0.0}
    assert hull.summary | timed == here.summary | timed
    assert hull.sample(50) == sampled


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 196, 24), nn.ReLU(),
        nn.Linear(24, 4),
    )  # fmt: skip


def pasted():
    places = torch.tensor(
        [(row, column) for row in range(-2, 16, 4) for column in range(-2, 16, 4)]
    )
    windows = torch.rand(len(places), 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Sources(windows, *places.unbind(1), (16, 16))


EVERYTHING = LossSettings.paper(
    3.0, 0.1, hull=4, hull_edges=2, distance=0.3, nearness=0.1, output=0.2, rectified=True
)
COMPOSITES = {
    "loss": LossSettings.paper(3.0, 0.1, gamma=0.01, distance=0.1),
    "stop": StopSettings(None, 20, 20, hull_relative=1e-6),  # so that what limits it is asked
}


@pytest.mark.filterwarnings("ignore:not converged", "ignore:features are")
@pytest.mark.parametrize(
    "settings",
    [
        {"loss": EVERYTHING},
        {"loss": EVERYTHING, "corners_per_batch": 1},
        {"optimizer": plain_optimizer("descent", 0.01, 0.001), "corner_order": "inactive_first"},
        {"optimizer": plain_optimizer("sobolev", 0.01, average=0.9)},
        COMPOSITES,
        COMPOSITES | {"grid": 3, "corner_order": "inactive_first"},
    ],
    ids=[
        "all losses",
        "in parts",
        "descent",
        "smooth gradients",
        "composites",
        "composites on a grid",
    ],
)
def test_every_step_of_a_search_runs_where_the_trainer_says(other, tmp_path, monkeypatch, settings):
    """With images and sources on the CPU, as they are read."""
    monkeypatch.setattr(composite_kernel, "usable", lambda logits: False)  # rounds otherwise
    monkeypatch.setattr("feature_collisions.patches.floor._STEPS", 20)
    common = {"loss": APART, "stop": StopSettings(None, 40, 40), "log": LogSettings(20, 20)}
    settings = common | settings
    if settings["loss"].gamma:
        settings["sources"] = pasted()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    here = find_corners(convolutions(), "3", *images, range(3), **settings)
    with searching_there():
        model = convolutions().to(DEVICE)
        hull = find_corners(model, "3", *images, range(3), **settings, directory=tmp_path)
    assert isinstance(hull.corners, Elsewhere)
    assert (hull.corners.cpu() - here.corners).abs().max() < 1e-5
    assert ("floor" in hull.summary) == ("sources" in settings)
    hull.save(tmp_path)
    assert torch.equal(load_run(tmp_path).corners, hull.corners.cpu())


def test_the_report_shows_the_same(tmp_path, other):
    hulls = made_hull(4, (1, 12, 12)), moved(made_hull(4, (1, 12, 12)))
    found = []
    for hull, name in zip(hulls, ("here", "there"), strict=True):
        (tmp_path / name).mkdir()
        result = evaluated(hull, tmp_path / name)
        write_report(tmp_path / name, hull, result, NAMES)
        found.append((tmp_path / name / "report.md").read_text())
    assert found[0] == found[1]
    assert explored(hulls[0], NAMES) == explored(hulls[1], NAMES)


def test_what_is_proved_is_the_same(other):
    found = []
    for hull in (collided(), moved(collided())):
        proofs = hull.prove(seconds=10) | {"faces": prove_faces(hull.problem, 10)}
        found.append(timeless(proofs.entries()))
    assert found[0]["class"]["outcome"] == "proved"
    assert found[0] == found[1]


def test_a_survey_measures_the_same(other):
    hulls = made_hull(4, (1, 12, 12)), moved(made_hull(4, (1, 12, 12)))
    found = [measure(hull, {1: 1.0}, SETTINGS) for hull in hulls]
    assert found[0] == found[1]


def test_a_patch_search_finds_the_same(tmp_path, other):
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.interpolate(torch.rand(20, 3, 6, 6, generator=generator), 28)
    database = PatchDatabase((255 * images).byte(), None, torch.arange(20), 7, 3, tmp_path)
    queries = torch.rand(9, 3, 7, 7, generator=generator)
    left_out = torch.arange(20) == 3
    here, there = (
        exact_search(database, each, 2, left_out, False) for each in (queries, queries.to(DEVICE))
    )
    assert all(map(torch.equal, here, there))


@pytest.mark.parametrize("objective", ["unit", "eq2"])
def test_linear_programs_leave_the_hull_where_the_model_lies(other, objective):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
    images = torch.rand(2, 1, 6, 6)
    here = linear_programs(model, "1", *images, range(3), objective).run()
    there = linear_programs(model.to(DEVICE), "1", *images.to(DEVICE), range(3), objective).run()
    assert isinstance(there.corners, Elsewhere)
    assert torch.equal(there.corners.cpu(), here.corners)
    there.summary["solver"] = "gradient"
    assert depth(there)["share"]
