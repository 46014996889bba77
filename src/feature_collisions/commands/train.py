"""Find the corners of a polytope of feature collisions: `python train.py experiment=mnist`."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import yaml
from omegaconf import OmegaConf
from torch import Tensor, nn

from ..data.datasets import DataSplit, Found, load_data
from ..data.files import refuse_links, write_text
from ..data.image_set import Images
from ..errors import CollisionError, SettingError
from ..exact.first_layer import first_layer
from ..graph.flow import last_layer
from ..graph.graph import Graph, trace
from ..graph.target import check_forward
from ..hull.hull import Hull
from ..networks.classifiers import input_size, load_classifier, names_in
from ..report import findings
from ..report.tables import as_text, print_table
from ..report.wandb_logs import (
    check_login,
    failures_as_warnings,
    log_hull,
    run_name,
    use_account,
    wandb_logger,
)
from ..report.words import names_of, unnamed
from ..runs.directories import CHECKPOINT, CONFIG, claimed
from ..runs.records import Summary
from ..search.find_corners import Search
from ..settings.search import StopSettings
from ..settings.train import Settings, parse_corners
from ..settings.trainer import check_trainer, devices_of, single_device
from .command_line import command, override
from .deciding import Deciding, deciding, finished_run, hashes, keep
from .random_pairs import Pair
from .start import conf_folder

if TYPE_CHECKING:
    from ..exact.exact_hull import ExactCorners
    from ..patches.composite import Sources


@dataclass(frozen=True)
class Job:
    """Data that all searches of a job share.

    Attributes:
        settings: of the search; size and layer are set.
        data: source of its images.
        model: the classifier, on the search's device.
        graph: graph of the classifier.
        hashes: from `deciding.hashes`.
        group: of the W&B run.
        overrides: of the command line, for the W&B run's name.
    """

    settings: Settings
    data: DataSplit
    model: nn.Module
    graph: Graph
    hashes: Mapping[str, str]
    group: str
    overrides: Sequence[str]

    def of_pair(self, pair: Pair) -> "Job":
        """The job of one of many pairs."""
        return replace(self, settings=replace(self.settings, **pair._asdict(), pairs=None))

    def find(self) -> tuple[Found, Found]:
        """The initial image and the target."""
        return self._found("initial"), self._found("target")

    def _found(self, setting: str) -> Found:
        try:
            return self.data.test.find(setting, getattr(self.settings, setting))
        except SettingError as error:
            if any(each.startswith((f"{setting}=", "pairs=")) for each in self.overrides):
                raise
            default = f"{setting}={getattr(self.settings, setting)}"
            own = f"experiment={self.settings.name} sets {default}; give {setting}=CLASS"
            raise SettingError(f"{error}; {own}") from None

    def deciding(self) -> Deciding:
        """The settings that determine the result, by name."""
        return deciding(self.settings, self.hashes, *(found.image for found in self.find()))


def train(
    settings: Settings,
    directory: Path,
    checkpoint: Path | None,
    group: str,
    overrides: Sequence[str],
) -> None:
    """Load data and classifier, and search one pair of images or many."""
    use_account(settings.wandb.entity)
    check_login(settings.wandb.mode)
    settings = with_size(settings.paired())
    data = load_data(settings.data)
    model = load_classifier(settings.classifier, data, settings.seed)
    if place := single_device(settings.trainer):  # the hull is also measured there
        model.to(place)
    graph = trace(model, data.test.size)
    settings = with_layer(settings, graph)
    job = Job(settings, data, model, graph, hashes(settings, model, data), group, overrides)
    if settings.pairs is not None:
        train_pairs(job, settings.pairs, directory)
        return
    hull = search_pair(job, directory, checkpoint)
    names = names_of(hull, data.test.class_names, names_in(model))
    if note := unnamed(names, data.test.class_names):
        print(note)
    of_images = data.test.mean_distance() if isinstance(data.test, Images) else None
    print_corners(hull.summary, names, directory, settings.classifier.path, of_images)


def train_pairs(job: Job, pairs_setting: str, directory: Path) -> None:
    """Search many pairs, one run directory each, and print a table.

    Raises:
        SettingError: if pairs cannot be read or drawn, or were searched with other settings.
        CollisionError: if no pair could be evaluated.
    """
    from ..report.runs import pairs_table  # figures, which one pair does not need
    from .pairs import check_earlier, parse_pairs, run_pairs

    settings = job.settings
    others = settings.classifiers() if settings.networks else []
    models = [load_classifier(each, job.data, settings.seed) for each in others] or [job.model]
    pairs = parse_pairs(
        pairs_setting, job.data.test, settings.seed, models, settings.classifier.output
    )
    del models

    def search(pair: Pair, place: Path) -> Hull:
        last = place / CHECKPOINT
        with claimed(place, "hydra.run.dir"):
            return search_pair(job.of_pair(pair), place, last if last.exists() else None)

    check_earlier(pairs, directory, lambda pair: job.of_pair(pair).deciding())
    write_text(directory / CONFIG, as_yaml(settings))
    rows = run_pairs(pairs, directory, search)
    print_table(pairs_table(rows))
    print(f"runs: {directory}")
    if not any(row.samples for row in rows):
        raise CollisionError(
            f"pairs={pairs_setting}: no pair could be evaluated (see {directory / 'pairs.md'}). "
            f"The first: {rows[0].verdict}"
        )
    paths = [each.path for each in others if each.path]
    if paths:  # for the survey, after its other jobs
        print(f"next: {evaluating(directory.parent, *paths)}")
    else:
        print(f"next: {evaluating(directory, settings.classifier.path)}")


def with_size(settings: Settings) -> Settings:
    """The settings with `data.size`, by default the classifier's."""
    if settings.data.size is not None:
        return settings
    height, width = input_size(settings.classifier)
    size = height if height == width else [height, width]
    return replace(settings, data=replace(settings.data, size=size))


def with_layer(settings: Settings, graph: Graph) -> Settings:
    """The settings with a named layer in place of `classifier.layer=auto`."""
    if settings.classifier.layer != "auto":
        return settings
    check_forward(graph)  # a wrong size is no fault of the layer
    if settings.solver != "gradient":
        layer, reason = first_layer(graph).name, "the first, which is linear"
    else:
        layer, reason = last_layer(graph, settings.classifier.output)
    print(f"classifier.layer=auto: {layer} ({reason})", flush=True)
    return replace(settings, classifier=replace(settings.classifier, layer=layer))


def as_yaml(settings: Settings) -> str:
    """The content of `config.yaml`."""
    values = asdict(settings)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def print_corners(
    summary: Summary,
    class_names: Sequence[str],
    directory: Path,
    path: str | None,
    of_images: float | None = None,
) -> None:
    """Print the table of corners, feature error, distance, and the path of the run.

    Args:
        summary: of the run.
        class_names: one per class.
        directory: of the run.
        path: `classifier.path`, for the command of evaluate.py.
        of_images: mean distance between two images of the data set, if known.
    """
    table = findings.corners_table(summary, class_names)
    lines = (
        f"\n{as_text(table)}\n",
        table.note,
        f"{findings.effort(summary)}; total {summary.seconds_total:.1f} s",
        findings.collision_line(summary),
        findings.distance_line(summary, of_images),
        findings.few_steps(summary),
        findings.same_class_line(summary),
        _other_class(summary, class_names),
        "" if summary.converged else findings.unmet_line(summary),
        f"run: {directory}\nnext: {evaluating(directory, path)}",
    )
    print("\n".join(filter(None, lines)))


def _other_class(summary: Summary, class_names: Sequence[str]) -> str:
    """Note that the classifier gives the target another class than the data set; or empty."""
    label = summary.target_label  # of the data set; a class if the numbers of classes agree
    if label in (None, summary.target_class):
        return ""
    target = class_names[summary.target_class]
    return (
        f"note: the classifier gives the target ({class_names[label or 0]}) the class {target}; "
        f"the corners collide with {target}"
    )


def evaluating(directory: Path, *paths: str | None) -> str:
    """The command that evaluates `directory`, with the user's code."""
    own = list(dict.fromkeys(filter(None, paths)))
    named = [override("classifier.path", own[0])] if len(own) == 1 else []
    if len(own) > 1:
        named = ["classifier.path=[" + ",".join(f'"{each}"' for each in own) + "]"]
    return command("evaluate", override("run", directory), *named)


def search_pair(job: Job, directory: Path, checkpoint: Path | None) -> Hull:
    """Find and write the corners, or read a finished run."""
    started = time.perf_counter()
    refuse_links(directory)
    settings, data, decisive = job.settings, job.data, job.deciding()
    if run := finished_run(directory, decisive, settings.stop.max_steps):
        found = run.corners, run.initial, run.target, run.units, run.summary
        return Hull(job.model, settings.classifier.layer, *found, graph=job.graph)
    initial, target = job.find()
    search = ready_search(job, initial.image, target.image, directory, checkpoint)
    built = time.perf_counter()
    write_text(directory / CONFIG, as_yaml(settings))
    keep(directory, decisive)
    name = run_name(settings, job.overrides)
    with wandb_logger(settings.wandb, directory, name, job.group, asdict(settings)) as logger:
        hull = search.run(logger)
        classes = data.test.class_names
        summary = hull.summary
        summary.experiment, summary.classifier = settings.name, settings.classifier.in_reports
        # If the numbers of classes differ, a label is not a class of the classifier.
        same = hull.output.kind == "classes" and len(classes) == len(hull.target_logits)
        summary.initial_label = initial.label if same else None
        summary.target_label = target.label if same else None
        summary.seconds_total += built - started
        if settings.solver == "gradient":
            summary.usual_steps = usual_steps(settings.name)
        if settings.stop.hull_relative is not None:
            summary.hull_relative = settings.stop.hull_relative
        hull.save(directory)
        if logger:
            with failures_as_warnings("log the corners"):
                log_hull(logger.experiment, hull)
    return hull


def usual_steps(experiment: str) -> int:
    """The `stop.max_steps` of an experiment's file, or the default."""
    path = conf_folder() / "experiment" / f"{experiment}.yaml"
    found = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    return int(OmegaConf.select(found, "stop.max_steps", default=StopSettings.max_steps))


def ready_search(
    job: Job, initial: Tensor, target: Tensor, directory: Path, checkpoint: Path | None
) -> "Search | ExactCorners":
    """Make the Search of a job.

    Args:
        job: the job.
        initial: (C, H, W).
        target: (C, H, W).
        directory: of the run.
        checkpoint: checkpoint to resume, if any.
    """
    settings = job.settings
    if settings.solver != "gradient":
        return exact_corners(job, initial, target)
    sources = None
    if settings.parameterisation == "composite":
        sources = paste_patches(settings, job.data, initial, directory)
    return Search(
        job.model,
        settings.classifier.layer,
        initial,
        target,
        parse_corners(settings.corner),
        **settings.of_search,
        graph=job.graph,
        output=settings.classifier.output,
        threshold=settings.output.threshold,
        directory=directory,
        ckpt_path=checkpoint,
        sources=sources,
        grid=settings.patches.grid if settings.patches.logits == "grid" else None,
    )


def exact_corners(job: Job, initial: Tensor, target: Tensor) -> "ExactCorners":
    """Points of the first layer's polytope, as `solver` and `objective` have them."""
    from ..exact.exact_hull import ExactCorners
    from ..exact.programs import Pushed

    settings, numbers = job.settings, parse_corners(job.settings.corner)
    towards: Tensor | int | Pushed = len(numbers)
    if settings.solver == "linear_program":
        towards = Pushed(numbers, settings.objective, settings.corner_order, settings.loss.nearness)
    elif settings.objective != "random":
        towards = pictures(job, initial, numbers)
    return ExactCorners(
        job.model, target, towards, settings.classifier.layer, settings.seed, graph=job.graph,
        initial=initial, numbers=numbers, output=settings.classifier.output,
        threshold=settings.output.threshold,
    )  # fmt: skip


def pictures(job: Job, initial: Tensor, numbers: Sequence[int]) -> Tensor:
    """What corners are near to: 0 to the initial image, the others to images the seed draws."""
    settings, images = job.settings, job.data.test
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))
    if max(numbers) > len(drawn):
        raise SettingError(
            "corner", settings.corner, f"the data set has only {len(drawn)} images",
            "name fewer corners, or set objective=random",
        )  # fmt: skip
    return torch.stack(
        [images[int(drawn[number - 1])] if number else initial for number in numbers]
    )


def paste_patches(settings: Settings, data: DataSplit, seed: Tensor, directory: Path) -> "Sources":
    """Find and paste the sources of composites, and draw some matches as in Figure 4."""
    from ..patches.database import patch_images
    from ..patches.paste import find_neighbours, paste
    from ..report.figures import save_figure, sheet_figure
    from ..report.sheets import matches_sheet

    images = patch_images(settings.patches, settings.data, data.train)
    device = devices_of(check_trainer(settings.trainer))[0]
    found = find_neighbours(seed, images, settings.patches, settings.seed, device)
    count = len(found[1].image)
    shown = sorted({count // 5, count // 2, 4 * count // 5})
    sheet = matches_sheet(seed, *found, shown, settings.patches)
    save_figure(sheet_figure(sheet), directory / "images" / "patches.png")
    return paste(*found, settings.patches, seed.shape[-1])
