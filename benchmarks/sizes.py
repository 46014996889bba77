"""Relative size against steps, corners and beta: where it levels off, and at what tolerance.

Run: PYTHONPATH=DIR python benchmarks/sizes.py --networks MODULE:NAME MODULE:NAME --root DIR
"""

import argparse
import importlib
import sys
import warnings
from dataclasses import replace

from hydra import compose, initialize
from hydra.core.config_store import ConfigStore

from feature_collisions import find_corners
from feature_collisions.commands.random_pairs import random_pairs
from feature_collisions.commands.start import register_schemas
from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.networks.target_layer import last_hidden_layer
from feature_collisions.settings.train import DataSettings, to_settings

STEPS, BETAS, CORNERS = (125, 250, 500, 1000, 2000), (0.01, 0.03, 0.3, 1.0), (10, 20, 50)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", required=True)
    parser.add_argument("--root", required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--pairs", type=int, default=2)
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
    settings = [("steps", steps) for steps in STEPS]
    settings += [("beta", beta) for beta in BETAS] + [("corners", count) for count in CORNERS]
    print(
        "| network | changed | size | feature error | accuracy | seconds |\n" + "| --- " * 6 + "|"
    )
    for name, model in models.items():
        layer = last_hidden_layer(model)
        for what, value in settings:
            loss, stop, corners = base.loss, base.stop, range(5)
            if what == "steps":
                stop = replace(stop, min_steps=value, max_steps=value)
            elif what == "beta":
                loss = replace(loss, beta=value)
            else:
                corners = range(value)
            found = []
            for pair in pairs:
                hull = find_corners(
                    model,
                    layer,
                    images.find("initial", pair.initial).image,
                    images.find("target", pair.target).image,
                    corners,
                    loss=loss,
                    optimizer=base.optimizer,
                    stop=replace(stop, probability=None),
                )
                sample = hull.sample(200)
                size = float(hull.corner_distances().mean()) / 255 / distance
                accuracy, error = sample["accuracy"], sample["feature_relative_max"]
                found.append((size, error, accuracy, hull.summary["seconds"]))
            mean = [sum(column) / len(found) for column in zip(*found, strict=True)]
            print(
                f"| {name} | {what} {value} | {mean[0]:.3f} | {mean[1]:.4f} | {mean[2]:.1%} "
                f"| {mean[3]:.1f} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
