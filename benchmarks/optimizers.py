"""Steps and seconds to the same L_pos: the default optimiser against the authors'.

    python benchmarks/optimizers.py --root DIR --weights FILE

Both start from the same image with the same loss, that of `experiment=squeezenet_pixel`. The
authors' descent (`optimizer=paper`: their running mean, their fixed rate) may take `--times` as
many steps as the default took.
"""

import argparse
import warnings
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from feature_collisions.commands.start import register_schemas
from feature_collisions.data.datasets import load_data
from feature_collisions.hull.hull import Hull
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LogSettings, StopSettings
from feature_collisions.settings.train import Settings, parse_corners, to_settings

CONF = Path(__file__).parent.parent / "conf"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="data.root")
    parser.add_argument("--weights", required=True, help="classifier.weights")
    parser.add_argument("--corner", default="0", help="as train.py takes it")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.5, 0.3], help="of ||f(t)||")
    parser.add_argument("--times", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    overrides = [
        "experiment=squeezenet_pixel", f"data.root={arguments.root}",
        f"classifier.weights={arguments.weights}", f"corner={arguments.corner}", "loss.hull=0",
    ]  # fmt: skip
    for level in arguments.levels:
        default = run(settings(*overrides), level)
        report("default", default, level)
        steps = arguments.times * default.summary["steps"]
        paper = run(settings(*overrides, "optimizer=paper"), level, steps)
        report("paper", paper, level)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


def settings(*overrides: str) -> Settings:
    register_schemas(ConfigStore.instance())
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed: Settings = to_settings(compose("config", list(overrides)))
    return composed


def run(wanted: Settings, level: float, max_steps: int | None = None) -> Hull:
    """Search until every L_pos is below `level` ||f(t)||."""
    images = load_data(wanted.data).test
    stop = StopSettings(None, 0, max_steps or wanted.stop.max_steps, level, None)
    return Search(
        load_classifier(wanted.classifier, load_data(wanted.data), wanted.seed),
        wanted.classifier.layer,
        images.find("initial", wanted.initial).image,
        images.find("target", wanted.target).image,
        parse_corners(wanted.corner),
        loss=wanted.loss,
        optimizer=wanted.optimizer,
        stop=stop,
        log=LogSettings(every=1),
        trainer={"accelerator": "cpu"},
        channels_last=wanted.channels_last,
    ).run()


def report(name: str, hull: Hull, level: float) -> None:
    summary = hull.summary
    reached = max(entry["positive_relative"] for entry in summary["corners"])
    print(
        f"L_pos < {level:g} ||f(t)||, {name}: {summary['steps']} steps, "
        f"{summary['seconds']:.1f} s, largest L_pos {reached:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
