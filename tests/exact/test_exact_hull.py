"""What a linear first layer cannot see: closed forms, general solvers, and the model itself."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.spatial import HalfspaceIntersection
from torch import Tensor, nn

from feature_collisions import SettingError, exact_hull
from feature_collisions.exact import nearest
from feature_collisions.exact import polytope as polytope_module
from feature_collisions.exact.first_layer import first_layer
from feature_collisions.exact.polytope import Polytope, polytope_of
from feature_collisions.graph.graph import trace
from feature_collisions.runs.run import load_run


def stem(*layers: nn.Module, features: int, activation: nn.Module | None = None) -> nn.Sequential:
    """A network that begins so; double, and frozen."""
    torch.manual_seed(0)
    rest = [activation or nn.Sigmoid(), nn.Flatten(), nn.Linear(features, 3)]
    model = nn.Sequential(*layers, *rest)
    return model.double().eval().requires_grad_(False)


def polytope(model: nn.Module, target: Tensor) -> Polytope:
    return polytope_of(first_layer(trace(model, target.shape)), target)


def the_same(model: nn.Module, target: Tensor, found: Tensor) -> None:
    """All that the network makes of points (K, n), in float64."""
    images = found.view(-1, *target.shape)
    assert images.min() >= 0
    assert images.max() <= 1
    expected = model(target.double()[None]).expand(len(images), -1)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)


def test_windows_of_which_only_the_sum_is_seen_in_closed_form():
    """Of a 2x2 window the sum stays: the nearest point shifts all pixels by the same."""
    conv = nn.Conv2d(1, 1, 2, stride=2)
    nn.init.ones_(conv.weight)
    model = stem(conv, features=4)
    target, picture = torch.full((1, 4, 4), 0.5), 0.4 + 0.2 * torch.rand(1, 1, 4, 4)
    found = polytope(model, target)
    assert found.hidden == 12
    near, _ = found.nearest(picture.flatten(1).double())
    shift = 0.5 - nn.functional.avg_pool2d(picture.double(), 2)
    expected = picture + nn.functional.interpolate(shift, scale_factor=2.0)
    torch.testing.assert_close(near.view(1, 1, 4, 4), expected)


STEMS = {
    "patches": (nn.Conv2d(2, 5, 4, 4), 20),
    "a batch norm": (nn.Sequential(nn.Conv2d(2, 5, 4, 4), nn.BatchNorm2d(5)), 20),
    "pooled": (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 3, 2, 2)), 12),
    "overlapping": (nn.Conv2d(2, 3, 4, 2, padding=1), 48),
    "flattened": (nn.Sequential(nn.Flatten(), nn.Linear(128, 20)), 20),
    "with gaps": (nn.Conv2d(2, 4, 2, 3), 36),
}
HIDDEN = {"patches": 108, "a batch norm": 108, "pooled": 116, "overlapping": 80, "flattened": 108,
          "with gaps": 128 - 36}  # fmt: skip


@pytest.mark.parametrize("name", STEMS)
def test_no_point_of_the_polytope_is_told_from_the_target(name):
    layers, features = STEMS[name]
    model = stem(layers, features=features)
    target, pictures = torch.rand(2, 8, 8), torch.rand(3, 2, 8, 8)
    found = polytope(model, target)
    assert found.hidden == HIDDEN[name]
    near, _ = found.nearest(pictures.flatten(1).double())
    the_same(model, target, near)
    far, _ = found.apart(3, torch.Generator().manual_seed(0))
    the_same(model, target, far)
    assert torch.pdist(far).mean() > torch.pdist(near).mean()


@pytest.mark.parametrize("name", ["patches", "overlapping"])
def test_rows_that_are_held_and_the_network_itself_say_the_same(name, monkeypatch):
    """The latter's systems are solved by conjugate gradients."""
    model, target = stem(STEMS[name][0], features=STEMS[name][1]), torch.rand(2, 8, 8)
    picture = torch.rand(2, 128).double()
    held, _ = polytope(model, target).nearest(picture)
    monkeypatch.setattr(polytope_module, "_HELD", 0)
    monkeypatch.setattr(polytope_module, "_windows", lambda layer: None)
    monkeypatch.setattr(nearest, "_solved", None)  # which rows that are not held have no use for
    found = polytope(model, target)
    assert found.hidden == HIDDEN[name]
    again, _ = found.nearest(picture)
    torch.testing.assert_close(again, held, rtol=0, atol=1e-8)
    the_same(model, target, again)


def test_rows_that_depend_on_each_other_are_counted_where_they_are_held(monkeypatch):
    conv = nn.Conv2d(2, 3, 4, 2, padding=1)
    with torch.no_grad():
        conv.weight[2] = 2 * conv.weight[0]
    model, target = stem(conv, features=48), torch.rand(2, 8, 8)
    held = polytope(model, target)
    assert (held.hidden, held.counted) == (96, True)
    monkeypatch.setattr(polytope_module, "_HELD", 0)
    found = polytope(model, target)
    assert (found.hidden, found.counted) == (80, False)  # at least so many
    near, _ = found.nearest(torch.rand(1, 128).double())
    the_same(model, target, near)


class Tokens(nn.Module):
    """Patches as rows of a linear layer, with scaling in front: how some transformers begin."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm, self.head = nn.Linear(32, 10), nn.LayerNorm(10), nn.Linear(10, 3)

    def forward(self, images: Tensor) -> Tensor:
        parts = ((images - 0.5) / 0.25).reshape(-1, 2, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
        tokens = self.norm(self.project(parts.reshape(-1, 4, 32)))
        found: Tensor = self.head(tokens.mean(1))
        return found


def test_patches_that_are_moved_before_a_linear_layer_are_windows():
    torch.manual_seed(0)
    model, target = Tokens().double().eval(), torch.rand(2, 8, 8)
    found = polytope(model, target)
    assert (found.hidden, len(found.problems), found.problems[0].pixels.shape) == (88, 1, (4, 32))
    near, _ = found.nearest(torch.rand(2, 128).double())
    with torch.no_grad():
        the_same(model, target, near)


def test_far_points_are_the_corners_that_a_general_solver_finds():
    """Four pixels and one equation: a polytope of three dimensions, whose corners scipy lists."""
    model = stem(nn.Flatten(), nn.Linear(4, 1), features=1)
    target = torch.rand(1, 2, 2)
    weight = model[1].weight[0].numpy()
    basis = np.linalg.svd(weight[None])[2][1:]  # (3, 4), of the hidden directions
    inside = target.flatten().double().numpy()
    halfspaces = np.vstack([np.c_[basis.T, inside - 1], np.c_[-basis.T, -inside]])
    corners = HalfspaceIntersection(halfspaces, np.zeros(3)).intersections @ basis + inside
    directions = torch.randn(50, 4, dtype=torch.float64)
    found, _ = polytope(model, target).nearest(torch.from_numpy(inside) + 1e3 * directions)
    best = corners[(corners @ directions.numpy().T).argmax(0)]
    assert np.abs(found.numpy() - best).max() < 1e-6
    assert len(np.unique(best.round(6), axis=0)) > 4


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardswish()])
def test_units_on_a_flat_side_may_be_anywhere_beyond_its_edge(activation):
    conv = nn.Conv2d(1, 8, 4, stride=4)
    with torch.no_grad():
        conv.weight *= 12  # some units above 6 and below -3
    model = stem(conv, features=32, activation=activation)
    curved = stem(conv, features=32, activation=nn.GELU())
    target, picture = torch.rand(1, 8, 8), torch.rand(1, 64).double()
    found, equal = polytope(model, target), polytope(curved, target)
    assert found.hidden > equal.hidden == 32
    near, _ = found.nearest(picture)
    the_same(model, target, near)
    stricter, _ = equal.nearest(picture)
    assert (near - picture).norm() < 0.999 * (stricter - picture).norm()


def test_a_hull_s_mixes_are_all_the_target_to_the_model():
    model = stem(nn.Conv2d(3, 12, 4, stride=4), features=48)
    target, pictures = torch.rand(3, 8, 8), torch.rand(4, 3, 8, 8)
    for towards in (pictures, 4):
        hull = exact_hull(model, target, towards, seed=1)
        assert hull.layer == "0"
        assert hull.summary["solver"] == "exact"
        assert hull.summary["corner_feature_relative_max"] < 1e-6  # of float32 corners
        sample = hull.sample(50_000)  # twice: 100,000
        assert sample["accuracy"] == 1
        expected = hull.summary["target_probability"]
        assert abs(sample["probability_min"] - expected) < 1e-6
        assert hull.sample(10, uint8=True)["accuracy"] == 1
    assert torch.equal(hull.corners, exact_hull(model, target, 4, seed=1).corners)
    assert not torch.equal(hull.corners, exact_hull(model, target, 4, seed=2).corners)


def test_the_residual_is_proved_by_linearity_and_holds_in_rational_arithmetic():
    model = stem(nn.Conv2d(1, 3, 4, stride=4), features=12)
    target = torch.rand(1, 8, 8)
    hull = exact_hull(model, target, towards=torch.rand(3, 1, 8, 8))
    proof = hull.prove(seconds=0)["collision"]
    assert (proof["by"], proof["share_proved"]) == ("linear", 1)
    weight = [[Fraction(w) for w in row] for row in model[0].weight.flatten(1).tolist()]
    patches = nn.functional.unfold(hull.corners.double() - target.double(), 4, stride=4)
    errors = [
        sum(
            sum(w * Fraction(p) for w, p in zip(row, patch, strict=True)) ** 2
            for row in weight
            for patch in corner.mT.tolist()
        )
        for corner in patches
    ]
    truth = float(max(errors)) ** 0.5 / float(model[0](target.double()[None]).norm())
    assert 0 < truth <= proof["feature_relative_max"] <= truth + 1e-12


def test_the_command_line_finds_corners_near_pictures_and_far(command, tmp_path, capsys):
    for objective in ("near", "random"):
        place = tmp_path / objective
        quick = ("corner=0..2", "wandb.mode=disabled", f"hydra.run.dir={place}")
        assert command("train.py", "solver=exact", f"objective={objective}", *quick) is None
        run = load_run(place)
        assert (run.summary.solver, run.summary.objective) == ("exact", objective)
        assert run.summary.corner_feature_relative_max < 1e-6
        assert {entry.predicted_class for entry in run.summary.corners} == {7}
        assert run.units.tolist() == [-1, -1, -1]


class Beside(nn.Module):
    """The pixels go past the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 2, 4, 4), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.stem(images).flatten(1)) + images.sum((1, 2, 3))[:, None]
        return found.sigmoid().log()


def test_what_cannot_be_used_is_refused():
    target, narrow = torch.rand(1, 8, 8), stem(nn.Conv2d(1, 2, 4, 4), features=8).float()
    wide = stem(nn.Conv2d(1, 16, 4, 4), features=64).float()
    bent = stem(nn.ReLU(), nn.Conv2d(1, 2, 4, 4), features=8).float()
    for model, given, towards, layer, message in (
        (wide, target, 3, "auto", "layer=0: .*hides nothing"),
        (bent, target, 3, "auto", r"pass through 0 \(relu\) before any linear layer"),
        (narrow, target, 3, "2", "layer=2: .*pass through 1"),
        (narrow, target, 3, "nope", "layer=nope: is not a layer"),
        (Beside(), target, 3, "stem", "layer=stem: .*bypasses it"),
        (narrow, target, torch.rand(2, 1, 4, 4), "auto", "towards: .*1x4x4.*1x8x8"),
        (narrow, target, torch.rand(2, 1, 8, 8) * 2, "auto", r"towards: .*\[0, 1\]"),
        (narrow, target, 0, "auto", "towards=0: must be"),
        (narrow, target, "photos", "auto", "towards: must be pictures"),
        (narrow, target * 2, 3, "auto", r"target: pixels must be in \[0, 1\]"),
        (narrow, target.double(), 3, "auto", "target: must be a float32 image"),
        (narrow, torch.rand(3, 8, 8), 3, "auto", "rejects an image of 3x8x8"),
    ):
        with pytest.raises(SettingError, match=message):
            exact_hull(model, given, towards, layer)
