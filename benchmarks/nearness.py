"""What it costs to keep corners near their initial image: a panel for every sweep over nearness.

For every network `python train.py ... loss.nearness=... -m` and `python evaluate.py run=DIR`; then
`python benchmarks/nearness.py --panels NAME=DIR NAME=DIR --out nearness.png`, which reads each
one's `runs.csv`. Distances are in units of the mean distance between two images of the data set; a
filled mark's features collide, an open one's do not; beside it stands its nearness.
"""

import argparse
import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLLIDES = "features collide"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panels", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    panels = [panel.rpartition("=")[::2] for panel in arguments.panels]
    figure = Figure(figsize=(2.6 * len(panels), 2.6), layout="constrained")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for (name, folder), axes in zip(panels, every, strict=True):
        with (Path(folder) / "runs.csv").open(newline="") as file:
            draw(axes, name, list(csv.DictReader(file)))
    every[0].set_ylabel("between two corners", fontsize=8)
    figure.savefig(arguments.out, dpi=200)


def draw(axes: Axes, name: str, rows: list[dict[str, str]]) -> None:
    """One sweep: how far apart the corners are against how far they are from the initial image."""
    rows = sorted(rows, key=lambda row: float(row["loss.nearness"]))
    size = [float(row["relative_size"]) for row in rows]
    unit = [float(row["corner_distance_mean"]) / float(row["relative_size"]) for row in rows]
    away = [float(row["initial_distance_mean"]) / u for row, u in zip(rows, unit, strict=True)]
    axes.plot(away, size, color="#dfe3e8", zorder=1)
    for x, y, row in zip(away, size, rows, strict=True):
        filled = row["outcome"] == COLLIDES
        axes.plot(x, y, "o", color="#0072B2", mfc="#0072B2" if filled else "white", ms=4)
        place = (4, -2) if x < max(away) else (-4, 5)
        axes.annotate(
            f"{float(row['loss.nearness']):g}", (x, y), place, textcoords="offset points",
            fontsize=6, ha="left" if x < max(away) else "right",
        )  # fmt: skip
    axes.set_title(name, fontsize=8)
    axes.set_xlabel("from the initial image", fontsize=8)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.12, y=0.12)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
