"""The picture of the hull's triangles holds every part, in the colour of what is known of it."""

from matplotlib.colors import to_hex

from feature_collisions.proofs.faces import prove_faces
from feature_collisions.report.figures import _STATES, faces_figure
from helpers.hulls import valley


def test_every_part_is_drawn_in_its_colour() -> None:
    found = prove_faces(valley(), 2)
    figure = faces_figure({"faces": found})
    assert figure is not None
    (axes,) = figure.axes
    (triangle,) = found["triangles"]
    colours = [to_hex(patch.get_facecolor()).upper() for patch in axes.patches]
    assert colours == [_STATES[part["state"]].upper() for part in triangle["parts"]]
    assert [text.get_text() for text in axes.texts] == ["4", "5", "9"]


def test_without_triangles_there_is_no_picture() -> None:
    assert faces_figure({}) is None
    assert faces_figure({"faces": {"reason": "needs three corners"}}) is None
