"""The triangles of a hull: their parts make them up, and each is what it is said to be."""

from dataclasses import replace

import pytest

from feature_collisions.proofs.faces import prove_faces
from helpers.hulls import valley


def area(vertices: list[list[float]]) -> float:
    (ax, ay), (bx, by), (cx, cy) = vertices
    return abs((bx - ax) * (cy - ay) - (cx - ax) * (by - ay)) / 2


def test_parts_make_up_the_triangle_and_are_what_they_are_said_to_be() -> None:
    hull = valley()  # class 1 where pixel 0, the second corner's weight, is in 0.3 to 0.3125
    found = prove_faces(hull.problem, seconds=5)
    (triangle,) = found["triangles"]
    assert triangle["corners"] == [4, 5, 9]
    parts = triangle["parts"]
    assert sum(area(part["vertices"]) for part in parts) == pytest.approx(0.5, abs=1e-4)
    proved = [part["vertices"] for part in parts if part["state"] == "proved"]
    assert 2 * sum(map(area, proved)) == pytest.approx(found["share_proved"], abs=1e-4)
    assert 0.9 < found["share_proved"] < 1 - 0.0125
    for vertices in proved:
        places = [place for place, _ in vertices]
        assert max(places) <= 0.3 + 1e-5 or min(places) >= 0.3125 - 1e-5
    refuted = [part["vertices"] for part in parts if part["state"] == "refuted"]
    assert refuted
    for vertices in refuted:
        middle = sum(place for place, _ in vertices) / 3
        assert 0.3 < middle < 0.3125
    assert any(part["state"] == "undecided" for part in parts)


def test_two_corners_have_no_triangle_and_no_time_proves_nothing() -> None:
    hull = valley()
    found = prove_faces(hull.problem, seconds=0)
    assert found["share_proved"] == 0
    assert [part["state"] for part in found["triangles"][0]["parts"]] == ["undecided"]
    two = replace(hull.problem, corners=hull.corners[:2], names=(4, 5))
    assert prove_faces(two)["reason"] == "needs three corners"
