import json
from dataclasses import replace

import pytest
import torch

from feature_collisions.commands.pairs import (
    OUTCOME,
    parse_pairs,
    row_of_sample,
    run_pairs,
)
from feature_collisions.commands.random_pairs import Pair
from feature_collisions.errors import SettingError
from feature_collisions.search.find_corners import find_corners
from feature_collisions.settings.search import LossSettings, StopSettings
from helpers.defaults import stop_at_once


class Ink(torch.nn.Module):
    """Two classes; the first one's probability is the share of the image that is bright."""

    def forward(self, images):
        share = (images > 0.5).float().mean((1, 2, 3)).clamp(1e-4, 1 - 1e-4)
        return torch.stack([share.log(), (1 - share).log()], 1)


@pytest.fixture
def images(digits):
    return digits.test


def test_a_file_has_a_pair_a_line(images, tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("initial,target\n3,7\n\n1:2, 4\n")
    assert parse_pairs(str(path), images, 0, [Ink()]) == [("3", "7"), ("1:2", "4")]
    path.write_text("3,7\n")
    assert parse_pairs(str(path), images, 0, [Ink()]) == [("3", "7")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("initial,target\n3,7\n5\n", r"line 3 is 5; it must be initial,target"),
        ("3,7\n3,7,9\n", r"line 2 is 3,7,9; it must be"),
        ("3,\n", r"line 1 is 3,; it must be"),
        ("3,7\n3,eleven\n", r"line 2: target=eleven: no such class"),
        (
            f"3,{'9' * 5000}\n",
            r"line 1, 3,9+\.\.\.: File name too long",
        ),  # and no number, to Python
        ("initial,target\n", r"it contains no pair"),
    ],
)
def test_a_bad_line_is_named_by_its_number(images, tmp_path, text, message):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(SettingError, match=message):
        parse_pairs(str(path), images, 0, [Ink()])


@pytest.mark.parametrize(
    "setting", ["random:0", "random:x", "random:", "random:3:1.5", "missing.csv"]
)
def test_what_names_no_pairs_is_refused(images, setting):
    with pytest.raises(SettingError, match=rf"pairs={setting}: .*give a CSV file"):
        parse_pairs(setting, images, 0, [Ink()])


def test_random_pairs_are_of_two_classes_and_depend_on_the_seed(images):
    pairs = parse_pairs("random:50", images, 0, [Ink()])
    assert pairs == parse_pairs("random:50", images, 0, [Ink()])
    assert pairs != parse_pairs("random:50", images, 1, [Ink()])
    for pair in pairs:
        first, second = images.find("initial", pair.initial), images.find("target", pair.target)
        assert first.label != second.label
    assert len(set(pairs)) > 45


def test_random_targets_are_those_the_classifier_is_sure_of(images):
    """Sure of the second class is who sees little ink."""
    for pair in parse_pairs("random:20:.9", images, 0, [Ink()]):
        assert (images.find("target", pair.target).image > 0.5).float().mean() < 0.1
    inks = [
        float((images.find("target", pair.target).image > 0.5).float().mean())
        for pair in parse_pairs("random:20", images, 0, [Ink()])
    ]
    assert max(inks) > 0.1
    with pytest.raises(SettingError, match=r"pairs=random:2:.9999: only 0 of 200 draws have"):
        parse_pairs("random:2:.9999", images, 0, [Ink()])


@pytest.fixture
def hull(shift, shift_images):
    return find_corners(
        shift, "hidden", *shift_images, [0, 1], loss=LossSettings.paper(1.0, 0.1),
        stop=StopSettings(0.5, 200, 200), trainer={"accelerator": "cpu"},
    )  # fmt: skip


def test_a_pairs_outcome_is_that_of_its_interpolations_and_the_worst_of_them(hull):
    def found(**changed):
        return row_of_sample(replace(hull, summary=hull.summary | changed), 50)

    names = "probability_mean", "feature_relative_max", "worst_feature_relative"
    mean, sampled, searched = (found()[name] for name in names)
    largest = max(sampled, searched)
    assert sampled >= hull.summary.corner_feature_relative_max
    whole = found(target_probability=mean, hull_relative=largest * 1.001)
    assert (whole["outcome"], whole["reasons"]) == ("features collide", [])
    less = found(target_probability=mean, hull_relative=largest * 0.999)
    assert less["outcome"] == "class only"
    assert less["reasons"][0].startswith(f"feature error {largest:.3f} ||f(t)||")
    assert "the limit is" in less["reasons"][0]
    other = found(target_probability=mean + 0.051)
    assert other["outcome"] == "neither"
    assert other["reasons"][0].startswith("mean probability")
    wrong = found(target_class=(hull.target_class + 1) % 3)
    assert wrong["reasons"][0] == "50 of 50 interpolations are of another class"


def test_a_crash_loses_no_other_pair_and_a_second_start_skips_finished_ones(hull, tmp_path):
    pairs = [Pair("a", "b"), Pair("c/d", "e"), Pair("f", "g")]
    searched = []

    def search(pair, place):
        searched.append(pair)
        if pair.initial == "c/d" and len(searched) < 4:
            raise RuntimeError("the machine\nis on fire")
        hull.save(place)
        return hull

    hull.summary["target_probability"] = hull.sample(20)["probability_mean"]
    rows = run_pairs(pairs, tmp_path, search, samples=20)
    names = [row.outcome for row in rows]
    assert names == ["features collide", "not measured", "features collide"]
    assert rows[1].reasons == ["RuntimeError: the machine"]
    assert json.loads((tmp_path / "pairs.json").read_text()) == [row.entries() for row in rows]
    table = (tmp_path / "pairs.md").read_text()
    assert table.startswith(
        "# 2 of 3: features collide; 0: class only; 0: neither; 1: not measured\n"
    )
    cells = " ".join(table.split())  # columns are filled up with spaces
    assert "| c/d | e | - | - | - | - | - | - | - | - | RuntimeError: the machine |" in cells

    again = run_pairs(pairs, tmp_path, search, samples=20)
    assert searched[3:] == [pairs[1]]
    assert {row.outcome for row in again} == {"features collide"}
    assert again[0].entries() == rows[0].entries()

    # a pair whose corners are damaged is searched again
    (tmp_path / "000_a_to_b" / "collision.safetensors").write_bytes(b"half")
    run_pairs(pairs[:1], tmp_path, search, samples=20)
    assert searched[4:] == [pairs[0]]
    assert (tmp_path / "002_f_to_g" / OUTCOME).exists()


@pytest.mark.parametrize("output", [0.0, 0.3])
def test_interior_points_join_the_loss(shift, shift_images, output):
    """The gradient of alpha (l of the corners + 1.5 l of their mixes), written again.

    l = L_pos + output ||f(t)||^2 / 2 KL(p(t) || p(x)).
    """
    from feature_collisions.search.find_corners import Search

    search = Search(
        shift, "hidden", *shift_images, [0, 1],
        loss=LossSettings.paper(
            2.0, 0.0, positive_form="half_square", hull=3, hull_weight=1.5, output=output
        ),
        trainer={"accelerator": "cpu"},
    )  # fmt: skip
    module = search.module
    start = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    pixels = module.parameterisation.pixels
    target = shift_images[1].flatten() - 0.5
    active = (target >= 0).float()
    wanted = shift(shift_images[1][None])[0].softmax(0).detach()
    size = target.relu().square().sum() / 2

    def of(row):
        probabilities = shift(row[None])[0].softmax(0)
        divergence = (wanted * (wanted / probabilities).log()).sum()
        features = (((row - 0.5) * active - target.relu()) ** 2).sum() / 2
        return features + output * size * divergence

    for per_batch in (None, 1):
        pixels.data.copy_(start)
        pixels.grad = None
        module.per_batch = per_batch
        loss = module._descend(7, torch.Tensor.backward)
        draws = torch.empty(3, 2).exponential_(generator=torch.Generator().manual_seed(7))
        mix = draws / draws.sum(1, keepdim=True)
        free = start.flatten(1).clone().requires_grad_()
        total = 2.0 * sum(of(row) for row in free) + 3.0 * sum(of(row) for row in mix @ free)
        total.backward()
        torch.testing.assert_close(loss, total.detach())
        torch.testing.assert_close(pixels.grad.flatten(1), free.grad)


class OnlyCorners(torch.nn.Module):
    """Takes black and white images for class 0 and what is between them for class 1."""

    def forward(self, images):
        between = ((images > 0) & (images < 1)).flatten(1).any(1).float()
        return torch.stack([1 - between, between], 1)


def test_a_search_with_interior_points_does_not_stop_at_good_corners(shift, shift_images):
    from feature_collisions.hull.outputs import Classes
    from feature_collisions.search.find_corners import Search
    from feature_collisions.search.lightning_module import Goal

    stop = stop_at_once(None, probability=1.0)
    for points, converged in ((0, True), (1, False)):
        loss = LossSettings.paper(1.0, 0.1, hull=points)
        module = Search(
            shift,
            "hidden",
            *shift_images,
            [0, 1],
            loss=loss,
            stop=stop,
            trainer={"accelerator": "cpu"},
        ).module
        module.classifier, module.goal = (
            OnlyCorners(),
            Goal(stop, 1.0, Classes(torch.zeros(2), 0, 0.7)),
        )
        corners = torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)])
        assert module._classified_as_target(corners, corners) == converged
