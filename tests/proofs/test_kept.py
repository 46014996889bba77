"""What an earlier evaluation kept is tried on points of the hull before it is gone on with."""

from pathlib import Path

import pytest

from feature_collisions.data.files import load_tensors, save_tensors
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.whole_hull import prove_class
from helpers.hulls import collided


@pytest.mark.parametrize("prove", [prove_class, prove_collision])
def test_a_statement_that_points_contradict_is_not_taken_over(prove, tmp_path: Path) -> None:
    hull = collided()
    first = prove(hull.problem, 5, tmp_path)
    (path,) = tmp_path.iterdir()
    kept = load_tensors(path)
    kept["settled"][0] += 3.0  # a margin larger, or an error smaller, than any
    kept["figures"][:, 0] += 3.0
    save_tensors(path, kept)
    with pytest.warns(UserWarning, match="contradict"):
        found = prove(hull.problem, 5, tmp_path)
    for name in first.keys() & {"share_proved", "margin_min", "feature_relative_max"}:
        assert found[name] == pytest.approx(first[name], rel=1e-6)


def test_what_is_right_is_gone_on_with(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    hull = collided()
    first = prove_class(hull.problem, 5, tmp_path)
    again = prove_class(hull.problem, 5, tmp_path)
    assert again["pieces"] == first["pieces"]
    assert again["margin_min"] == first["margin_min"]
    assert not [each for each in recwarn if "contradict" in str(each.message)]
