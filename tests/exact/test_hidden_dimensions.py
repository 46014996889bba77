"""How many directions a layer sees: known ranks, in closed form or by a whole Jacobian."""

import pytest
import torch
from torch import nn

from feature_collisions import exact_hull
from feature_collisions.exact.hidden import hidden_dimensions, rounded
from feature_collisions.hull.hull import Hull
from helpers.hulls import made_hull


def at(model: nn.Module, layer: str, size: tuple[int, ...]) -> Hull:
    """A hull of random images at a layer."""
    images = torch.rand(4, *size)
    units = torch.zeros(2, dtype=torch.int64)
    return Hull(model, layer, images[2:], images[0], images[1], units, made_hull(2).summary)


def narrow(width: int) -> nn.Sequential:
    """Behind a layer that bends, one of `width` units that all are active."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 30), nn.Sigmoid(), nn.Linear(30, width), nn.ReLU(),
        nn.Linear(width, 3),
    )  # fmt: skip
    nn.init.constant_(model[3].bias, 10.0)
    return model.eval()


@pytest.mark.parametrize("width", [1, 7, 30, 45])
def test_a_deep_layer_s_rank_is_that_of_its_narrowest(width):
    hull = at(narrow(width), "3", (1, 8, 8))
    found = hidden_dimensions(hull, 5)
    assert found["seen_dimensions"] == min(width, 30)
    assert found["hidden_dimensions"] == 64 - min(width, 30)
    assert found["hidden_dimensions_exact"]


def test_what_the_time_does_not_allow_is_at_least():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 256), nn.Sigmoid(), nn.Linear(256, 200),
                          nn.ReLU(), nn.Linear(200, 3)).eval()  # fmt: skip
    nn.init.constant_(model[3].bias, 10.0)
    hull = at(model, "3", (1, 16, 16))
    short, whole = hidden_dimensions(hull, 0), hidden_dimensions(hull, 60)
    assert 0 < short["seen_dimensions"] < whole["seen_dimensions"] == 200
    assert (short["hidden_dimensions_exact"], whole["hidden_dimensions_exact"]) == (False, True)


def test_the_class_of_every_mix_follows_from_the_residual_in_one_piece():
    """However far the corners are apart, what later layers see of the hull is tiny."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 12, 4, stride=4)
    model = nn.Sequential(stem, nn.GELU(), nn.Conv2d(12, 8, 2), nn.SiLU(), nn.Flatten(),
                          nn.Linear(72, 3)).eval()  # fmt: skip
    hull = exact_hull(model, torch.rand(3, 16, 16), 5)
    proof = hull.prove(seconds=20)["class"]
    assert (proof["outcome"], proof["pieces"]) == ("proved", 1)
    ranked = hull.target_logits.sort().values
    assert proof["margin_min"] == pytest.approx(float(ranked[-1] - ranked[-2]), abs=1e-4)


def test_an_exact_hull_says_what_its_layer_sees_and_what_rounding_does():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 12, 4, stride=4)
    model = nn.Sequential(stem, nn.Sigmoid(), nn.Flatten(), nn.Linear(48, 3)).eval()
    hull = exact_hull(model, torch.rand(3, 8, 8), 3)
    found = hidden_dimensions(hull, 0)
    assert (found["seen_dimensions"], found["hidden_dimensions"]) == (48, 144)
    rounding = rounded(hull)["rounding"]
    assert rounding["float64"] < 1e-12 < rounding["float32"] < 1e-6 < rounding["uint8"] < 0.02
    with torch.no_grad():
        pngs, target = hull.corners.mul(255).round().div(255), hull.target
        off = (stem(pngs) - stem(target)).flatten(1).norm(dim=1)
        off /= (stem(target) - stem.bias[:, None, None]).norm()
        logits = model(target[None])
        change = (model(pngs) - logits).norm(dim=1) / logits.norm()
    assert abs(float(off.max()) - rounding["uint8"]) < 1e-5
    assert rounding["amplification"] == pytest.approx(float((change / off).max()), rel=1e-2)
    assert 1e-7 < hull.sample(50, uint8=True)["logit_change_max"] < 0.1
    assert hull.sample(50)["logit_change_max"] < 1e-5
