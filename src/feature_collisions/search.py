"""find_corners: the one way from a classifier and two images to a hull."""

import hashlib
import itertools
import logging
import pickle
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from .callbacks import Checkpoints, Curves, IntermediateImages, Progress, Stop
from .classifiers import weights_hash
from .collision import Collision
from .config import LogSettings, LossSettings, OptimizerSettings, StopSettings
from .errors import SettingError
from .features import TargetFeatures, TargetLayer, evaluating
from .hull import Hull
from .losses import positive
from .parameterisations import Pixels


def find_corners(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    corners: Sequence[int] = range(5),
    *,
    loss: LossSettings | None = None,
    optimizer: OptimizerSettings | None = None,
    stop: StopSettings | None = None,
    log: LogSettings | None = None,
    trainer: dict[str, Any] | None = None,
    directory: Path | None = None,
    logger: Logger | None = None,
    ckpt_path: Path | None = None,
) -> Hull:
    """Find images that the classifier cannot tell from the target, one a corner (Eq. 3 and 4).

    Args:
        model: any classifier of images (B, C, H, W) in [0, 1]; it is not changed.
        layer: the target layer, a node whose output feeds a ReLU.
        initial: (C, H, W) float32 in [0, 1], where every corner starts.
        target: (C, H, W) likewise, whose features are matched.
        corners: which of the target's inactive units to push down, counted in flat order.
        loss, optimizer, stop, log: settings; the defaults are `experiment=mnist`'s.
        trainer: arguments of Lightning's Trainer: accelerator, devices, precision.
        directory: where curves, intermediate images and checkpoints go; None keeps none.
        logger: a Lightning logger for curves and pictures.
        ckpt_path: a checkpoint to continue from.

    Returns:
        The hull of the corners. Whether they converged is in its `summary`.

    Raises:
        SettingError: for images, a layer or corners that cannot be used.
        CollisionError: when the loss stops being finite.
    """
    started = time.perf_counter()
    _check_images(initial, target)
    defaults: dict[str, Any] = {"accelerator": "auto", "devices": 1, "precision": "32-true"}
    trainer = defaults | (trainer or {})
    loss, optimizer = loss or LossSettings(), optimizer or OptimizerSettings()
    stop, log = stop or StopSettings(), log or LogSettings()
    for settings in (loss, optimizer, stop, log):
        settings.check()

    dtype = torch.float64 if trainer["precision"] in ("64", "64-true") else torch.float32
    cut = TargetLayer(model, layer).to(dtype)
    with torch.no_grad():
        features = TargetFeatures(cut(target[None].to(dtype))[0])
    units = features.units(corners)
    module = Collision(
        cut, features, units, Pixels(initial, len(units)), loss, optimizer, stop, log.every,
        problem=_problem(model, layer, initial, target, units, optimizer),
    )  # fmt: skip
    callbacks: list[Callback] = [Progress()]
    if directory is not None:
        steps, checkpoints = directory / "images" / "steps", directory / "checkpoints"
        callbacks += [
            Curves(directory / "metrics.csv", corners),
            IntermediateImages(steps, corners, log.images_every),
            Checkpoints(checkpoints, log.checkpoint_every),
        ]
    if ckpt_path is not None:
        check_checkpoint(ckpt_path, module.problem)
    with _quiet_lightning():
        Trainer(
            **trainer,
            max_epochs=-1,
            logger=logger or False,
            callbacks=[*callbacks, Stop()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=directory,
        ).fit(module, itertools.repeat(0), ckpt_path=ckpt_path, weights_only=True)

    found = module.parameterisation().detach().float().cpu()
    summary = _summary(model, layer, initial, target, module, found, corners)
    summary["seconds_total"] = time.perf_counter() - started
    if not summary["converged"]:
        late = [e["corner"] for e in summary["corners"] if not e["positive"] < stop.positive]
        warnings.warn(
            f"not converged: L_pos of corners {late} is not under stop.positive={stop.positive:g} "
            f"after {summary['steps']} steps; raise stop.max_steps or loss.alpha",
            stacklevel=2,
        )
    return Hull(model, layer, found, initial, target, units, summary)


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


def _problem(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    units: Tensor,
    optimizer: OptimizerSettings,
) -> dict[str, Any]:
    """What a checkpoint must agree on; loss weights and limits may change on the way."""

    def digest(image: Tensor) -> str:
        return "image " + hashlib.sha256(image.numpy().tobytes()).hexdigest()[:8]

    return {
        "classifier": weights_hash(model),
        "layer": layer,
        "initial": digest(initial),
        "target": digest(target),
        "units": units.tolist(),
        "optimizer": optimizer.name,
    }


def check_checkpoint(path: Path, problem: dict[str, Any]) -> None:
    """Raise SettingError unless `path` is a checkpoint of this problem; nothing in it is executed.

    Args:
        path: the checkpoint.
        problem: what it must agree on.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = saved["collision"]["problem"]
    except FileNotFoundError:
        raise SettingError(f"ckpt_path={path}: there is no such file") from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError):
        raise SettingError(
            f"ckpt_path={path}: not a whole checkpoint of feature_collisions; give another, or "
            "leave ckpt_path out to start anew"
        ) from None
    differing = [
        f"{key} was {found.get(key)}, is {value}"
        for key, value in problem.items()
        if found.get(key) != value
    ]
    if differing:
        raise SettingError(
            f"ckpt_path={path}: a checkpoint of another experiment ({'; '.join(differing)}); "
            "continue it with its own settings, or leave ckpt_path out to start anew"
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


@torch.inference_mode()
def _summary(
    model: nn.Module,
    layer: str,
    initial: Tensor,
    target: Tensor,
    module: Collision,
    found: Tensor,
    corners: Sequence[int],
) -> dict[str, Any]:
    """The figures of `summary.json`, of the corners as they are saved (float32)."""
    with evaluating(model):
        probabilities = model(torch.stack([initial, target, *found])).softmax(1)
    classes = probabilities.argmax(1)
    cut, loss = module.layer.cpu(), module.loss.cpu()
    preactivation = cut(found.to(loss.features))
    norms = positive(preactivation, loss.features, loss.active)
    norm = loss.features.norm()
    terms = loss(preactivation)
    entries = [
        {
            "corner": corner,
            "unit": int(loss.units[k]),
            "positive": float(norms[k]),
            "positive_relative": float(norms[k] / norm) if norm else None,
            "negative": float(terms.negative[k]),
            "unit_preactivation": float(preactivation[k, loss.units[k]]),
            "predicted_class": int(classes[k + 2]),
            "probability": float(probabilities[k + 2, classes[1]]),
        }
        for k, corner in enumerate(corners)
    ]
    return {
        "experiment": "find_corners",
        "classifier": type(model).__name__,
        "classifier_hash": module.problem["classifier"],
        "layer": layer,
        "initial_class": int(classes[0]),
        "target_class": int(classes[1]),
        "target_probability": float(probabilities[1, classes[1]]),
        "distance_scale": 1 if len(initial) == 1 else 255,
        "converged": bool((norms < module.stop.positive).all()),
        "steps": module.step,
        "seconds": module.seconds,
        "corners": entries,
    }
