"""The one way from a classifier and two images to a hull: `find_corners`, in two halves."""

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ..data.devices import able, out_of_memory
from ..data.images import check_pair, save_png
from ..ends import between_steps
from ..errors import SettingError
from ..graph.agreement import (
    check_agreement,
    check_differentiable,
    check_gradient,
    is_double,
    validate_model,
)
from ..graph.flow import following, last_layer, names_of
from ..graph.graph import Graph, trace
from ..graph.logits import device_of
from ..graph.probabilities import giving
from ..graph.target import (
    explain_forward_errors,
    logits_of,
    positive,
    preactivation_of,
    target_features,
)
from ..graph.target_layer import (
    Observed,
    TargetLayer,
    frozen_copy,
    halve_weights,
    network_of,
)
from ..hull.distances import SIGMA
from ..hull.hull import Hull
from ..hull.outputs import output_of
from ..hull.statistics import collision_limit
from ..networks.unwrap import unwrap, unwrap_layer
from ..patches.composite import Sources
from ..patches.floor import alone, what_limits
from ..paths import path_of
from ..runs.records import Summary
from ..settings.output import check_output
from ..settings.search import SearchSettings, images_per_batch
from ..settings.train import parse_corners
from ..settings.trainer import MIXED, check_trainer, devices_of, where
from .callbacks import callbacks_of, log_afterwards
from .checkpoints import check_checkpoint, digest, problem_of
from .collision import Collision, Found, Goal, all_met, unmet
from .losses import CollisionLoss, directions
from .parameterisations import PatchComposite, Pixels
from .summary import summarise
from .trainer import AGREES, fit, halve_and_compare, make_trainer


@contextmanager
def fitting(count: int, place: torch.device) -> Iterator[None]:
    """Say in a SettingError what to do where corners do not fit before the first step."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise SettingError(
            "corner",
            None,
            f"{count} corners do not fit into the memory of {place}",
            "search fewer at once, lower corners_per_batch, or end what else runs there",
        ) from error


@dataclass
class Search(SearchSettings):
    """A search that is ready to run: everything it was given has been checked.

    Its fields are what `find_corners` takes, `SearchSettings` among them by keyword.

    Raises:
        SettingError: for images, a model, a layer, corners or a checkpoint that cannot be used.
    """

    model: nn.Module
    layer: str
    initial: Tensor
    target: Tensor
    corners: Sequence[int] = range(5)
    directory: Path | None = None
    ckpt_path: Path | None = None
    sources: Sources | None = None
    grid: int | None = None
    output: str = "classes"
    threshold: float | None = None
    graph: Graph = None  # type: ignore[assignment]  # traced where none is given

    def __post_init__(self) -> None:
        self._check_arguments()
        self.layer = ",".join(unwrap_layer(self.model, name) for name in names_of(self.layer))
        self.model = validate_model(unwrap(self.model))
        self.model = giving(self.model, torch.stack([self.initial, self.target]), self.output)
        if self.graph is None or self.graph.model is not self.model:
            self.graph = trace(self.model, self.initial.shape)
        check_differentiable(self.model, self.target)
        if self.layer == "auto":
            self.layer = last_layer(self.graph, self.output).layer
        self._check_branches()
        self.corners = parse_corners(self.corners)
        asked = self.trainer.get("precision")
        self.trainer = check_trainer(where(device_of(self.model)) | self.trainer)
        self.dtype = self._dtype()
        place = able(device_of(self.model), self.dtype)
        self.initial, self.target = self.initial.to(place), self.target.to(place)
        with fitting(len(self.corners), place):
            self.module = self._collision()
        self.device = devices_of(self.trainer)[0]
        with fitting(len(self.corners), self.device):
            self.precision = self._precision(asked)
        if self.ckpt_path is not None:
            check_checkpoint(self.ckpt_path, self.module.problem)
        callbacks = callbacks_of(self.directory, self.corners, self.log, self.sources, self.push)
        count = len(self.corners)
        self.lightning = make_trainer(self.trainer, callbacks, self.directory, count)

    def _check_arguments(self) -> None:
        """Refuse what is of the wrong kind or out of range; paths may be given as text."""
        if torch.is_inference_mode_enabled():
            raise SettingError(
                "find_corners",
                None,
                "is called under torch.inference_mode(), which keeps no gradients",
                "call it outside",
            )
        check_pair(self.initial, self.target)
        self.initial, self.target = self.initial.detach(), self.target.detach()
        if not isinstance(self.trainer, dict):
            raise SettingError(
                "trainer", str(self.trainer), "must be a dict of Trainer's arguments"
            )
        if not (isinstance(self.layer, str) and all(names_of(self.layer))):
            raise SettingError(
                "layer", self.layer, "must be a name, such as 'features.0', or a list of names"
            )
        self.validate()
        check_output(self.output, self.threshold)
        if self.loss.output and self.output == "features":
            raise SettingError(
                "loss.output", self.loss.output, "compares classes, which an encoder has not",
                "leave it out",
            )  # fmt: skip
        self._check_distance()
        if self.sources is not None and self.optimizer.name == "sobolev":
            raise SettingError(
                "optimizer.name",
                "sobolev",
                "goes along gradients of pixels, and composites have logits",
                "take optimizer=adam or optimizer=paper",
            )
        self.directory = None if self.directory is None else path_of(self.directory)
        self.ckpt_path = None if self.ckpt_path is None else path_of(self.ckpt_path)

    def _check_distance(self) -> None:
        """Refuse a reward for a distance that images of this size do not have."""
        if not self.loss.distance:
            return
        height, width = self.initial.shape[1:]
        square = self.loss.distance_pooling
        if square is None and min(height, width) < 2 * SIGMA:
            raise SettingError(
                "loss.distance",
                self.loss.distance,
                f"is taken after a low-pass over some {2 * SIGMA}x{2 * SIGMA} pixels, and the "
                f"images have {height}x{width}",
                "set loss.distance=0",
            )
        if square is not None and (height % square or width % square):
            raise SettingError(
                "loss.distance_pooling",
                square,
                f"must divide the image's sides, {height} and {width}",
                f"{math.gcd(height, width)} and its divisors do; null takes a low-pass",
            )

    def _check_branches(self) -> None:
        """Raise SettingError for several layers that are no whole: something goes round them."""
        past = following(self.graph, self.layer).past if "," in self.layer else ()
        if past:
            raise SettingError(
                "layer", f"[{self.layer}]",
                f"these layers leave a way round them, through {', '.join(past[:3])}",
                "name those branches too, or one layer that everything flows through",
            )  # fmt: skip

    def _dtype(self) -> torch.dtype:
        """What the search computes in: float64 where it is asked for, or the model does."""
        if is_double(self.model):
            if self.trainer["precision"] in MIXED:
                raise SettingError(
                    "trainer.precision",
                    self.trainer["precision"],
                    "the model computes in float64",
                    "leave precision out, or give model.float()",
                )
            self.trainer["precision"] = "64-true"
        return torch.float64 if self.trainer["precision"] == "64-true" else torch.float32

    def _precision(self, asked: Any) -> dict[str, str]:
        """What the steps compute in, for the summary; `auto` is decided here."""
        if asked != "auto" or self.dtype == torch.float64:
            return {"precision": self.trainer["precision"]}
        said = {"precision": "32-true", "precision_reason": "auto: no bfloat16 arithmetic here"}
        if self.trainer["precision"] == "auto":
            self.trainer["precision"] = "32-true"
            cosine = halve_and_compare(self.module, self.device)
            found = (
                f"auto: the first gradients in bfloat16 and float32 have a cosine of {cosine:.3f}"
            )
            said["precision_reason"] = found
            if cosine >= AGREES:
                self.trainer["precision"] = said["precision"] = "bf16-mixed"
            else:
                self.module = self._collision()  # with weights that were not halved
        return said

    def _collision(self) -> Collision:
        """The search's module: what every step runs, compared with the model."""
        self.features = features = target_features(
            self.graph, self.layer, self.target, self.dtype, self.loss.tolerance
        )
        self.push = self._push()
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        parameterisation = self._parameterisation(layout)
        self.start = parameterisation().detach()[:1].float().clone()
        if self.push == "apart":
            parameterisation.part(torch.Generator().manual_seed(self.seed))
        self.units = units = self._units()
        with explain_forward_errors(self.target.shape):
            logits = logits_of(self.model, self.target[None])[0]
            output = output_of(self.output, logits, self.threshold)
            self.goal = Goal(self.stop, float(features.features.norm()), output)
            network, classifier = self._frozen(layout)
        target_logits = logits.to(self.dtype) if self.loss.output else None
        initial, along = self.initial.to(self.dtype), None
        if self.push == "direction":
            along = directions(self.corners, initial)
        near = initial if self.loss.nearness or self.push == "direction" else None
        loss = replace(self.loss, push=self.push)
        return Collision(
            network,
            parameterisation,
            CollisionLoss(features, units, loss, target_logits, near, along),
            self.goal,
            self.optimizer,
            every=self.log.every,
            classifier=classifier,
            compiled=self.compile,
            seed=self.seed,
            per_batch=images_per_batch(self.corners_per_batch),
            problem=problem_of(
                self.model, self.layer, self.initial, self.target, units, self.optimizer
            )
            | self._problem_of_sources(),
        )

    def _push(self) -> str:
        """What makes a corner, where `loss.push=auto` leaves it open.

        Raises:
            SettingError: for a push that this layer or these corners have not.
        """
        push, features = self.loss.push, self.features
        flat = bool(features.activation.sides)
        hidden = int((~features.active).sum())
        exact = following(self.graph, self.layer).activation.is_exact
        if hidden == 0 or (not exact and hidden <= max(self.corners)):
            flat = False  # at least within the tolerance, this target has no unit for a corner
        if push == "auto":
            return "unit" if flat else "apart" if len(self.corners) > 1 else "direction"
        if push == "unit" and not flat:
            raise SettingError(
                "loss.push",
                "unit",
                f"no unit of layer {self.layer} is hidden in this target",
                "take loss.push=auto, or another layer",
            )
        if push == "apart" and len(self.corners) < 2:
            raise SettingError(
                "loss.push",
                "apart",
                "a corner alone has none to be apart from",
                "take loss.push=direction, or search several corners at once (without -m)",
            )
        return push

    def _units(self) -> Tensor:
        """(K,) the unit that each corner pushes; -1 where none is."""
        if self.push != "unit":
            return torch.full((len(self.corners),), -1, device=self.initial.device)
        first = self.corner_order == "inactive_first"
        start = self._preactivation(self.start)[0] if first else None
        return self.features.units(self.corners, start)

    def run(self, logger: Logger | None = None) -> Hull:
        """Find the corners.

        Args:
            logger: a Lightning logger for curves and pictures.

        Raises:
            CollisionError: when the loss stops being finite, or memory runs out.
        """
        self.module.started = time.perf_counter()
        self._say_if_already_there()
        shared = self.lightning.world_size > 1
        with between_steps() as self.module.ending, fitting(len(self.corners), self.device):
            fit(self.lightning, self.module, None if shared else logger, self.ckpt_path)
        found = self.module.found
        assert found is not None
        # Lightning leaves what it has moved on the CPU.
        found = found._replace(corners=found.corners.to(self.initial))
        if shared and logger and self.directory is not None:
            log_afterwards(self.directory, logger)
        summary = self._summary(found)
        if self.sources is not None:
            for entry, variation in zip(summary.corners, found.variation.tolist(), strict=True):
                entry.total_variation = variation
            if self.directory is not None:
                save_png(self.directory / "images" / "composite.png", self.start[0])
            self._limits(found.corners, summary)
        summary.seconds_total = found.earlier + time.perf_counter() - self.module.started
        if summary.limits:
            warnings.warn(summary.limits, stacklevel=2)
        if summary.unmet:
            warnings.warn(
                f"not converged: {'; '.join(summary.unmet)} after {summary.steps} steps; "
                "raise stop.max_steps or lower loss.beta; docs/how-to/tune.md has more",
                stacklevel=2,
            )
        return Hull(
            self.model,
            self.layer,
            found.corners,
            self.initial,
            self.target,
            self.units,
            summary,
            graph=self.graph,
        )

    def _say_if_already_there(self) -> None:
        """Warn where the goal is met before the first step: then meeting it shows nothing."""
        oriented = self.features.oriented(self._preactivation(self.start))
        norms = positive(oriented, self.features.values, self.features.active)
        outputs = logits_of(self.model, self.start)
        reasons = self.goal.late(norms) | self.goal.misclassified(outputs)
        if reasons and all_met(reasons):
            warnings.warn(
                f"the initial image meets the goal before the first step: its L_pos is "
                f"{float(norms):.3g}, where ||f(t)|| is {self.goal.norm:.3g}. Then converging "
                "shows nothing: lower stop.positive_relative or stop.positive, or choose another "
                "layer or another image",
                stacklevel=4,
            )

    def _frozen(
        self, layout: torch.memory_format
    ) -> tuple[TargetLayer | Observed, nn.Module | None]:
        """What the steps run, and what is asked for classes: compared with the model itself."""
        network = network_of(self.graph, self.layer, self.loss.output > 0, self.dtype, layout)
        classifier = frozen_copy(self.graph, layout) if self.goal.asks_classes else None
        pair = torch.stack([self.initial, self.target])
        frozen = [network] if classifier is None else [network, classifier]
        observed = Observed(self.graph, self.layer)
        check_agreement(self.graph, self.layer, pair, observed, frozen)
        check_gradient(network, pair)
        halve_weights(network, self.trainer["precision"])
        return network, classifier

    def _parameterisation(self, layout: torch.memory_format) -> Pixels | PatchComposite:
        if self.sources is None:
            return Pixels(self.initial.to(self.dtype), len(self.corners), layout)
        windows = self.sources.windows.to(self.initial.device, self.dtype)
        sources = replace(self.sources, windows=windows)
        return PatchComposite(sources, len(self.corners), self.grid)

    def _problem_of_sources(self) -> dict[str, Any]:
        if self.sources is None:
            return {}
        return {"sources": digest(self.sources.windows), "grid": self.grid}

    def _preactivation(self, images: Tensor) -> Tensor:
        return preactivation_of(self.graph, self.layer, images, self.dtype)

    @property
    def limit(self) -> float:
        """The feature error over ||f(t)|| up to which features are said to collide."""
        if self.stop.hull_relative is not None:
            return float(self.stop.hull_relative)
        return collision_limit(self.graph, self.layer, self.sources is not None)

    def _limits(self, found: Tensor, summary: Summary) -> None:
        """Of composites whose features do not collide: what a single corner gets to."""
        limit, norm = self.limit, self.module.loss.norm
        ends = self._preactivation(torch.cat([found, found.mean(0, keepdim=True)]))
        largest = float(self.features.error(ends).max()) / norm if norm else 0.0
        if largest <= limit:
            return
        one = replace(self, corners=self.corners[:1], **alone())
        fit(one.lightning, one.module, None, None)
        assert one.module.found is not None
        nearest = one.module.found.corners.to(found)
        floor = float(self.features.error(self._preactivation(nearest))) / norm
        moved = float((nearest - self.start).abs().max())
        summary.floor, summary.limits = floor, what_limits(largest, limit, floor, moved)

    def _summary(self, found: Found) -> Summary:
        """What `summary.json` says of the corners."""
        summary = summarise(
            self.graph, self.layer, (self.initial, self.target), found.corners, self.corners,
            self.units, self.features, self.goal.output, experiment="find_corners",
            classifier_hash=self.module.problem["classifier"], hull_relative=self.limit,
            converged=True, steps=found.step, seconds=found.seconds, seconds_total=found.seconds,
            push=self.push, tolerance=self.loss.tolerance, **self.precision,
        )  # fmt: skip
        norms = torch.tensor([entry.positive for entry in summary.corners])
        outputs = logits_of(self.model, found.corners)
        reasons = self.goal.late(norms) | self.goal.misclassified(outputs.cpu())
        summary.unmet = unmet(reasons, self.corners)
        summary.converged = not summary.unmet
        return summary


def find_corners(
    model: nn.Module,
    layer: str | list[str] = "auto",
    initial: Tensor | None = None,
    target: Tensor | None = None,
    corners: Sequence[int] = range(5),
    *,
    output: str = "classes",
    threshold: float | None = None,
    logger: Logger | None = None,
    **settings: Any,
) -> Hull:
    """Find images that the classifier cannot tell from the target, one per corner (Eq. 3 and 4).

    Args:
        model: any network that takes images (B, C, H, W) in [0, 1]. It is not changed, and stays on
            its device. What `model(images)` gives in eval mode is compared with what is searched.
        layer: the target layer, such as one whose output feeds a ReLU; several that everything
            flows through together; `auto`: the last place that everything flows through, and that
            hides something if possible (`graph.flow.last_layer`).
        initial: (C, H, W) float32 in [0, 1], where every corner starts; required.
        target: (C, H, W) float32 in [0, 1], whose features are matched; required.
        corners: which of the target's inactive units to push down, counted in flat order; where no
            unit is pushed (`loss.push`), just their numbers, which decide their directions.
        output: `classes`: the model returns logits (B, classes); `features`: it is an encoder, and
            its output (B, D) is asked for no class.
        threshold: of an encoder: its user takes two images for the same above this cosine.
        logger: a Lightning logger for curves and pictures.
        **settings: fields of `SearchSettings`, which the command line has, too: `loss`,
            `optimizer`, `stop`, `log`, `trainer`, `corners_per_batch`, `channels_last`, `compile`,
            `corner_order` and `seed`; and what follows.

    Keyword Args:
        directory (Path): where curves, intermediate images and checkpoints go; None keeps none.
        ckpt_path (Path): a checkpoint to continue from.
        sources (Sources): pasted patches: the corners are composites of them, and start at
            Eq. 5's (sec. 4); None: they are pixels, and start at `initial` (sec. 3).
        grid (int): of composites: a grid of logits per window, or None for a logit per pixel.

    Returns:
        The hull of the corners. Whether they converged is in its `summary`.

    Raises:
        SettingError: for images, a layer or corners that cannot be used.
        CollisionError: when the loss stops being finite.

    Example:
        >>> generator = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> initial, target = torch.rand(2, 1, 8, 8)
        >>> from feature_collisions import StopSettings
        >>> stop = StopSettings(positive=0.01)
        >>> hull = find_corners(network, "1", initial, target, range(3), stop=stop)
        >>> hull.corners.shape
        torch.Size([3, 1, 8, 8])
        >>> hull.sample(2000)["accuracy"]
        1.0
    """
    named: Any = ",".join(map(str, layer)) if isinstance(layer, list | tuple) else layer
    settings |= {"output": output, "threshold": threshold}
    pair: Any = (initial, target)  # checked there, None too
    return Search(model, named, pair[0], pair[1], corners, **settings).run(logger)
