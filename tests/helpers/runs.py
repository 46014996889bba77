"""Overrides for quick commands, and run directories made without a search."""

import torch

from feature_collisions.runs.records import Config, Summary
from feature_collisions.runs.run import Run

QUICK = ("wandb.mode=disabled", "stop.min_steps=0")
FAST = ("samples=50", "plain.steps=0", "edges.seconds=0", "proof.seconds=0", "proof.depth=false")
CONFIG = """
data: {name: digits, root: null}
classifier: {name: mnist_mlp, weights: null, layer: hidden1}
seed: 0
"""


def make_run(directory, corner=0, config="", **changed):
    image = torch.full((3 if changed.get("distance_scale") == 255 else 1, 2, 2), 0.5)
    summary = {
        "experiment": "mnist",
        "classifier": "mnist_mlp",
        "classifier_hash": "0",
        "layer": "hidden1",
        "initial_class": 3,
        "target_class": 7,
        "target_probability": 0.9,
        "distance_scale": 1,
        "converged": True,
        "steps": 10,
        "seconds": 1.0,
        "seconds_total": 1.0,
        "corners": [
            {
                "corner": corner,
                "unit": corner,
                "positive": 0.1,
                "positive_relative": 0.1,
                "negative": -1.0,
                "unit_preactivation": -1.0,
                "predicted_class": 7,
                "probability": 0.9,
            }
        ],
    }
    Run(
        directory,
        image[None].clone(),
        image,
        image.clone(),
        torch.tensor([corner]),
        Summary.of(summary | changed),
        Config(),
    ).save(directory)
    (directory / "config.yaml").write_text(f"corner: {corner}\n{config}")
