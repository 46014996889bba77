"""report.html in a real browser, with the network off."""

import itertools
import math
import shutil

import pytest
import torch
from matplotlib.figure import Figure

from feature_collisions.evaluation.lattice import explored, lattice
from feature_collisions.report import report
from feature_collisions.report.page import tables_page
from feature_collisions.report.tables import Table
from helpers.hulls import NAMES, NASTY, evaluated, made_hull

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def show(browser, tmp_path, monkeypatch):
    """Write the report of a made hull and open it; fails on errors and on any request."""
    monkeypatch.setattr(report, "save_figure", lambda *_: None)  # the page holds what it shows
    contexts, troubles = [], []

    def opened(corners=5, size=(1, 6, 6), script=True):
        hull = made_hull(corners, size)
        report.write_report(tmp_path, hull, evaluated(hull, tmp_path), NAMES)
        context = browser.new_context(
            offline=True, java_script_enabled=script, viewport={"width": 1100, "height": 1000}
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
        address = (tmp_path / "report.html").as_uri()
        page.on("request", lambda request: troubles.append(request.url) if request.url != address
                and not request.url.startswith("data:") else None)  # fmt: skip
        page.goto(address)
        if script and corners > 1:
            page.wait_for_selector("#explorer:not([hidden])", timeout=10_000)
        return hull, page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def after_frame(page):
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def canvas_pixels(page, size):
    """(C, H, W) from 0 to 255."""
    values = page.evaluate(
        "(() => { const c = document.querySelector('.mix canvas'); return Array.from("
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data) })()"
    )
    channels, height, width = size
    return torch.tensor(values).view(height, width, 4)[..., :channels].permute(2, 0, 1)


def set_slider(page, index, value):
    page.evaluate(
        "([i, v]) => { const s = document.querySelectorAll('.sliders input')[i]; s.value = v;"
        "s.dispatchEvent(new Event('input', { bubbles: true })) }",
        [index, value],
    )
    after_frame(page)


def shares(page):
    return [float(text[:-2]) / 100 for text in page.locator(".sliders output").all_inner_texts()]


def slow_interpolation(weights, values, steps):
    """The one simplex of Kuhn's triangulation that holds the point, found by trying all."""
    count = len(weights)
    sums = torch.tensor(list(itertools.accumulate(weights))[:-1], dtype=torch.float64) * steps
    base = sums.floor()
    for order in itertools.permutations(range(count - 1)):
        vertices = [base]
        for axis in order:
            step = torch.zeros(count - 1, dtype=torch.float64)
            step[axis] = 1
            vertices.append(vertices[-1] + step)
        system = torch.cat([torch.stack(vertices, 1), torch.ones(1, count, dtype=torch.float64)])
        parts = torch.linalg.solve(system, torch.cat([sums, torch.ones(1, dtype=torch.float64)]))
        if parts.min() < -1e-9:
            continue
        places = [sum(math.comb(int(s) + j, j + 1) for j, s in enumerate(v)) for v in vertices]
        return sum(
            part * values[place]
            for part, place in zip(parts.tolist(), places, strict=True)
            if part > 1e-9
        )
    raise AssertionError("no simplex holds the point")


@pytest.mark.parametrize("corners", [2, 3, 5])
def test_interpolation_on_the_page(show, corners):
    hull, page = show(corners)
    found = explored(hull, NAMES)
    values = torch.tensor(found["values"], dtype=torch.float64) / found["scale"]
    values = values.view(-1, len(found["classes"]))
    script = (
        "list => { const data = JSON.parse(document.getElementById('explorer-data').textContent);"
        "return list.map(w => interpolated(w, data)) }"
    )
    generator = torch.Generator().manual_seed(0)
    draws = torch.empty(20, corners, dtype=torch.float64).exponential_(generator=generator)
    mixes = (draws / draws.sum(1, keepdim=True)).tolist()
    for mix, shown in zip(mixes, page.evaluate(script, mixes), strict=True):
        expected = slow_interpolation(mix, values, found["steps"])
        assert torch.allclose(torch.tensor(shown, dtype=torch.float64), expected, atol=1e-6)
    points = lattice(corners, found["steps"])
    shown = torch.tensor(page.evaluate(script, points.tolist()), dtype=torch.float64)
    assert torch.allclose(shown, values, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 6, 6), (3, 40, 30)])
def test_sliders_mix_the_corners_on_the_canvas(show, size):
    hull, page = show(4, size)
    for index, value in ((0, 0.4), (2, 0.7), (3, 1.0), (1, 0.25)):
        set_slider(page, index, value)
        weights = shares(page)
        assert weights[index] == pytest.approx(value, abs=1e-3)
        assert sum(weights) == pytest.approx(1, abs=3e-3)
        corners = (hull.corners * 255).round()
        expected = torch.tensordot(torch.tensor(weights), corners, 1)
        assert (canvas_pixels(page, size) - expected).abs().max() < 2
    assert page.locator(".mix .class").inner_text() in NAMES


def test_a_drag_to_a_corner_shows_that_corner(show):
    hull, page = show(5)
    svg = page.locator("#explorer svg")
    svg.scroll_into_view_if_needed()
    box, handle = svg.bounding_box(), page.locator(".handle").bounding_box()
    scale = box["width"] / 368
    centre = [handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2]
    angle = 2 * math.pi / 5 - math.pi / 2
    page.mouse.move(*centre)
    page.mouse.down()
    seen = set()
    for k in range(1, 31):
        reach = 170 * scale * k / 30  # past the corner: the point stays in the polygon
        page.mouse.move(centre[0] + reach * math.cos(angle), centre[1] + reach * math.sin(angle))
        after_frame(page)
        seen.add(page.locator(".mix .probability").inner_text())
    page.mouse.up()
    assert len(seen) > 10
    assert shares(page) == pytest.approx([0, 1, 0, 0, 0], abs=2e-3)
    expected = (hull.corners[1] * 255).round()
    assert (canvas_pixels(page, (1, 6, 6)) - expected).abs().max() <= 1
    shown = float(page.locator(".mix .probability").inner_text())
    with torch.no_grad():
        own = float(hull.model(hull.corners[1][None]).softmax(1)[0, 1])
    assert shown == pytest.approx(own, abs=2e-3)
    page.mouse.move(*centre)
    after_frame(page)
    assert shares(page)[1] > 0.9  # the button is up: nothing follows


def test_weights_of_a_point_in_the_polygon(show):
    """Not negative, one in all, and the corners' mean by them is the point: so at every corner."""
    _, page = show(2)
    generator = torch.Generator().manual_seed(1)
    for corners in (3, 5, 12):
        turns = [2 * math.pi * k / corners for k in range(corners)]
        polygon = [[math.cos(turn), math.sin(turn)] for turn in turns]
        points = ((torch.rand(20, 2, generator=generator) * 2 - 1) * 0.3).tolist() + polygon
        found = page.evaluate("([l, q]) => l.map(p => wachspress(p, q))", [points, polygon])
        for point, weights in zip(points, found, strict=True):
            assert min(weights) >= 0
            assert sum(weights) == pytest.approx(1)
            for axis in (0, 1):
                mean = sum(w * vertex[axis] for w, vertex in zip(weights, polygon, strict=True))
                assert mean == pytest.approx(point[axis], abs=1e-9)
        for k, weights in enumerate(found[20:]):
            assert weights[k] == pytest.approx(1)


@pytest.mark.parametrize("corners", [1, 2, 24])
def test_any_number_of_corners(show, corners):
    _, page = show(corners)
    assert page.locator(".sliders input").count() == (corners if corners > 1 else 0)
    if corners > 1:
        for name in ("worst", "worst_features", "random", "centre"):
            page.locator(f"button[name={name}]").click()
        after_frame(page)
        assert shares(page) == pytest.approx([1 / corners] * corners, abs=1e-3)


def test_arrow_keys_move_the_point(show):
    _, page = show(3)
    page.locator(".handle").focus()
    for _ in range(60):
        page.keyboard.press("ArrowUp")
    after_frame(page)
    assert shares(page) == pytest.approx([1, 0, 0], abs=2e-3)


def test_html_in_names_is_text(show):
    _, page = show(5)
    assert page.evaluate("window.broken") is None
    assert page.locator(".bar span").first.inner_text() == NASTY
    assert NASTY in page.locator("h1").inner_text()
    assert page.locator("img[onerror]").count() == 0


def test_without_javascript_tables_and_pictures_show(show):
    _, page = show(5, script=False)
    assert not page.locator("#explorer").is_visible()
    assert page.locator("table").count() == 6  # none of the edges, which were not walked
    for table in page.locator("table").all():
        assert table.is_visible()
    for image in page.locator("img").all():
        box = image.bounding_box()
        assert min(box["width"], box["height"]) > 10
    assert page.locator("table.claims tbody tr").count() >= 4


CUT = """() => [...document.querySelectorAll('h1, h2, p, figcaption, td, th, .tag, .bar span')]
    .filter(each => each.checkVisibility() && each.scrollWidth > each.clientWidth + 1
            && getComputedStyle(each).display !== 'inline'
            && getComputedStyle(each).textOverflow !== 'ellipsis').map(each => each.textContent)"""
FAINT = """() => {
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const ground = each => { for (; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (!colour.startsWith('rgba(0, 0, 0, 0')) return colour } return 'rgb(255, 255, 255)' };
  return [...document.querySelectorAll('h1, h2, p, td, th, small, figcaption, .tag, button, dt')]
    .filter(each => each.checkVisibility()).filter(each => {
      const pair = [light(getComputedStyle(each).color), light(ground(each))].sort((a, b) => b - a);
      return (pair[0] + 0.05) / (pair[1] + 0.05) < 4.5 }).map(each => each.outerHTML) }"""


def fits_everywhere(page):
    """No wider than the window, nothing cut, and all text at WCAG's contrast, 4.5."""
    for width, scheme in itertools.product((1280, 390), ("light", "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT) == []
        assert page.evaluate(FAINT) == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 31)"


def charts_are_readable(page):
    """Charts are of their own size on a phone, where their box scrolls sideways, not the page."""
    page.set_viewport_size({"width": 390, "height": 900})
    charts = page.locator(".chart img").all()
    for chart in charts:
        assert chart.bounding_box()["width"] >= 624  # the figure's own size: its labels are read
        assert chart.evaluate("each => getComputedStyle(each.parentElement).overflowX") == "auto"
    return len(charts)


def test_a_report_on_a_desk_and_on_a_phone_by_day_and_by_night(show):
    page = show(5)[1]
    fits_everywhere(page)
    assert charts_are_readable(page)


LONG = "the whole hull is a toy terrier, and a network-with-a-name-of-many-letters said so"


@pytest.mark.parametrize("kind", ["runs", "survey"])
def test_tables_on_a_desk_and_on_a_phone_by_day_and_by_night(browser, kind):
    columns = ["network", *(f"relative size {k}" for k in range(14)), "outcome"]
    rows = [[f"model_{k}", *(f"{k + 0.123:.3f}",) * 14, LONG] for k in range(3)]
    meanings = [("relative size 1", LONG)]
    table = Table("3 of 3: features collide", columns, rows, LONG, meanings)
    if kind == "runs":
        brief = Table(table.heading, columns[:4], [row[:4] for row in rows], LONG)
        html = tables_page("3 runs", "a_sweep", [brief], None, table, ["./a/report.html", "", ""])
    else:
        figure = ("survey", Figure(), "relative sizes")
        html = tables_page("3 networks", "a_survey", [table, table], figure)
    page = browser.new_context(offline=True).new_page()
    page.set_content(html)
    fits_everywhere(page)
    scrolled = (
        "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > "
        "each.clientWidth).map(each => getComputedStyle(each).overflowX)"
    )
    page.set_viewport_size({"width": 1280, "height": 900})
    assert page.evaluate(scrolled) == []  # no column is hidden
    page.set_viewport_size({"width": 390, "height": 900})
    wide = page.evaluate(scrolled)
    assert set(wide) == {"auto"}  # such a table is scrolled by itself, not the page
    assert charts_are_readable(page) == (kind == "survey")
