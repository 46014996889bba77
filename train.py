"""Find the corners of a polytope of feature collisions: `python train.py experiment=mnist`."""

import sys
import time
from dataclasses import asdict
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from feature_collisions.commands import explain, run_command
from feature_collisions.config import Settings, parse_corners, to_settings
from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.places import CONFIG, place_of_run, remove_if_empty


def main(config: DictConfig) -> None:
    """One job of Hydra's; in a sweep errors are raised, so that Hydra goes on to the next job."""
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    output = Path(hydra.runtime.output_dir)
    try:
        settings = to_settings(config)
        directory, checkpoint = place_of_run(settings.ckpt_path, output, sweep)
        group = directory.parent.name if sweep else directory.name
        train(settings, OmegaConf.to_yaml(config, resolve=True), directory, checkpoint, group)
    except (SettingError, CollisionError, OSError) as error:
        remove_if_empty(output)
        if sweep:
            raise
        sys.exit(f"error: {explain(error)}")


def train(
    settings: Settings, config: str, directory: Path, checkpoint: Path | None, group: str
) -> None:
    """Build the objects in plain Python, find the corners, write and show them."""
    started = time.perf_counter()
    from feature_collisions.classifiers import load_classifier  # imported here: it takes seconds
    from feature_collisions.data import load_data
    from feature_collisions.files import write_text
    from feature_collisions.logs import log_hull, wandb_logger
    from feature_collisions.report import print_corners
    from feature_collisions.search import Search

    data = load_data(settings.data)
    initial = data.test.find("initial", settings.initial)
    target = data.test.find("target", settings.target)
    search = Search(
        load_classifier(settings.classifier, data, settings.seed),
        settings.classifier.layer,
        initial.image,
        target.image,
        parse_corners(settings.corner),
        settings.loss,
        settings.optimizer,
        settings.stop,
        settings.log,
        settings.trainer,
        checkpoint,
        settings.corners_per_batch,
        settings.channels_last,
        settings.compile,
    )
    write_text(directory / CONFIG, config)
    name = f"{settings.name} corner {settings.corner}"
    with wandb_logger(settings.wandb, directory, name, group, asdict(settings)) as logger:
        hull = search.run(directory, logger)
        hull.summary |= {
            "experiment": settings.name,
            "classifier": settings.classifier.name,
            "target_label": target.label,
            "seconds_total": time.perf_counter() - started,
        }
        hull.save(directory)
        if logger:
            log_hull(logger, hull)
    print_corners(hull, data.test.class_names, directory)


if __name__ == "__main__":
    run_command(main, Path(__file__).parent / "conf", "config")
