"""What collides with networks of today: transformers, smooth activations, encoders, last features.

    PYTHONPATH=DIR python benchmarks/today.py classes MODULE:NAME... --root IMAGES --size 32
    PYTHONPATH=DIR python benchmarks/today.py features MODULE:NAME... --root IMAGES --size 112

Pairs of images at random, of a classifier such as it is right about (`pairs=random:N:0`), five
corners, and the defaults of `find_corners`. Of each hull 2000 uniform points, and the largest
feature error that they or a search show. A line per pair and a table row per network: how many
pairs keep to each line, and the medians. Seconds are the process's.
*Pooled* is the size after averaging squares of 8x8 pixels. Each `--distance`, a reward for smooth
distances, has a row.
"""

import argparse
import importlib
import sys
import time
import warnings
from statistics import median

import torch
from torch import Tensor, nn

from feature_collisions import LossSettings, OptimizerSettings, StopSettings, find_corners
from feature_collisions.commands.random_pairs import random_pairs
from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.data.images import pooled_distance
from feature_collisions.hull.hull import Hull
from feature_collisions.settings.train import DataSettings

ERROR, NEAR, COSINE, SIZE = 0.1, 0.05, 0.99, 1.2  # the goals; --size-goal changes the last


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", choices=("classes", "features"))
    parser.add_argument("networks", nargs="+", help="MODULE:NAME")
    parser.add_argument("--root", required=True, help="folders of images, one per class")
    parser.add_argument("--size", type=int, required=True, help="of the images, in pixels")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--layer", default="auto")
    parser.add_argument("--only", nargs=2, metavar=("FIRST", "LAST"), help="folders, by name")
    parser.add_argument("--steps", type=int, default=StopSettings().max_steps)
    parser.add_argument("--reach", type=float, default=LossSettings().reach)
    parser.add_argument("--distance", type=float, nargs="+", default=[LossSettings().distance])
    parser.add_argument("--hull", type=int, default=LossSettings().hull)
    parser.add_argument("--optimizer", default="adam", choices=("adam", "sobolev"))
    parser.add_argument("--rate", type=float, default=OptimizerSettings().rate)
    parser.add_argument("--error", type=float, default=ERROR)
    parser.add_argument("--size-goal", type=float, default=SIZE)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    warnings.simplefilter("ignore")
    images = ImageFolder(DataSettings("image_folder", arguments.root, arguments.size))
    if arguments.only:
        images = between(images, *arguments.only)
    distances = images.mean_distances([1, 8])
    for name in arguments.networks:
        module, _, function = name.partition(":")
        model = getattr(importlib.import_module(module), function)().eval()
        classes = arguments.output == "classes"
        pairs = random_pairs("pairs", arguments.pairs, images, 0, [model], classes, 0.0)
        for weight in arguments.distance:
            rows = []
            for number, pair in enumerate(pairs):
                initial = images.find("initial", pair.initial).image
                target = images.find("target", pair.target).image
                started = time.process_time()
                hull = searched(model, initial, target, weight, arguments)
                found = measured(hull, distances)
                rows.append(found | {"seconds": time.process_time() - started})
                said = ", ".join(f"{key} {value:.3g}" for key, value in rows[-1].items())
                print(f"{name} {number} ({' to '.join(pair)}): {said}", flush=True)
            print(summed(name, hull, rows, arguments), flush=True)


def searched(
    model: nn.Module,
    initial: Tensor,
    target: Tensor,
    weight: float | None,
    arguments: argparse.Namespace,
) -> Hull:
    """The hull of one pair, with `weight` as `loss.distance`."""
    smooth = arguments.optimizer == "sobolev"
    return find_corners(
        model, arguments.layer, initial, target, output=arguments.output,
        loss=LossSettings(reach=arguments.reach, hull=arguments.hull, distance=weight),
        stop=StopSettings(max_steps=arguments.steps),
        optimizer=OptimizerSettings(
            arguments.optimizer, arguments.rate, average=0.9 if smooth else 0.0
        ),
    )  # fmt: skip


def between(images: ImageFolder, first: str, last: str) -> ImageFolder:
    """The images whose folder's name is from `first` to `last`."""
    chosen = [k for k, (file, _) in enumerate(images.files) if first <= file.parent.name <= last]
    images.files, images.labels = [images.files[k] for k in chosen], images.labels[chosen]
    return images


def measured(hull: Hull, distances: dict[int, float]) -> dict[str, float]:
    """What is said of one pair."""
    sample = hull.sample(2000)
    sizes = [pooled_distance(hull.corners, side) / each for side, each in distances.items()]
    found = dict(zip(("size", "pooled"), sizes, strict=True))
    searched = hull.worst_case(of="features").feature_relative or 0.0
    found["error"] = max(sample["feature_relative_max"], searched)
    if hull.output.kind == "features":
        return found | {"cosine": sample["cosine_min"], "before": hull.summary.initial_cosine or 0}
    off = abs(sample["probability_mean"] - hull.summary.target_probability)
    return found | {"accuracy": sample["accuracy"], "off": off}


def summed(
    name: str, hull: Hull, rows: list[dict[str, float]], arguments: argparse.Namespace
) -> str:
    """A row of the table."""
    lines = {
        "error": lambda row: row["error"] <= arguments.error,
        "size": lambda row: row["size"] >= arguments.size_goal,
    } | (
        {"cosine": lambda row: row["cosine"] >= COSINE}
        if arguments.output == "features"
        else {"accuracy": lambda row: row["accuracy"] == 1, "off": lambda row: row["off"] <= NEAR}
    )
    cells = [f"{key} {sum(map(line, rows))}" for key, line in lines.items()]
    if arguments.output == "features":
        cells = [each for each in cells if each.startswith("cosine")]
        whole = sum(map(lines["cosine"], rows))
    else:
        whole = sum(all(line(row) for line in lines.values()) for row in rows)
    medians = ", ".join(f"{key} {median(row[key] for row in rows):.3g}" for key in rows[0])
    return (
        f"| {name} | {hull.layer}, {hull.summary.activation}, {hull.summary.push} | "
        f"{whole} of {len(rows)} ({', '.join(cells)}) | {medians} |"
    )


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where a network's module is not looked for
    torch.set_num_threads(1)
    main()
