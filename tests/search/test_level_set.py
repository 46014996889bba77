"""Where nothing is flat: level sets, pushed apart or along directions."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from feature_collisions import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    StopSettings,
    find_corners,
)
from feature_collisions.data.images import pooled_distance
from feature_collisions.errors import SettingError
from feature_collisions.graph.flow import narrowest
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target import TargetFeatures
from feature_collisions.hull.distances import smooth_distances
from feature_collisions.patches.composite import Sources
from feature_collisions.search.losses import (
    CollisionLoss,
    directions,
    distance_weight,
    mean_distance,
)
from feature_collisions.settings.search import RateStage

STOP = StopSettings(min_steps=300, max_steps=300, probability=None)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 6), nn.LeakyReLU(), nn.Linear(6, 3))
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.fixture
def pair() -> torch.Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_directions_are_smooth_and_of_the_corner_alone() -> None:
    like = torch.zeros(3, 40, 32)
    several = directions([0, 3, 7], like)
    assert torch.equal(directions([3], like)[0], several[1])
    assert several.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    rough = several.diff(dim=3).square().sum() / several.square().sum()
    assert rough < 0.1  # of white noise: 2


def test_the_mean_distance_is_that_of_all_pairs() -> None:
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64)
    slow = [(images[i] - images[j]).square().mean().sqrt() for i in range(4) for j in range(i)]
    assert float(mean_distance(images)) == pytest.approx(float(sum(slow)) / 6, rel=1e-12)


def test_corners_are_pushed_apart_on_the_level_set(network, pair) -> None:
    hull = find_corners(network, "auto", *pair, range(3), stop=STOP)
    assert (hull.layer, hull.summary["push"], hull.summary["activation"]) == ("2", "apart", "none")
    assert hull.units.tolist() == [-1, -1, -1]
    assert hull.summary.corners[0].unit == -1
    sample = hull.sample(200)
    assert sample["feature_relative_max"] < 0.05
    assert float(hull.corner_distances().min()) > 1.0
    slow = network[:3](hull.corners) - network[:3](hull.target[None])
    norm = float(network[:3](hull.target[None]).norm())
    largest = hull.summary["corner_feature_relative_max"]
    assert largest == pytest.approx(float(slow.norm(dim=1).max()) / norm, rel=1e-3)


def test_corners_pushed_apart_differ_in_what_a_person_sees(network, pair) -> None:
    """By default smooth distances are rewarded too, with a third of `reach`; 0 leaves them out."""
    found = {}
    for weight in (None, 5 / 3 / 8, 0.0):  # RMS of 64 pixels
        loss = LossSettings(distance=weight)
        found[weight] = find_corners(network, "auto", *pair, range(3), loss=loss, stop=STOP)
    default, same, without = found.values()
    assert torch.equal(default.corners, same.corners)
    sizes = [pooled_distance(hull.corners, 4) for hull in (default, without)]
    assert sizes[0] > 1.1 * sizes[1]


def test_the_smooth_reward_has_the_weight_of_the_push() -> None:
    """Eq. 4's push apart written again: -reach (d + d_s / 3), per corner."""
    images = torch.rand(3, 1, 12, 16, dtype=torch.float64)
    settings = LossSettings(push="apart", reach=2.0)
    loss = CollisionLoss(TargetFeatures(torch.ones(2)), torch.full((3,), -1), settings)
    terms = loss.of_images(images, torch.zeros(3), images)
    smooth = float(smooth_distances(images).mean()) / math.sqrt(12 * 16)
    expected = -2.0 * 3 * (float(mean_distance(images)) + smooth / 3)
    assert float(sum(terms)) == pytest.approx(expected, rel=1e-12)
    assert distance_weight(settings, (1, 7, 16)) == 0  # too small for a low-pass
    assert distance_weight(LossSettings(push="unit"), (1, 12, 16)) == 0


def test_a_corner_alone_goes_along_its_own_direction(network, pair) -> None:
    """As in a sweep: what corner 2 is does not depend on which others are searched."""
    hull = find_corners(network, "auto", *pair, [2], stop=STOP)
    assert hull.summary["push"] == "direction"
    along = directions([2], pair[0])
    moved = ((hull.corners - hull.initial) * along).sum()
    assert float(moved) > 1.0
    assert hull.summary["corner_feature_relative_max"] < 0.1


@pytest.mark.filterwarnings("ignore:not converged")
def test_where_too_few_units_are_hidden_within_the_tolerance_corners_are_pushed_apart(
    network, pair
) -> None:
    network[2] = nn.GELU()
    network[1].bias[:2] = -20.0  # two units hidden, of which corners 0 and 1 push one each
    stop = StopSettings(min_steps=1, max_steps=1, probability=None)
    pushes = [
        find_corners(network, "auto", *pair, range(count), stop=stop).summary["push"]
        for count in (2, 3)
    ]
    assert pushes == ["unit", "apart"]


@pytest.mark.filterwarnings("ignore:not converged", "ignore:the initial image meets")
def test_where_active_units_fix_all_others_corners_are_pushed_apart(pair) -> None:
    """As many units active as numbers flow in: exact features then leave no unit to push."""
    layers = (nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    network = nn.Sequential(nn.Flatten(), *layers).requires_grad_(False)
    network[3].bias = nn.Parameter(torch.tensor([9.0, 9, -9, -9, -9, -9, -9, -9]), False)
    graph = trace(network, pair[0].shape)
    assert [narrowest(graph, name) for name in ("1", "3")] == [64, 3]
    pushes = []
    for active in (2, 3):
        network[3].bias[active - 1] = 9.0
        stop = StopSettings(min_steps=1, max_steps=1, probability=None)
        hull = find_corners(network, "3", *pair, range(2), stop=stop)
        assert int(hull.features.active.sum()) == active
        pushes.append(hull.summary.push)
    assert pushes == ["unit", "apart"]


def test_the_narrowest_place_is_one_that_a_shortcut_does_not_pass() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up, self.last = nn.Linear(16, 2), nn.Linear(2, 16), nn.Linear(16, 20)

        def forward(self, images):
            values = images.flatten(1)
            return self.last(values + self.up(self.down(values))).relu()

    assert narrowest(trace(Block(), (1, 4, 4)), "last") == 16


@pytest.mark.parametrize(
    ("push", "corners", "rule"),
    [
        ("unit", range(2), "loss.push=unit.*hidden"),
        ("apart", range(1), "loss.push=apart.*single corner"),
    ],
)
def test_a_push_that_cannot_be_is_refused(network, pair, push, corners, rule) -> None:
    with pytest.raises(SettingError, match=rule):
        find_corners(network, "auto", *pair, corners, loss=LossSettings(push=push), stop=STOP)


def test_a_tolerance_of_0_is_refused_where_nothing_is_exactly_flat(network, pair) -> None:
    network[2] = nn.GELU()
    with pytest.raises(SettingError, match=r"loss.tolerance=0.*GELU.*above 0"):
        find_corners(network, "auto", *pair, range(2), loss=LossSettings(tolerance=0.0), stop=STOP)


def test_a_smooth_unit_is_hidden_within_the_tolerance(network, pair) -> None:
    """Everything beyond the edge together moves the features by at most the tolerance."""
    with torch.no_grad():
        network[1].weight.mul_(40)
    network[2] = nn.GELU()
    hull = find_corners(network, "auto", *pair, range(2), stop=STOP)
    assert (hull.summary["push"], hull.summary["tolerance"]) == ("unit", 0.01)
    hidden = ~hull.features.active
    far = hull.features.preactivation - 1e3 * hidden
    moved = hull.features.rectified(far) - hull.features.features
    assert hidden.any()
    assert float(moved.norm()) <= 0.01 * float(hull.features.features.norm())
    found = hull.prove(1)["collision"]
    assert (found["by"], found["share_proved"]) == ("bounds", 1)
    assert found["feature_relative_max"] >= found["feature_relative_seen"] > 0


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(("push", "count"), [("apart", 3), ("direction", 1)])
def test_a_resumed_search_is_the_one_that_was_not_interrupted(
    network, pair, tmp_path, push, count
) -> None:
    def corners(steps: int, place: str, **resumed: Path) -> torch.Tensor:
        log = LogSettings(10, 40, 10)
        rate = OptimizerSettings(rate=0.05, final_rate=0.05, stages=[RateStage(1, 0.05)])
        hull = find_corners(
            network, "auto", *pair, range(count), loss=LossSettings(push=push), optimizer=rate,
            stop=StopSettings(min_steps=steps, max_steps=steps, probability=None), log=log,
            directory=tmp_path / place, **resumed,
        )  # fmt: skip
        return hull.corners

    whole = corners(40, "whole")
    corners(20, "halves")
    last = tmp_path / "halves" / "checkpoints" / "last.ckpt"
    assert torch.equal(corners(40, "halves", ckpt_path=last), whole)


@pytest.mark.filterwarnings("ignore:not converged")
def test_composites_are_pushed_apart(network) -> None:
    torch.manual_seed(3)
    starts = torch.arange(0, 9, 4) - 1
    places = starts.repeat_interleave(3), starts.repeat(3)
    sources = Sources(torch.rand(9, 1, 10, 10), *places, (16, 16))
    network[1] = nn.Linear(256, 6)
    stop = StopSettings(min_steps=30, max_steps=30, probability=None)
    hull = find_corners(
        network, "auto", *torch.rand(2, 1, 16, 16), range(3), sources=sources, stop=stop
    )
    assert hull.summary["push"] == "apart"
    assert float(hull.corner_distances().min()) > 0.5


class ThreeBranches(nn.Module):
    """Three branches with a ReLU each, joined at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 5), nn.Linear(64, 4), nn.Linear(64, 3)
        self.head = nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        joined: torch.Tensor = self.head(
            torch.cat([self.a(flat), self.b(flat), self.c(flat)], 1).relu()
        )
        return joined


def test_layers_that_leave_a_way_round_are_refused(pair) -> None:
    torch.manual_seed(0)
    with pytest.raises(SettingError, match=r"layer=\[a,b\]: .* bypasses these layers"):
        find_corners(ThreeBranches(), ["a", "b"], *pair, range(2), stop=STOP)
