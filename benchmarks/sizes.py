"""Relative size against steps, rate, corners and beta: where it levels off, and at what tolerance.

Means over pairs, with their 95 % bootstrap intervals; seconds are those of one search. The mean
width is over the same distance; memory is the most that the process has had so far.
Run: PYTHONPATH=DIR python benchmarks/sizes.py --networks MODULE:NAME MODULE:NAME --root DIR
"""

import argparse
import importlib
import resource
import warnings
from dataclasses import replace

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore

from feature_collisions import find_corners
from feature_collisions.commands.random_pairs import random_pairs
from feature_collisions.commands.start import register_schemas
from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.evaluation.survey import interval_of
from feature_collisions.graph.flow import last_layer
from feature_collisions.graph.graph import trace
from feature_collisions.hull.distances import mean_width
from feature_collisions.settings.train import DataSettings, to_settings

STEPS = (500, 1000, 2000, 4000, 8000, 16000)
BETAS, CORNERS, RATES = (0.01, 0.03, 0.3, 1.0), (10, 20, 50), (0.05, 0.1, 0.2)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", required=True)
    parser.add_argument("--root", required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--betas", type=float, nargs="*", default=BETAS)
    parser.add_argument("--corners", type=int, nargs="*", default=CORNERS)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument("--rate", type=float, help="of the others; else experiment=small_pixel's")
    parser.add_argument("--budget", type=int, default=500, help="steps of all but --steps")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    warnings.simplefilter("ignore")
    register_schemas(ConfigStore.instance())
    with initialize("../conf", version_base="1.3"):
        base = to_settings(compose("config", ["experiment=small_pixel", "classifier.path=a:b"]))
    models = {}
    for name in arguments.networks:
        module, _, function = name.partition(":")
        models[name] = getattr(importlib.import_module(module), function)().eval()
    images = ImageFolder(DataSettings("image_folder", arguments.root, 32))
    pairs = random_pairs("pairs", arguments.pairs, images, 0, list(models.values()), True, 0.0)
    distance = images.mean_distance()
    settings: list[tuple[str, float]] = [("steps", steps) for steps in arguments.steps]
    settings += [("beta", beta) for beta in arguments.betas]
    settings += [("corners", count) for count in arguments.corners]
    settings += [("rate", rate) for rate in arguments.rates]
    print(
        "| network | changed | size | 95 % interval | mean width | feature error | accuracy | "
        "seconds | GiB |\n" + "| --- " * 9 + "|"
    )
    for name, model in models.items():
        layer = last_layer(trace(model, (3, 32, 32))).layer
        for what, value in settings:
            steps = int(value) if what == "steps" else arguments.budget
            loss = replace(base.loss, beta=value) if what == "beta" else base.loss
            corners = range(int(value) if what == "corners" else 5)
            rate = value if what == "rate" else arguments.rate or base.optimizer.rate
            stop = replace(base.stop, min_steps=steps, max_steps=steps, probability=None)
            found = []
            for pair in pairs:
                hull = find_corners(
                    model,
                    layer,
                    images.find("initial", pair.initial).image,
                    images.find("target", pair.target).image,
                    corners,
                    loss=loss,
                    optimizer=replace(base.optimizer, rate=rate),
                    stop=stop,
                )
                sample = hull.sample(200)
                size = float(hull.corner_distances().mean()) / 255 / distance
                accuracy, error = sample["accuracy"], sample["feature_relative_max"]
                width = mean_width(hull.corners) / distance
                found.append((size, width, error, accuracy, hull.summary["seconds"]))
            sizes, *rest = zip(*found, strict=True)
            size, low, high = interval_of(sizes)
            width, error, accuracy, seconds = (sum(column) / len(found) for column in rest)
            interval = "-" if low is None else f"{low:.3f} to {high:.3f}"
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"| {name} | {what} {value:g} | {size:.3f} | {interval} | {width:.3f} "
                f"| {error:.4f} | {accuracy:.1%} | {seconds:.1f} | {memory:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
