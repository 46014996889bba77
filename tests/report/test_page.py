"""report.html as text: what stands in it, and that names stay names."""

import base64
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from feature_collisions.data.images import save_png, to_uint8
from feature_collisions.report.page import data_uri
from feature_collisions.report.report import write_report
from feature_collisions.report.sheets import spread, steps_sheet
from helpers.hulls import NAMES, NASTY, evaluated, made_hull


class Reader(HTMLParser):
    """Elements, texts, and what is in the scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words, self.scripts, self.inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        (self.scripts if self.inside in ("script", "style") else self.words).append(data)

    def handle_endtag(self, tag):
        self.inside = ""

    def images(self):
        return [attributes for tag, attributes in self.elements if tag == "img"]


@pytest.fixture
def page(tmp_path, request):
    """Write the report of a made hull, its figures drawn or not; gives the page read."""

    def write(corners=5, size=(1, 6, 6), steps=(), figures=False):
        if not figures:
            request.getfixturevalue("undrawn")
        hull = made_hull(corners, size)
        for step in steps:
            for k, image in enumerate(hull.corners):
                save_png(tmp_path / f"images/steps/step_{step:06d}_corner_{k}.png", image)
        write_report(tmp_path, hull, evaluated(hull, tmp_path), NAMES)
        return Reader((tmp_path / "report.html").read_text())

    return write


def test_names_are_shown_and_never_executed(page, tmp_path):
    found = page()
    assert not any("onerror" in attributes for _, attributes in found.elements)
    assert "b" in {tag for tag, _ in found.elements}  # captions
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert NASTY in "".join(found.words)
    data = json.loads(found.scripts[-2])
    assert data["classes"][0] == NASTY
    assert "made <i>up</i>" in "".join(found.words)
    assert "<img src=x" not in (tmp_path / "report.md").read_text()


def test_nothing_is_fetched_and_only_the_pages_script_may_run(page):
    found = page()
    assert all(image["src"].startswith("data:image/") for image in found.images())
    assert not {"link", "iframe", "object"} & {tag for tag, _ in found.elements}
    policy = next(a["content"] for _, a in found.elements if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_the_pictures_are_exact_and_in_order(page):
    hull = made_hull(5)
    shown = page().images()[:8]
    names = [image["alt"].split(":")[0] for image in shown]
    assert names == ["initial", *(f"corner {k}" for k in range(5)), "their even mix", "target"]
    mix = hull.points(torch.full((1, 5), 0.2))[0]
    assert torch.allclose(mix, hull.corners.mean(0), atol=1e-6)
    probabilities = hull.model(mix[None]).detach().softmax(1)[0]
    words = f"{NAMES[int(probabilities.argmax())]}, {float(probabilities[1]):.4f}"
    assert shown[6]["alt"] == f"their even mix: {words}"
    images = [hull.initial, *hull.corners, mix, hull.target]
    for image, expected in zip(shown, images, strict=True):
        content = base64.b64decode(image["src"].split(",")[1])
        pixels = torch.from_numpy(to_uint8(expected))
        assert torch.equal(torch.tensor(list(Image.open(io.BytesIO(content)).tobytes())),
                           pixels.flatten().long())  # fmt: skip


def test_tables_claims_and_paper(page):
    text = " ".join(page().words)
    for words in ("10.21", "1.28", "sampled", "worst mix found", "corner 4", "not walked"):
        assert words in text


def test_figures_alone_as_png_and_pdf(page, tmp_path):
    page(steps=(10, 20), figures=True)
    for name in ("corners", "probabilities", "differences", "intermediate"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=1)
            assert image.width <= 6.6 * 300


def test_the_histogram_counts_every_point_once(tmp_path):
    hull = made_hull(3)
    result = evaluated(hull, tmp_path, samples=300)
    counts = result["dirichlet"]["probability_histogram"]
    assert sum(counts) == 300
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(256, 3, dtype=torch.float64).exponential_(generator=generator)
    draws = torch.cat([draws, torch.empty(44, 3, dtype=torch.float64).exponential_(
        generator=generator)])  # fmt: skip
    expected = [0] * 50
    with torch.no_grad():
        for weights in draws / draws.sum(1, keepdim=True):
            image = torch.tensordot(weights.float(), hull.corners, 1)
            probability = float(hull.model(image[None]).double().softmax(1)[0, 1])
            expected[min(49, int(probability * 50))] += 1
    assert sum(abs(a - b) for a, b in zip(counts, expected, strict=True)) <= 2  # on a bin's edge


def test_one_corner_has_no_explorer(page):
    found = page(1)
    assert "script" not in {tag for tag, _ in found.elements}
    assert "explorer" not in " ".join(found.words)
    assert len(found.images()) == 4  # initial, corner, target, histogram


def test_intermediate_images_missing_damaged_or_of_another_size(page, tmp_path):
    found = page(3, steps=range(10, 130, 10))
    steps = [image["alt"] for image in found.images() if "step" in image["alt"]]
    assert len(steps) == 16
    assert steps[0] == "corner 0: step 10"
    assert steps[-1] == "corner 1: step 120"
    folder = tmp_path / "images/steps"
    (folder / "step_000010_corner_0.png").write_bytes(b"no picture")
    (folder / "step_000120_corner_0.png").unlink()
    (folder / "step_x_corner_0.png").write_bytes(b"")
    words = [panel.words for panel in steps_sheet(tmp_path, (1, 6, 6)).rows[0]]
    assert words[-1] == "step 110"
    assert "step 10" not in words
    for path in folder.iterdir():
        path.unlink()
    assert steps_sheet(tmp_path, (1, 6, 6)) is None


@pytest.mark.usefixtures("undrawn")
def test_without_the_worst_points_picture(tmp_path):
    hull = made_hull(2)
    result = evaluated(hull, tmp_path)
    (tmp_path / "images/worst_case.png").unlink()
    write_report(tmp_path, hull, result, NAMES)
    assert "The worst point found" not in (tmp_path / "report.html").read_text()


def test_spread_keeps_the_ends():
    assert spread([1, 2, 3], 8) == [1, 2, 3]
    assert spread(list(range(100)), 4) == [0, 33, 66, 99]


def test_pictures_too_large_as_png_become_jpeg():
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert data_uri(image, 1e6).startswith("data:image/png")
    assert data_uri(image, 1000).startswith("data:image/jpeg")
