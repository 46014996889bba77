"""Exact corners against closed forms, and the section's own conditions read again."""

import pytest
import torch
from torch import nn

from feature_collisions.errors import SettingError
from feature_collisions.exact import polytope as polytope_module
from feature_collisions.exact.exact_hull import ExactCorners
from feature_collisions.exact.first_layer import first_layer
from feature_collisions.exact.polytope import Polytope, polytope_of
from feature_collisions.exact.programs import least, least_of_eq2
from feature_collisions.graph.graph import trace
from feature_collisions.settings.solver import OBJECTIVES
from helpers.exact import linear_programs


def random_net(pixels: int = 36, units: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, units), nn.ReLU(), nn.Linear(units, 3))
    return net.requires_grad_(False)


def programs(objective: str, corners: range = range(3), seed: int = 0) -> ExactCorners:
    model = random_net()
    initial, target = torch.rand(2, 1, 6, 6)
    return linear_programs(model, "1", initial, target, corners, objective, seed, nearness=1.0)


def test_the_weight_is_the_layer_s() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    rest = nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    model = nn.Sequential(nn.AvgPool2d(2), conv, nn.BatchNorm2d(3), *rest).eval()
    layer = first_layer(trace(model, (2, 6, 8)), "2")
    images = torch.rand(5, 2, 6, 8, dtype=torch.float64) * 3 - 1
    expected = images.flatten(1) @ layer.weight().mT + layer.bias
    torch.testing.assert_close(layer(images), expected)
    rows = torch.rand(4, 12, dtype=torch.float64)
    torch.testing.assert_close(layer.back(rows), rows @ layer.weight())


def test_a_layer_after_a_bend_is_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    image, target = torch.rand(2, 1, 2, 2)
    with pytest.raises(SettingError, match=r"layer=3: the pixels pass through 2 \(relu\) first"):
        linear_programs(model, "3", image, target, [0])


def test_images_that_make_no_problem_are_refused() -> None:
    model, image = random_net(), torch.rand(1, 6, 6)
    for initial, target, message in (
        (image, image, "initial and target are the same image"),
        (image, image * 2, r"target: pixels must be in \[0, 1\]"),
        (torch.rand(1, 5, 5), torch.rand(1, 5, 5), "rejects an image of 1x5x5"),
    ):
        with pytest.raises(SettingError, match=message):
            linear_programs(model, "1", initial, target, [0])


def polytope(weight: list[list[float]], bias: list[float], target: list[float]) -> Polytope:
    """Of a linear layer of a column of pixels, with a ReLU behind it."""
    linear = nn.Linear(len(target), len(bias))
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        linear.bias.copy_(torch.tensor(bias))
    model = nn.Sequential(nn.Flatten(), linear, nn.ReLU(), nn.Linear(len(bias), 2))
    image = torch.tensor(target).view(1, -1, 1)
    return polytope_of(first_layer(trace(model.eval(), image.shape)), image)


def test_two_pixels_in_closed_form() -> None:
    """x + y is the target's; unit 1 is x - 0.5 and falls as far as the box lets x."""
    found = polytope([[1, 1], [1, 0]], [0, -0.5], [0.3, 0.5])
    for solution in (least_of_eq2(found, 1), least(found, torch.tensor([1.0, 0]).double())):
        assert solution.point.tolist() == pytest.approx([0, 0.8])
    assert least_of_eq2(found, 1).value == pytest.approx(-0.5)


def test_eq2_weighs_the_other_units() -> None:
    """Unit 0 is x - 0.5, unit 1 is 2 x - 1.2: pushing x down costs twice what it gains."""
    found = polytope([[1], [2]], [-0.5, -1.2], [0.2])
    eq2 = least_of_eq2(found, 0)
    assert eq2.point.tolist() == pytest.approx([0.6])
    assert eq2.value == pytest.approx(0.1)
    assert least(found, torch.ones(1).double()).point.tolist() == pytest.approx([0.0])


def test_windows_are_programs_of_their_own() -> None:
    """What one window's unit costs moves that window; Eq. 2 moves the others to their zeros."""
    conv = nn.Conv2d(1, 3, 4, stride=4)
    torch.manual_seed(3)
    nn.init.normal_(conv.weight)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).eval()
    target = torch.rand(1, 8, 8)
    layer = first_layer(trace(model, target.shape))
    found, units = polytope_of(layer, target), (layer(target[None])[0] < 0).nonzero()[:, 0]
    unit = int(units[0])
    way = layer.back(torch.eye(12).double()[[unit]])[0]
    alone, eq2 = least(found, way), least_of_eq2(found, unit)
    values = layer(torch.stack([alone.point, eq2.point]).view(2, 1, 8, 8))
    moved = (alone.point.view(8, 8) != target[0]).nonzero() // 4
    assert len(moved.unique(dim=0)) == 1
    assert values[0, unit] < values[1, unit] + 1e-9
    others = units[units != unit]
    loss = values[1, unit] + values[1, others].abs().sum()
    assert eq2.value == pytest.approx(float(loss), abs=1e-8)
    assert alone.value == pytest.approx(float(values[0, unit] - layer.bias[unit]), abs=1e-8)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_corners_meet_section_2s_conditions_and_no_other_point_is_deeper(objective: str) -> None:
    found = programs(objective)
    hull = found.run()
    target = (hull.model[1](hull.target.flatten())).double()  # type: ignore[operator,index]
    for entry, corner in zip(hull.summary["corners"], hull.corners, strict=True):
        f0 = (hull.model[1](corner.flatten())).double()  # type: ignore[operator,index]
        for own, wanted in zip(f0.tolist(), target.tolist(), strict=True):
            if wanted > 0:
                assert own == pytest.approx(wanted, abs=1e-5)
            elif objective != "eq2":
                assert own <= 1e-5
        assert f0[entry["unit"]] == pytest.approx(entry["unit_preactivation"], abs=1e-5)
    assert hull.corners.min() >= 0
    assert hull.corners.max() <= 1
    if objective == "unit":  # nothing in the hull of the others is lower in a corner's unit
        units = [entry["unit"] for entry in hull.summary["corners"]]
        values = hull.model[1](hull.corners.flatten(1))[:, units]  # type: ignore[operator,index]
        assert (values.diagonal() <= values.amin(0) + 1e-5).all()


def test_the_value_of_eq2_is_its_loss_at_the_corner() -> None:
    found = programs("eq2")
    hull = found.run()
    target = hull.model[1](hull.target.flatten())  # type: ignore[operator,index]
    for unit, corner in zip(found.units.tolist(), hull.corners, strict=True):
        f0 = hull.model[1](corner.flatten())  # type: ignore[operator,index]
        loss = float(f0[unit])
        for j, (own, wanted) in enumerate(zip(f0.tolist(), target.tolist(), strict=True)):
            loss += abs(own) if wanted < 0 and j != unit else 0
        assert least_of_eq2(found.polytope, unit).value == pytest.approx(loss, abs=1e-4)


def test_random_corners_differ_with_the_seed_and_are_the_same_with_the_same() -> None:
    first, again, other = (programs("random", seed=seed).run().corners for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_corners_that_coincide_are_named() -> None:
    """Two units of the same weights are pushed to the same image."""
    model = random_net()
    initial, target = torch.rand(2, 1, 6, 6)
    inactive = (model[1](target.flatten()) < 0).nonzero().flatten()
    model[1].weight.data[inactive[1]] = model[1].weight.data[inactive[0]]
    model[1].bias.data[inactive[1]] = model[1].bias.data[inactive[0]]
    with pytest.warns(UserWarning, match="some corners coincide: corner 1 is 0"):
        linear_programs(model, "1", initial, target, [0, 1, 2], "unit").run()


def test_a_target_that_is_the_polytope_s_one_point_is_refused() -> None:
    """As many active units as pixels."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[1].weight.data = torch.cat([torch.eye(4), -torch.rand(2, 4)])
    model[1].bias.data = torch.tensor([0.1, 0.1, 0.1, 0.1, -1, -1])
    image, target = torch.rand(2, 1, 2, 2)
    with pytest.raises(SettingError, match=r"hides nothing: its 6 values .*none of the 4"):
        linear_programs(model, "1", image, target, [0, 1])


def test_layers_too_large_for_linear_programs_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(polytope_module, "_HELD", 0)
    conv = nn.Conv2d(1, 2, 3, stride=2, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).eval()
    torch.manual_seed(0)
    with pytest.raises(SettingError, match="layer: is too large for linear programs"):
        linear_programs(model, "0", *torch.rand(2, 1, 8, 8), [0], "unit").run()
