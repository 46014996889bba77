import itertools

import torch

from feature_collisions.report.figures import sheet_figure
from feature_collisions.report.sheets import Panel, Sheet


def test_titles_of_a_full_row_neither_meet_nor_leave_the_page():
    """Nine pictures abreast, as of composites: initial, start, five corners, their mix, target."""
    picture = torch.zeros(3, 8, 8)
    words = [("initial", "catamaran"), ("start", "the composite by Eq. 5")]
    words += [(f"corner {corner}", "obelisk, 0.8120") for corner in range(5)]
    words += [("their even mix", "obelisk, 0.7369"), ("target", "obelisk, 0.6964")]
    row = [Panel(picture, name, below) for name, below in words]
    figure = sheet_figure(Sheet("corners", "Corners", [row]))
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0
    assert max(box.y1 for box in boxes) < figure.bbox.y1
