"""The picture of the hull's triangles holds every part, in the colour of what is known of it."""

from typing import Any

from matplotlib.colors import to_hex

from feature_collisions.proofs.faces import prove_faces
from feature_collisions.report.figures import _STATES, faces_figure
from feature_collisions.report.findings import CLAIMS, Evidence
from feature_collisions.runs.evaluation import Evaluation, Proofs
from helpers.hulls import NAMES, valley


def test_every_part_is_drawn_in_its_colour() -> None:
    found = prove_faces(valley().problem, 2)
    figure = faces_figure(Proofs.model_validate({"faces": found}))
    assert figure is not None
    (axes,) = figure.axes
    (triangle,) = found["triangles"]
    colours = [to_hex(patch.get_facecolor()).upper() for patch in axes.patches]
    assert colours == [_STATES[part["state"]].upper() for part in triangle["parts"]]
    assert [text.get_text() for text in axes.texts] == ["4", "5", "9"]


def test_without_triangles_or_a_part_that_is_settled_there_is_no_picture_but_a_sentence() -> None:
    found = prove_faces(valley().problem, 0)
    parts = [part for triangle in found["triangles"] for part in triangle["parts"]]
    for part in parts:
        part["state"] = "undecided"
    found["share_proved"] = 0.0
    result = of_faces(found)
    assert faces_figure(result.proof) is None
    (row,) = [row for claim in CLAIMS for row in claim(result, NAMES) if "three" in row.label]
    assert row.known == Evidence.NOT_PROVED
    assert "nothing to draw" in row.note
    assert faces_figure(Proofs()) is None
    assert faces_figure(of_faces({"reason": "needs three corners"}).proof) is None


def of_faces(found: dict[str, Any]) -> Evaluation:
    entries = {"target_class": 0, "target_probability": 1.0, "proof": {"faces": found}}
    return Evaluation.model_validate(entries)


def test_a_share_of_the_triangles_is_not_called_proved() -> None:
    found = prove_faces(valley().problem, 0)
    parts = [part for triangle in found["triangles"] for part in triangle["parts"]]

    def known() -> Evidence:
        result = of_faces(found)
        (row,) = [row for claim in CLAIMS for row in claim(result, NAMES) if "three" in row.label]
        return row.known

    for part in parts:
        part["state"] = "proved"
    found["share_proved"] = 1.0
    assert known() is Evidence.PROVED
    parts[-1]["state"] = "undecided"
    found["share_proved"] = 0.999999
    assert known() is Evidence.NOT_PROVED
