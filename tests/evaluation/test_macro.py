"""Visible differences beside noise, in closed form."""

from pathlib import Path

import pytest
import torch

from feature_collisions.data.files import write_text
from feature_collisions.data.images import save_png
from feature_collisions.evaluation.macro import macro_share, outline, visible
from feature_collisions.report.report import write_report
from feature_collisions.report.sheets import composite_at_start, corners_sheet
from feature_collisions.report.words import Words
from helpers.hulls import evaluated, made_hull


def test_differences_of_whole_squares_keep_all_their_distance() -> None:
    squares = torch.rand(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert macro_share(squares) == pytest.approx(1, rel=1e-5)


def test_noise_keeps_an_eighth() -> None:
    """Independent noise: the mean of 64 has an 8th of the spread, and 64 times fewer pixels."""
    torch.manual_seed(0)
    assert macro_share(torch.rand(4, 3, 160, 160)) == pytest.approx(1 / 8, rel=0.02)


def test_equal_and_tiny_images_have_no_share() -> None:
    assert macro_share(torch.ones(3, 1, 16, 16)) is None
    assert macro_share(torch.rand(3, 1, 7, 16)) is None


def test_entries_of_a_macro_run() -> None:
    hull = made_hull(3, (3, 16, 16))
    plain = visible(hull)
    assert plain["total_variation"] is None
    distances = [
        float((hull.corners[i] - hull.corners[j]).norm()) for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert plain["corner_distance_min"] == pytest.approx(min(distances), rel=1e-5)
    for k, entry in enumerate(hull.summary["corners"]):
        entry["total_variation"] = 10.0 * k
    hull.corners[:] = hull.target
    entries = visible(hull)
    assert entries["total_variation"] == 10
    assert entries["ssim_to_target"] == pytest.approx(1, abs=1e-5)
    assert entries["ssim_to_initial"] < 0.9


def test_report_shows_the_composite_where_its_picture_is_whole(tmp_path: Path) -> None:
    hull = made_hull(2, (3, 16, 16))
    size = (3, 16, 16)
    assert composite_at_start(tmp_path, size) is None
    write_text(tmp_path / "images" / "composite.png", "no picture")
    assert composite_at_start(tmp_path, size) is None
    start = torch.rand(size).mul(255).round() / 255
    save_png(tmp_path / "2" / "images" / "composite.png", start)
    found = composite_at_start(tmp_path, size)
    assert found is not None
    assert torch.allclose(found, start)
    above, below = corners_sheet(hull, Words(("a", "b", "c", "d")), found).rows
    names = ["initial", "start", "corner 0", "corner 1", "their even mix", "target"]
    assert [panel.name for panel in above] == names
    mean = hull.corners.mean(0)
    assert below[:2] == [None, None]
    assert torch.equal(below[2].image, (0.5 + hull.corners[0] - mean).clamp(0, 1))
    write_report(tmp_path, hull, evaluated(hull, tmp_path), ("a", "b", "c", "d"))
    assert (tmp_path / "corners.png").stat().st_size > 5000
    assert "the composite by Eq. 5" in (tmp_path / "report.html").read_text()


def test_an_outline_is_a_correlation_without_the_fine() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    noisy = ramp + 0.5 * torch.randn(4, 1, 64, 64)
    assert outline(noisy, ramp) == pytest.approx(1, abs=0.03)
    assert outline(1 - ramp[None], ramp) == pytest.approx(-1, abs=1e-5)
    across = outline(ramp.mT[None], ramp)
    assert across is not None
    assert abs(across) < 1e-5
    assert outline(ramp[None], torch.full_like(ramp, 0.5)) is None
