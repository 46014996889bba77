"""Find the corners of a polytope of feature collisions: `python train.py experiment=mnist`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ..ends import Stopped
from ..errors import CollisionError, SettingError
from ..hull.places import (
    CHECKPOINT,
    CONFIG,
    claimed,
    place_of_run,
    remove_if_empty,
)
from ..settings.solver import check_used
from ..settings.train import Settings, parse_corners, to_settings
from .command_line import changed, command, override
from .start import explain

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..data.datasets import DataSplit
    from ..hull.hull import Hull
    from ..patches.composite import Sources


def main(config: DictConfig) -> None:
    """Run one job of Hydra's; in a sweep errors are raised, so that Hydra runs the next job."""
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    setting = "hydra.sweep.dir=" if sweep else "hydra.run.dir="
    named = any(each.startswith(setting) for each in hydra.overrides.hydra)
    directory = output = Path(hydra.runtime.output_dir)
    try:
        settings = to_settings(config)
        check_used(settings.solver, hydra.overrides.task, settings.objective)
        directory, checkpoint = place_of_run(settings.ckpt_path, output, sweep, named)
        group = directory.parent.name if sweep else directory.name
        with claimed(directory, "hydra.sweep.dir" if sweep else "hydra.run.dir"):
            train(settings, config, directory, checkpoint, group)
    except Stopped as stopped:
        begun = (directory / CONFIG).exists()
        remove_if_empty(output)
        place = Path(hydra.sweep.dir).absolute() if sweep else directory
        resumable = config.get("solver") != "linear_program"
        stopped.command = continuing(sys.argv[1:], place, sweep, sweep or begun, resumable)
        raise
    except (SettingError, CollisionError, OSError) as error:
        remove_if_empty(output)
        if sweep:
            raise
        sys.exit(f"error: {explain(error)}")


def continuing(arguments: list[str], place: Path, sweep: bool, begun: bool, resumable: bool) -> str:
    """The command that continues the run or sweep at `place`, or starts it again if it is empty.

    Linear programs keep no checkpoints; what they have not solved they solve again.
    """
    overrides = [override("hydra.sweep.dir" if sweep else "hydra.run.dir", place)]
    if resumable:
        overrides.append("ckpt_path=last")
    return command("train.py", *(changed(arguments, *overrides) if begun else arguments))


def train(
    settings: Settings, config: DictConfig, directory: Path, checkpoint: Path | None, group: str
) -> None:
    """Load data and classifier, and search one pair of images or many."""
    from ..data.datasets import load_data
    from ..data.files import write_text
    from ..networks.classifiers import load_classifier  # imported here: it takes seconds
    from ..report.findings import classes_of
    from ..report.tables import as_text
    from ..report.wandb_logs import check_login
    from ..settings.trainer import single_device
    from .deciding import deciding, hashes
    from .pairs import (
        check_earlier,
        evaluated,
        outcomes_table,
        parse_pairs,
        run_pairs,
    )
    from .random_pairs import Pair

    check_login(settings.wandb.mode)
    settings, config = with_size(settings, config)
    data = load_data(settings.data)
    model = load_classifier(settings.classifier, data, settings.seed)
    if place := single_device(settings.trainer):  # the hull is measured there, too
        model.to(place)
    settings, config = with_layer(settings, config, model)
    known = hashes(settings, model, data)
    if settings.pairs is None:
        hull = search_pair(settings, config, data, model, directory, checkpoint, group, known)
        names = classes_of(data.test.class_names, len(hull.target_logits))
        print_corners(hull.summary, names, directory)
        return
    others = settings.classifiers() if settings.networks else []
    models = [load_classifier(each, data, settings.seed) for each in others] or [model]
    pairs = parse_pairs(settings.pairs, data.test, settings.seed, models)
    del models

    def search(pair: Pair, place: Path) -> Hull:
        last = place / CHECKPOINT
        one = replace(settings, initial=pair.initial, target=pair.target, pairs=None)
        merged = OmegaConf.merge(
            config, {"initial": pair.initial, "target": pair.target, "pairs": None}
        )
        assert isinstance(merged, DictConfig)
        with claimed(place, "hydra.run.dir"):
            checkpoint = last if last.exists() else None
            return search_pair(one, merged, data, model, place, checkpoint, group, known)

    def decisive(pair: Pair) -> dict[str, Any]:
        images = [data.test.find(*each).image for each in pair._asdict().items()]
        return deciding(settings, known, *images)

    check_earlier(pairs, directory, decisive)
    write_text(directory / CONFIG, OmegaConf.to_yaml(config, resolve=True))
    outcomes = run_pairs(pairs, directory, search)
    table = outcomes_table(outcomes)
    print(f"\n{as_text(table)}\n\n{table.heading}. {table.note}\nruns: {directory}")
    if not any(map(evaluated, outcomes)):
        raise CollisionError(
            f"pairs={settings.pairs}: no pair could be evaluated; {directory / 'pairs.md'} says "
            f"why. The first: {outcomes[0]['reasons'][0]}"
        )
    print(f"next: {command('evaluate.py', override('run', directory))}")


def with_size(settings: Settings, config: DictConfig) -> tuple[Settings, DictConfig]:
    """The settings with a number, where `data.size` left it to the classifier."""
    from ..networks.classifiers import input_side

    if settings.data.size is not None:
        return settings, config
    side = input_side(settings.classifier)
    merged = OmegaConf.merge(config, {"data": {"size": side}})
    assert isinstance(merged, DictConfig)
    return replace(settings, data=replace(settings.data, size=side)), merged


def print_corners(summary: dict[str, Any], class_names: Sequence[str], directory: Path) -> None:
    """The table `train.py` ends with, what must be known about it, and where the run lies."""
    from ..report.findings import corners_table
    from ..report.tables import as_text

    table = corners_table(summary, class_names)
    print(f"\n{as_text(table)}\n" + (f"\n{table.note}" if table.note else ""))
    seconds = f"{summary['seconds']:.2f} s of {summary['seconds_total']:.1f} s in all"
    print(f"{summary['steps']} steps, {seconds}")
    label = summary.get("target_label")  # of the data set; a class where their numbers agree
    if label is not None and label != summary["target_class"]:
        target = class_names[summary["target_class"]]
        print(
            f"note: the classifier takes the target ({class_names[label]}) for {target}; "
            f"the corners collide with {target}"
        )
    if not summary["converged"]:
        print("not converged: see the warning above")
    print(f"run: {directory}\nnext: {command('evaluate.py', override('run', directory))}")


def with_layer(
    settings: Settings, config: DictConfig, model: nn.Module
) -> tuple[Settings, DictConfig]:
    """The settings with a layer that has a name, where `classifier.layer=auto` left it open."""
    from ..networks.target_layer import last_hidden_layer

    if settings.classifier.layer != "auto":
        return settings, config
    layer = last_hidden_layer(model)
    print(f"classifier.layer=auto: {layer}", flush=True)
    merged = OmegaConf.merge(config, {"classifier": {"layer": layer}})
    assert isinstance(merged, DictConfig)
    return replace(settings, classifier=replace(settings.classifier, layer=layer)), merged


def search_pair(
    settings: Settings,
    config: DictConfig,
    data: DataSplit,
    model: nn.Module,
    directory: Path,
    checkpoint: Path | None,
    group: str,
    hashes: dict[str, Any],
) -> Hull:
    """Build the objects in plain Python, find the corners, and write them."""
    started = time.perf_counter()
    from ..data.files import refuse_links, write_text
    from ..hull.hull import Hull
    from ..proofs.linear_program import LinearPrograms
    from ..report.wandb_logs import failures_as_warnings, log_hull, wandb_logger
    from ..search.find_corners import Search
    from .deciding import deciding, finished_run, keep

    refuse_links(directory)
    initial = data.test.find("initial", settings.initial)
    target = data.test.find("target", settings.target)
    decisive = deciding(settings, hashes, initial.image, target.image)
    if run := finished_run(directory, decisive, settings.stop.max_steps):
        found = run.corners, run.initial, run.target, run.units, run.summary
        return Hull(model, settings.classifier.layer, *found)
    sources = None
    if settings.parameterisation == "composite":
        sources = paste_patches(settings, data, initial.image, directory)
    problem: dict[str, Any] = {
        "model": model,
        "layer": settings.classifier.layer,
        "initial": initial.image,
        "target": target.image,
        "corners": parse_corners(settings.corner),
        "corner_order": settings.corner_order,
    }
    search: Search | LinearPrograms
    if settings.solver == "linear_program":
        search = LinearPrograms(
            **problem,
            objective=settings.objective,
            seed=settings.seed,
            nearness=settings.loss.nearness,
        )
    else:
        search = Search(
            **problem,
            loss=settings.loss,
            optimizer=settings.optimizer,
            stop=settings.stop,
            log=settings.log,
            trainer=settings.trainer,
            directory=directory,
            ckpt_path=checkpoint,
            corners_per_batch=settings.corners_per_batch,
            channels_last=settings.channels_last,
            compile=settings.compile,
            sources=sources,
            grid=settings.patches.grid if settings.patches.logits == "grid" else None,
            seed=settings.seed,
        )
    built = time.perf_counter()
    write_text(directory / CONFIG, OmegaConf.to_yaml(config, resolve=True))
    keep(directory, decisive)
    name = f"{settings.name} corner {settings.corner}"
    with wandb_logger(settings.wandb, directory, name, group, asdict(settings)) as logger:
        hull = search.run(logger)
        classes = data.test.class_names
        hull.summary |= {
            "experiment": settings.name,
            "classifier": settings.classifier.name,
            "hull_relative": settings.stop.hull_relative,
            # Of another number of classes: a label then names no class of the classifier.
            "target_label": target.label if len(classes) == len(hull.target_logits) else None,
            "seconds_total": hull.summary["seconds_total"] + built - started,
        }
        hull.save(directory)
        if logger:
            with failures_as_warnings("log the corners"):
                log_hull(logger.experiment, hull)
    return hull


def paste_patches(settings: Settings, data: DataSplit, seed: Tensor, directory: Path) -> Sources:
    """What composites are made of; some of the matches are drawn as Figure 4 shows them."""
    from ..patches.database import patch_images
    from ..patches.paste import find_neighbours, paste
    from ..report.figures import save_figure, sheet_figure
    from ..report.sheets import matches_sheet

    images = patch_images(settings.patches, settings.data, data.train)
    found = find_neighbours(seed, images, settings.patches, settings.seed)
    count = len(found[1].image)
    shown = sorted({count // 5, count // 2, 4 * count // 5})
    sheet = matches_sheet(seed, *found, shown, settings.patches)
    save_figure(sheet_figure(sheet), directory / "images" / "patches.png")
    return paste(*found, settings.patches, seed.shape[-1])
