"""How fast report.html opens and follows a drag: `python benchmarks/page.py run/report.html`."""

import itertools
import math
import shutil
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DRAG_SECONDS = 3.0
COUNT = """(() => {
  window.drawn = []; const put = CanvasRenderingContext2D.prototype.putImageData;
  CanvasRenderingContext2D.prototype.putImageData = function (...all) {
    const before = performance.now(); put.apply(this, all); window.drawn.push(before);
  };
})()"""


def opened(page: Page, address: str) -> float:
    """Seconds until the explorer can be used."""
    started = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("#explorer:not([hidden])", timeout=30_000)
    return time.perf_counter() - started


def dragged(page: Page) -> list[float]:
    """Seconds between two pictures on the canvas, while a mouse drags in circles."""
    page.locator("#explorer svg").scroll_into_view_if_needed()
    box = page.locator("#explorer svg").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.evaluate(COUNT)
    page.mouse.move(x, y)
    page.mouse.down()
    started, moves = time.perf_counter(), 0
    while time.perf_counter() < started + DRAG_SECONDS:
        moves += 1
        page.mouse.move(x + 70 * math.cos(moves / 15), y + 70 * math.sin(moves / 15))
    page.mouse.up()
    times: list[float] = page.evaluate("window.drawn")
    return [(b - a) / 1000 for a, b in itertools.pairwise(times)]


def main(path: Path) -> None:
    chromium = shutil.which("chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        seconds = []
        for _ in range(5):
            page = browser.new_context(offline=True).new_page()
            seconds.append(opened(page, path.resolve().as_uri()))
        gaps = dragged(page)
        browser.close()
    print(f"{path.stat().st_size / 1e6:.2f} MB; opens in {statistics.median(seconds):.2f} s "
          f"(slowest of {len(seconds)}: {max(seconds):.2f} s)")  # fmt: skip
    print(
        f"drag: {1 / statistics.mean(gaps):.0f} pictures a second on average, "
        f"slowest tenth {1 / statistics.quantiles(gaps, n=10)[-1]:.0f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
