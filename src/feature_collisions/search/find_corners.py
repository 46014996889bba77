"""From a classifier and two images to a hull: `find_corners`, as a checked `Search` and its run."""

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

from ..data.devices import device_for, out_of_memory
from ..data.images import check_pair, save_png
from ..errors import SettingError
from ..graph.agreement import (
    check_agreement,
    check_differentiable,
    check_gradient,
    is_double,
    validate_model,
)
from ..graph.flow import following, last_layer, names_of, narrowest
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
from ..interrupts import between_steps
from ..networks.unwrap import unwrap, unwrap_layer
from ..patches.composite import Sources
from ..patches.floor import alone, what_limits
from ..paths import path_of
from ..runs.records import Summary
from ..settings.output import check_output
from ..settings.search import SearchSettings, images_per_batch
from ..settings.train import parse_corners
from ..settings.trainer import MIXED, arguments_for, check_trainer, devices_of
from .callbacks import callbacks_of, log_afterwards
from .checkpoints import check_checkpoint, digest, problem_of
from .lightning_module import Collision, Found, Goal, all_met, unmet
from .losses import CollisionLoss, check_pairs, directions
from .parameterisations import PatchComposite, Pixels
from .summary import summarise, what_to_try
from .trainer import AGREES, fit, halve_and_compare, make_trainer


@contextmanager
def explain_too_many_corners(count: int, device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error before the first step into a SettingError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise SettingError(
            "corner",
            None,
            f"{count} corners do not fit into the memory of {device}",
            "search fewer at once, lower corners_per_batch, or end what else runs there",
        ) from error


@dataclass
class Search(SearchSettings):
    """A search whose arguments have been checked, ready to run.

    Its fields are the arguments of `find_corners`, with those of `SearchSettings`.

    Raises:
        SettingError: if images, model, layer, corners or checkpoint cannot be used.
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
    graph: Graph = None  # type: ignore[assignment]  # traced if None

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
        self.trainer = check_trainer(arguments_for(device_of(self.model)) | self.trainer)
        self.dtype = self._dtype()
        device = device_for(device_of(self.model), self.dtype)
        self.initial, self.target = self.initial.to(device), self.target.to(device)
        with explain_too_many_corners(len(self.corners), device):
            self.module = self._collision()
        self.device = devices_of(self.trainer)[0]
        with explain_too_many_corners(len(self.corners), self.device):
            self.precision = self._precision(asked)
        if self.ckpt_path is not None:
            check_checkpoint(self.ckpt_path, self.module.problem)
        callbacks = callbacks_of(self.directory, self.corners, self.log)
        count = len(self.corners)
        self.lightning = make_trainer(self.trainer, callbacks, self.directory, count)

    def _check_arguments(self) -> None:
        """Raise SettingError for a wrong type or range; paths may be text."""
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
                "trainer", str(self.trainer), "must be a dict of the Trainer's arguments"
            )
        if not (isinstance(self.layer, str) and all(names_of(self.layer))):
            raise SettingError(
                "layer", self.layer, "must be a name, such as 'features.0', or a list of names"
            )
        self.validate()
        check_output(self.output, self.threshold)
        if self.loss.output and self.output == "features":
            raise SettingError(
                "loss.output", self.loss.output, "compares classes, and an encoder has no classes",
                "leave it out",
            )  # fmt: skip
        self._check_distance()
        if self.sources is not None and self.optimizer.name == "sobolev":
            raise SettingError(
                "optimizer.name",
                "sobolev",
                "is for pixels; composites have logits",
                "take optimizer=adam or optimizer=paper",
            )
        self.directory = None if self.directory is None else path_of(self.directory)
        self.ckpt_path = None if self.ckpt_path is None else path_of(self.ckpt_path)

    def _check_distance(self) -> None:
        """Raise SettingError if `loss.distance` does not suit images of this size."""
        given, square = self.loss.distance, self.loss.distance_pooling
        if given == 0:
            return
        height, width = self.initial.shape[1:]
        if given and square is None and min(height, width) < 2 * SIGMA:
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
        """Raise SettingError if a branch bypasses several layers."""
        past = following(self.graph, self.layer).past if "," in self.layer else ()
        if past:
            raise SettingError(
                "layer", f"[{self.layer}]",
                f"{', '.join(past[:3])} bypasses these layers",
                "name those branches as well, or one layer that everything flows through",
            )  # fmt: skip

    def _dtype(self) -> torch.dtype:
        """Dtype of the search: float64 if requested or used by the model."""
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
        """Precision of the steps, for the summary; decides `auto`."""
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
                self.module = self._collision()  # with float32 weights
        return said

    def _collision(self) -> Collision:
        """The LightningModule, compared with the model."""
        self.features = features = target_features(
            self.graph, self.layer, self.target, self.dtype, self.loss.tolerance
        )
        self.push = self._push()
        if self.push == "apart":
            check_pairs(len(self.corners), self.initial.shape)
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
        problem = problem_of(
            self.model, self.layer, self.initial, self.target, units, self.optimizer
        )
        if self.sources is not None:
            problem |= {"sources": digest(self.sources.windows), "grid": self.grid}
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
            problem=problem,
        )

    def _push(self) -> str:
        """Decide `loss.push=auto`.

        Raises:
            SettingError: if this layer or these corners do not allow the push.
        """
        push, features = self.loss.push, self.features
        flat = bool(features.activation.sides)
        hidden = int((~features.active).sum())
        exact = following(self.graph, self.layer).activation.is_exact
        if hidden == 0 or (not exact and hidden <= max(self.corners)):
            flat = False  # within the tolerance this target has no hidden unit
        # As many active units as numbers flow in fix these: no unit can go down.
        fixed = int(features.active.sum()) >= narrowest(self.graph, self.layer)
        if push == "auto" and flat and not fixed:
            return "unit"
        if push == "auto":
            return "apart" if len(self.corners) > 1 else "direction"
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
                "a single corner has no others to be apart from",
                "take loss.push=direction, or search several corners at once (without -m)",
            )
        return push

    def _units(self) -> Tensor:
        """(K,) the unit that each corner pushes down; -1 for none."""
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
            CollisionError: if the loss is not finite, or memory runs out.
        """
        self.module.started = time.perf_counter()
        self._say_if_already_there()
        shared = self.lightning.world_size > 1
        with (
            between_steps() as self.module.is_interrupted,
            explain_too_many_corners(len(self.corners), self.device),
        ):
            fit(self.lightning, self.module, None if shared else logger, self.ckpt_path)
        found = self.module.found
        assert found is not None
        # Lightning moves its modules to the CPU at the end.
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
            advice = what_to_try(self, summary.steps, self.sources is not None)
            warnings.warn(
                f"not converged: {'; '.join(summary.unmet)} after {summary.steps} steps; "
                f"{advice}; see docs/how-to/tune.md",
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
        """Warn if the goal is met before the first step: then convergence shows nothing."""
        oriented = self.features.oriented(self._preactivation(self.start))
        norms = positive(oriented, self.features.values, self.features.active)
        outputs = logits_of(self.model, self.start)
        reasons = self.goal.unmatched(norms) | self.goal.misclassified(outputs)
        if reasons and all_met(reasons):
            warnings.warn(
                f"the initial image meets the goal before the first step: its L_pos is "
                f"{float(norms):.3g}, where ||f(t)|| is {self.goal.norm:.3g}. Then convergence "
                "shows nothing: lower stop.positive_relative or stop.positive, or choose another "
                "layer or another image",
                stacklevel=4,
            )

    def _frozen(
        self, layout: torch.memory_format
    ) -> tuple[TargetLayer | Observed, nn.Module | None]:
        """The networks for steps and for classes, compared with the model."""
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

    def _preactivation(self, images: Tensor) -> Tensor:
        return preactivation_of(self.graph, self.layer, images, self.dtype)

    @property
    def limit(self) -> float:
        """Largest feature error, relative to ||f(t)||, of a collision."""
        if self.stop.hull_relative is not None:
            return float(self.stop.hull_relative)
        return collision_limit(self.graph, self.layer, self.sources is not None)

    def _limits(self, found: Tensor, summary: Summary) -> None:
        """For composites without a collision: the feature error of a single corner."""
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
        """The content of `summary.json`."""
        summary = summarise(
            self.graph, self.layer, (self.initial, self.target), found.corners, self.corners,
            self.units, self.features, self.goal.output, experiment="find_corners",
            classifier_hash=self.module.problem["classifier"], hull_relative=self.limit,
            converged=True, steps=found.step, seconds=found.seconds, seconds_total=found.seconds,
            push=self.push, tolerance=self.loss.tolerance, **self.precision,
        )  # fmt: skip
        norms = torch.tensor([entry.positive for entry in summary.corners])
        outputs = logits_of(self.model, found.corners)
        reasons = self.goal.unmatched(norms) | self.goal.misclassified(outputs.cpu())
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
    """Find images with the target's features, one per corner (Eq. 3 and 4).

    Args:
        model: any network for images (B, C, H, W) in [0, 1]. It is not changed, and stays on its
            device. The search is checked against `model(images)` in eval mode.
        layer: the target layer, for example one that feeds a ReLU; or several layers that
            everything flows through together; or `auto` for the last layer that everything flows
            through, one that hides something if possible (`graph.flow.last_layer`).
        initial: (C, H, W) float32 in [0, 1], the start of every corner; required.
        target: (C, H, W) float32 in [0, 1], the image whose features are matched; required.
        corners: which of the target's inactive units to push down, counted in flat order. If no
            unit is pushed (`loss.push`), the numbers only decide the directions.
        output: `classes` if the model returns logits (B, classes); `features` if it is an encoder
            that returns features (B, D).
        threshold: for an encoder, the cosine above which two images count as the same.
        logger: a Lightning logger for curves and pictures.
        **settings: fields of `SearchSettings`, as on the command line: `loss`, `optimizer`, `stop`,
            `log`, `trainer`, `corners_per_batch`, `channels_last`, `compile`, `corner_order` and
            `seed`; and the keywords below.

    Keyword Args:
        directory (Path): folder for curves, intermediate images and checkpoints; None for none.
        ckpt_path (Path): a checkpoint to resume.
        sources (Sources): pasted patches. Corners are then composites, starting at Eq. 5's (sec.
            4). None: corners are pixels, starting at `initial` (sec. 3).
        grid (int): for composites, side of the grid of logits per window; None for one logit per
            pixel.

    Returns:
        The hull of the corners. Its `summary` says whether they converged.

    Raises:
        SettingError: if images, layer or corners cannot be used.
        CollisionError: if the loss is not finite.

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
    pair: Any = (initial, target)  # checked by Search, also None
    return Search(model, named, pair[0], pair[1], corners, **settings).run(logger)
