"""The lattice that the page interpolates on."""

import itertools
import math

import pytest
import torch

from feature_collisions.evaluation.lattice import explored, fineness, lattice
from helpers.hulls import NAMES, made_hull


@pytest.mark.parametrize(("corners", "steps"), [(2, 7), (3, 4), (4, 3), (5, 2), (6, 1)])
def test_every_lattice_point_is_at_its_place(corners, steps):
    points = lattice(corners, steps)
    expected = {
        counts for counts in itertools.product(range(steps + 1), repeat=corners)
        if sum(counts) == steps
    }  # fmt: skip
    found = [tuple((point * steps).round().int().tolist()) for point in points]
    assert set(found) == expected
    assert len(found) == len(expected)
    for place, counts in enumerate(found):
        sums = list(itertools.accumulate(counts))[:-1]
        assert place == sum(math.comb(s + j, j + 1) for j, s in enumerate(sums))


def test_the_lattice_is_as_fine_as_its_size_allows():
    assert [fineness(k) for k in (2, 5, 40, 60)] == [100, 9, 1, 1]
    for corners in range(3, 54):
        steps = fineness(corners)
        assert math.comb(steps + corners - 1, steps) <= 750
        assert steps == 100 or math.comb(steps + corners, steps + 1) > 750


def test_the_lattice_holds_the_classifiers_own_probabilities():
    hull = made_hull(3)
    found = explored(hull, NAMES)
    assert found["classes"][0] == NAMES[1]
    assert found["corners"] == ["corner 0", "corner 1", "corner 2"]
    places = [NAMES.index(name) for name in found["classes"]]
    values = torch.tensor(found["values"]).view(-1, len(places)) / found["scale"]
    for weights, row in list(zip(lattice(3, found["steps"]), values, strict=True))[::50]:
        image = sum(w * corner for w, corner in zip(weights.tolist(), hull.corners, strict=True))
        expected = hull.model(image[None]).softmax(1)[0, places]
        assert torch.allclose(row, expected, atol=1e-5)


def test_classes_given_anywhere_on_the_lattice_are_listed():
    hull = made_hull(5)
    found = explored(hull, NAMES)
    with torch.no_grad():
        given = hull.model(hull.points(lattice(5, found["steps"]))).argmax(1).unique().tolist()
    assert len(given) > 1
    assert {NAMES[k] for k in given} <= set(found["classes"])
