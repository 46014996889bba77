"""The one way from a classifier and two images to a hull: `find_corners`, in two halves."""

import itertools
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from .callbacks import Checkpoints, Curves, IntermediateImages, Progress, Stop
from .checkpoints import check_checkpoint, problem_of
from .collision import Collision
from .config import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    StopSettings,
    parse_corners,
)
from .errors import SettingError
from .features import TargetFeatures, TargetLayer, evaluating
from .hull import Hull
from .losses import negative, positive
from .parameterisations import Pixels


@dataclass
class Search:
    """A search that is ready to run: everything it was given has been checked.

    Args:
        model: any classifier of images (B, C, H, W) in [0, 1]; it is not changed.
        layer: the target layer, a node whose output feeds a ReLU.
        initial: (C, H, W) float32 in [0, 1], where every corner starts.
        target: (C, H, W) likewise, whose features are matched.
        corners: which of the target's inactive units to push down, counted in flat order.
        loss, optimizer, stop, log: settings; the defaults are `experiment=mnist`'s.
        trainer: arguments of Lightning's Trainer: accelerator, devices, precision.
        ckpt_path: a checkpoint to continue from.

    Raises:
        SettingError: for images, a layer, corners or a checkpoint that cannot be used.
    """

    model: nn.Module
    layer: str
    initial: Tensor
    target: Tensor
    corners: Sequence[int] = range(5)
    loss: LossSettings = field(default_factory=LossSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    log: LogSettings = field(default_factory=LogSettings)
    trainer: dict[str, Any] = field(default_factory=dict)
    ckpt_path: Path | None = None

    def __post_init__(self) -> None:
        _check_images(self.initial, self.target)
        for settings in (self.loss, self.optimizer, self.stop, self.log):
            settings.check()
        self.corners = parse_corners(self.corners)
        precision = self.trainer.get("precision", "32-true")
        dtype = torch.float64 if precision in ("64", "64-true", 64) else torch.float32
        cut = TargetLayer(self.model, self.layer).to(dtype)
        with torch.no_grad():
            features = TargetFeatures(cut(self.target[None].to(dtype))[0])
        units = features.units(self.corners)
        self.module = Collision(
            cut,
            features,
            units,
            Pixels(self.initial, len(units)),
            self.loss,
            self.optimizer,
            self.stop,
            self.log.every,
            problem_of(self.model, self.layer, self.initial, self.target, units, self.optimizer),
        )
        if self.ckpt_path is not None:
            check_checkpoint(self.ckpt_path, self.module.problem)

    def run(self, directory: Path | None = None, logger: Logger | None = None) -> Hull:
        """Find the corners.

        Args:
            directory: where curves, intermediate images and checkpoints go; None keeps none.
            logger: a Lightning logger for curves and pictures.

        Raises:
            CollisionError: when the loss stops being finite.
        """
        started = time.perf_counter()
        with _quiet_lightning():
            trainer = self._trainer(directory, logger)
            trainer.fit(
                self.module, itertools.repeat(0), ckpt_path=self.ckpt_path, weights_only=True
            )
        found = self.module.parameterisation().detach().float().cpu()
        summary = self._summary(found)
        summary["seconds_total"] = time.perf_counter() - started
        late = [e["corner"] for e in summary["corners"] if not e["positive"] < self.stop.positive]
        if late:
            warnings.warn(
                f"not converged: L_pos of corners {late} is not under stop.positive="
                f"{self.stop.positive:g} after {summary['steps']} steps; raise stop.max_steps or "
                "loss.alpha",
                stacklevel=2,
            )
        return Hull(
            self.model,
            self.layer,
            found,
            self.initial,
            self.target,
            self.module.loss.units.cpu(),
            summary,
        )

    def _trainer(self, directory: Path | None, logger: Logger | None) -> Trainer:
        callbacks: list[Callback] = [Progress()]
        if directory is not None:
            steps, checkpoints = directory / "images" / "steps", directory / "checkpoints"
            callbacks += [
                Curves(directory / "metrics.csv", self.corners),
                IntermediateImages(steps, self.corners, self.log.images_every),
                Checkpoints(checkpoints, self.log.checkpoint_every),
            ]
        defaults: dict[str, Any] = {"accelerator": "auto", "devices": 1, "precision": "32-true"}
        try:
            return Trainer(
                **(defaults | self.trainer),
                max_epochs=-1,
                logger=logger or False,
                callbacks=[*callbacks, Stop()],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=directory,
            )
        except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
            raise SettingError(f"trainer={self.trainer}: {error}") from None

    @torch.inference_mode()
    def _summary(self, found: Tensor) -> dict[str, Any]:
        """The figures of `summary.json`, of the corners as they are saved (float32)."""
        with evaluating(self.model):
            images = torch.stack([self.initial, self.target, *found])
            probabilities = self.model(images).softmax(1)
        initial_class, target_class, *classes = probabilities.argmax(1).tolist()
        cut, loss = self.module.layer.cpu(), self.module.loss.cpu()
        preactivation = cut(found.to(loss.features))
        norms = positive(preactivation, loss.features, loss.active)
        norm = float(loss.features.norm())
        negatives = negative(preactivation, loss.inactive, loss.units)
        entries = [
            {
                "corner": corner,
                "unit": int(loss.units[k]),
                "positive": float(norms[k]),
                "positive_relative": float(norms[k]) / norm if norm else None,
                "negative": float(negatives[k]),
                "unit_preactivation": float(preactivation[k, loss.units[k]]),
                "predicted_class": classes[k],
                "probability": float(probabilities[k + 2, target_class]),
            }
            for k, corner in enumerate(self.corners)
        ]
        return {
            "experiment": "find_corners",
            "classifier": type(self.model).__name__,
            "classifier_hash": self.module.problem["classifier"],
            "layer": self.layer,
            "initial_class": initial_class,
            "target_class": target_class,
            "target_probability": float(probabilities[1, target_class]),
            "distance_scale": 1 if len(self.initial) == 1 else 255,
            "converged": bool((norms < self.stop.positive).all()),
            "steps": self.module.step,
            "seconds": self.module.seconds,
            "corners": entries,
        }


def find_corners(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    corners: Sequence[int] = range(5),
    *,
    directory: Path | None = None,
    logger: Logger | None = None,
    **settings: Any,
) -> Hull:
    """Find images that the classifier cannot tell from the target, one a corner (Eq. 3 and 4).

    Args:
        model, layer, initial, target, corners, settings: see Search.
        directory, logger: see Search.run.

    Returns:
        The hull of the corners. Whether they converged is in its `summary`.

    Raises:
        SettingError: for images, a layer or corners that cannot be used.
        CollisionError: when the loss stops being finite.

    Example:
        >>> hull = find_corners(model, "hidden1", initial, target, corners=range(5))
        >>> hull.sample(2000)["accuracy"]
        1.0
    """
    return Search(model, layer, initial, target, corners, **settings).run(directory, logger)


def _check_images(initial: Tensor, target: Tensor) -> None:
    for name, image in (("initial", initial), ("target", target)):
        if image.ndim != 3 or image.dtype != torch.float32:
            raise SettingError(
                f"{name}: must be a float32 image (C, H, W), is {image.dtype} {tuple(image.shape)}"
            )
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
            raise SettingError(f"{name}: pixels must lie in [0, 1]; divide 8-bit pixels by 255")
    if initial.shape != target.shape:
        raise SettingError(
            f"initial and target differ in size: {tuple(initial.shape)}, {tuple(target.shape)}"
        )
    if torch.equal(initial, target):
        raise SettingError(
            "initial and target are the same image, which collides with itself; choose another"
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's lines about the hardware, and two warnings that do not apply."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The frozen network is meant to be in eval mode.
            warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")
            # Lightning 2.6 asks torch in a way that torch 2.12 and later deprecate.
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
            yield
    finally:
        logger.setLevel(level)
