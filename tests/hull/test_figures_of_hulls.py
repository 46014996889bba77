"""The worst of all that was seen, sizes, and hulls that are copied, changed and printed."""

import copy
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import feature_collisions
from feature_collisions import SettingError
from feature_collisions.hull.worst_case import descend
from helpers.hulls import hull_of, made_hull


@pytest.mark.parametrize("sampler", ["dirichlet", "stick_breaking"])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_sample_is_worse_than_the_worst_case(sampler, seed):
    hull = made_hull(corners=4)
    lowest = min(hull.sample(300, sampler, seed + k)["probability_min"] for k in range(2))
    worst = hull.worst_case(starts=0, steps=1, seed=seed)
    assert worst.probability <= lowest + 1e-6


def test_no_corner_and_no_middle_is_worse_than_the_worst_case():
    hull = made_hull(corners=6)
    worst = hull.worst_case(starts=0, steps=1)
    weights = torch.eye(6)
    probabilities = hull.model(hull.points(weights)).softmax(1)[:, hull.target_class]
    classes = hull.model(hull.points(weights)).argmax(1)
    assert (classes == hull.target_class).all() == worst.correct or not worst.correct
    if worst.correct:
        assert worst.probability <= probabilities.min() + 1e-6


def test_no_sample_and_no_corner_has_a_larger_feature_error_than_the_worst():
    hull = made_hull(corners=4)
    alone = hull.worst_case(starts=1, steps=1, of="features").feature_relative
    sampled = max(hull.sample(300, seed=seed)["feature_relative_max"] for seed in range(2))
    with torch.no_grad():
        at_corners = hull.features.error(hull.observe(hull.corners)[1]).max()
    known = max(alone, sampled, float(at_corners / hull.features.features.norm()))
    found = hull.worst_case(starts=0, steps=1, of="features")
    assert found.feature_relative >= known * (1 - 1e-5)


def test_what_a_point_is_the_worst_of_must_be_known():
    with pytest.raises(SettingError, match="of=pixels: must be one of output, features"):
        made_hull(corners=2).worst_case(of="pixels")


def test_samples_of_other_corners_say_nothing_about_the_hull():
    hull = made_hull(corners=3)
    before = hull.worst_case(starts=2, steps=2)
    hull.sample(100, corners=torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(3)))
    hull.sample(100, uint8=True)
    assert torch.equal(hull.worst_case(starts=2, steps=2).weights, before.weights)


def _pickled(hull):
    return pickle.loads(pickle.dumps(hull))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, _pickled])
def test_a_hull_that_was_sampled_is_copied(copied):
    hull = made_hull(corners=3)
    expected = hull.sample(50)
    other = copied(hull)
    assert other.sample(50) == expected
    other = replace(other, corners=other.corners[:2].clone())
    assert other.worst_case(starts=1, steps=1).weights.shape == (2,)
    assert hull.sample(50) == expected


def test_a_hull_never_changes_and_another_has_nothing_of_it():
    hull = made_hull(corners=3)
    hull.sample(50)
    with pytest.raises(FrozenInstanceError):
        hull.corners = hull.corners[:2]
    other = replace(hull, corners=torch.rand(4, 1, 6, 6))
    fresh = copy.deepcopy(other)
    assert torch.equal(
        other.worst_case(starts=2, steps=3).weights, fresh.worst_case(starts=2, steps=3).weights
    )
    assert all(len(each.corners) == 4 for each in other.evaluator.replicas)


def test_what_holds_pictures_is_printed_on_one_line():
    hull = made_hull()
    worst, example = hull.worst_case(starts=2, steps=3), feature_collisions.load_example()
    for value, said in (
        (hull, "5 corners"),
        (worst, "probability="),
        (example, "(1000, 1, 28, 28)"),
    ):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 200
        assert said in repr(value)


def test_the_package_lists_its_public_names():
    assert set(feature_collisions.__all__) == set(dir(feature_collisions))


def test_the_relative_size_is_of_distances_in_the_same_unit():
    hull = made_hull(corners=3)
    images = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    expected = torch.pdist(hull.corners.flatten(1)).mean() / torch.pdist(images.flatten(1)).mean()
    assert hull.relative_size(images) == pytest.approx(float(expected))
    hull.summary["distance_scale"] = 255
    assert hull.relative_size(list(images)) == pytest.approx(float(expected))
    eight_bit = (images * 255).round().byte()
    assert hull.relative_size(eight_bit) == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize(
    ("images", "rule"),
    [
        (torch.rand(1, 1, 6, 6), "two"),
        (torch.rand(2, 3, 6, 6), "shape"),
        (torch.full((2, 1, 6, 6), 9.0), r"\[0, 1\]"),
        (torch.full((2, 1, 6, 6), torch.nan), r"\[0, 1\]"),
        (torch.zeros(2, 1, 6, 6), "equal"),
    ],
)
def test_images_that_have_no_size_are_refused(images, rule):
    with pytest.raises(SettingError, match=f"images: .*{rule}"):
        made_hull(corners=2).relative_size(images)


def slowly_averaged(image, square):
    """The means over squares of pixels, one by one."""
    rows, columns = (side // square for side in image.shape[1:])
    return torch.tensor(
        [
            [
                [
                    channel[
                        row * square : (row + 1) * square, column * square : (column + 1) * square
                    ].mean()
                    for column in range(columns)
                ]
                for row in range(rows)
            ]
            for channel in image
        ]
    )


def test_pooled_sizes_are_relative_sizes_of_averages_over_squares():
    draw = torch.Generator().manual_seed(5)
    hull, images = made_hull(corners=3), torch.rand(6, 1, 6, 6, generator=draw)
    found = hull.pooled_sizes(images)
    assert list(found) == [1, 2, 4]  # nothing of 8x8 fits into 6x6
    for square, size in found.items():
        ours, theirs = (
            torch.pdist(torch.stack([slowly_averaged(x, square).flatten() for x in each])).mean()
            for each in (hull.corners, images)
        )
        assert size == pytest.approx(float(ours / theirs), rel=1e-5)
    assert found[1] == hull.relative_size(images)


def test_what_differs_in_fine_detail_alone_has_no_size_after_averaging():
    hull, images = made_hull(corners=2), torch.stack([torch.zeros(1, 6, 6), torch.ones(1, 6, 6)])
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2
    hull = replace(hull, corners=torch.stack([board, 1 - board])[:, None].float())
    assert hull.pooled_sizes(images) == pytest.approx({1: 1, 2: 0, 4: 0}, abs=1e-6)
    hull = replace(hull, corners=images / 2)
    assert hull.pooled_sizes(images) == pytest.approx({1: 0.5, 2: 0.5, 4: 0.5})


def test_a_single_corner_has_no_relative_size():
    with pytest.raises(SettingError, match=r"relative_size: .*two"):
        made_hull(corners=1).relative_size(torch.rand(2, 1, 6, 6))


def test_a_worst_case_of_another_class_is_preferred_to_a_less_probable_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.zero_()
        model[3].weight.copy_(torch.tensor([[1.0, 5.0], [1.1, 0.0], [0.98, -1.0]]))
        model[3].bias.copy_(torch.tensor([0.0, 0.0, -0.1]))
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 1, 1, 2)
    worst = hull_of(model, corners, "1").worst_case(starts=0, steps=1)
    assert not worst.correct


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_that_are_no_png_are_saved_without_one(channels, tmp_path):
    hull = made_hull(corners=2, size=(channels, 6, 6))
    with pytest.warns(UserWarning, match="channels"):
        hull.save(tmp_path / "run")
    saved = load_file(tmp_path / "run" / "collision.safetensors")
    assert torch.equal(saved["corners"], hull.corners)
    assert not list(tmp_path.rglob("*.png"))


def test_a_descent_gives_the_lowest_point_of_each_path_and_not_its_last() -> None:
    """The slope leads through the valley and out of it again."""
    seen: list[float] = []

    def slopes_of(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        margins = (weights[:, 0] - 0.31).abs()
        seen.extend(margins.tolist())
        gradient = torch.zeros_like(weights)
        gradient[:, 0] = -1.0
        return margins, gradient

    starts = torch.tensor([[0.0, 1.0], [0.05, 0.95], [0.1, 0.9]])
    found = descend(slopes_of, starts, 20)
    assert float((found[:, 0] - 0.31).abs().min()) == pytest.approx(min(seen), abs=1e-7)
