"""Find the corners of a polytope of feature collisions: `python train.py experiment=mnist`."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from feature_collisions.commands import explain, run_command
from feature_collisions.config import Settings, parse_corners, to_settings
from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.places import CHECKPOINT, CONFIG, place_of_run, remove_if_empty

if TYPE_CHECKING:
    from torch import Tensor, nn

    from feature_collisions.composite import Sources
    from feature_collisions.data import DataSplit
    from feature_collisions.hull import Hull


def main(config: DictConfig) -> None:
    """One job of Hydra's; in a sweep errors are raised, so that Hydra goes on to the next job."""
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    output = Path(hydra.runtime.output_dir)
    try:
        settings = to_settings(config)
        directory, checkpoint = place_of_run(settings.ckpt_path, output, sweep)
        group = directory.parent.name if sweep else directory.name
        train(settings, config, directory, checkpoint, group)
    except (SettingError, CollisionError, OSError) as error:
        remove_if_empty(output)
        if sweep:
            raise
        sys.exit(f"error: {explain(error)}")


def train(
    settings: Settings, config: DictConfig, directory: Path, checkpoint: Path | None, group: str
) -> None:
    """Load data and classifier, and search one pair of images or many."""
    from feature_collisions.classifiers import load_classifier  # imported here: it takes seconds
    from feature_collisions.data import load_data
    from feature_collisions.files import write_text
    from feature_collisions.pairs import Pair, parse_pairs, run_pairs, summary_table
    from feature_collisions.report import print_corners

    data = load_data(settings.data)
    model = load_classifier(settings.classifier, data, settings.seed)
    if settings.pairs is None:
        hull = search_pair(settings, config, data, model, directory, checkpoint, group)
        print_corners(hull, data.test.class_names, directory)
        return
    pairs = parse_pairs(settings.pairs, data.test, settings.seed, model)

    def search(pair: Pair, place: Path) -> Hull:
        last = place / CHECKPOINT
        one = replace(settings, initial=pair.initial, target=pair.target, pairs=None)
        changed = OmegaConf.merge(
            config, {"initial": pair.initial, "target": pair.target, "pairs": None}
        )
        assert isinstance(changed, DictConfig)
        return search_pair(one, changed, data, model, place, last if last.exists() else None, group)

    write_text(directory / CONFIG, OmegaConf.to_yaml(config, resolve=True))
    outcomes = run_pairs(pairs, directory, search)
    print(f"\n{summary_table(outcomes)}\nruns: {directory}")


def search_pair(
    settings: Settings,
    config: DictConfig,
    data: DataSplit,
    model: nn.Module,
    directory: Path,
    checkpoint: Path | None,
    group: str,
) -> Hull:
    """Build the objects in plain Python, find the corners, and write them."""
    started = time.perf_counter()
    from feature_collisions.files import refuse_links, write_text
    from feature_collisions.linear_program import LinearPrograms
    from feature_collisions.logs import log_hull, wandb_logger
    from feature_collisions.search import Search

    refuse_links(directory)
    initial = data.test.find("initial", settings.initial)
    target = data.test.find("target", settings.target)
    sources = None
    if settings.parameterisation == "composite":
        sources = paste_patches(settings, data, initial.image, directory)
    problem = (
        model,
        settings.classifier.layer,
        initial.image,
        target.image,
        parse_corners(settings.corner),
    )
    search: Search | LinearPrograms
    if settings.solver == "linear_program":
        search = LinearPrograms(*problem, settings.objective, settings.seed)
    else:
        search = Search(
            *problem,
            settings.loss,
            settings.optimizer,
            settings.stop,
            settings.log,
            settings.trainer,
            directory,
            checkpoint,
            settings.corners_per_batch,
            settings.channels_last,
            settings.compile,
            sources,
            settings.patches.grid if settings.patches.logits == "grid" else None,
            settings.corner_order,
        )
    built = time.perf_counter()
    write_text(directory / CONFIG, OmegaConf.to_yaml(config, resolve=True))
    name = f"{settings.name} corner {settings.corner}"
    with wandb_logger(settings.wandb, directory, name, group, asdict(settings)) as logger:
        hull = search.run(logger)
        hull.summary |= {
            "experiment": settings.name,
            "classifier": settings.classifier.name,
            "target_label": target.label,
            "seconds_total": hull.summary["seconds_total"] + built - started,
        }
        hull.save(directory)
        if logger:
            log_hull(logger.experiment, hull)
    return hull


def paste_patches(settings: Settings, data: DataSplit, seed: Tensor, directory: Path) -> Sources:
    """What composites are made of; some of the matches are drawn as Figure 4 shows them."""
    from feature_collisions.figures import save_figure
    from feature_collisions.patch_database import patch_images
    from feature_collisions.patch_figure import match_figure
    from feature_collisions.patches import find_neighbours, paste

    images = patch_images(settings.patches, settings.data, data.train)
    found = find_neighbours(seed, images, settings.patches, settings.seed)
    count = len(found[1].image)
    shown = sorted({count // 5, count // 2, 4 * count // 5})
    figure = match_figure(seed, *found, shown, settings.patches)
    save_figure(figure, directory / "images" / "patches.png")
    return paste(*found, settings.patches, seed.shape[-1])


if __name__ == "__main__":
    run_command(main, Path(__file__).parent / "conf", "config")
