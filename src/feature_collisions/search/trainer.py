"""Lightning's Trainer for a search, and the decision of `trainer.precision=auto`."""

import itertools
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ..errors import SettingError
from ..graph.target_layer import halve_weights
from ..settings.trainer import device_ids
from .checkpoints import CheckpointFile
from .lightning_module import Collision
from .strategy import CornersOverRanks, quiet_lightning

AGREES = 0.9  # cosine; 0.96 to 0.97 at the first step of SqueezeNet and ResNet-50


def make_trainer(
    arguments: dict[str, Any], callbacks: list[Callback], directory: Path | None, corners: int
) -> Trainer:
    """A Trainer for one search, on one device or on several that divide the corners.

    Args:
        arguments: of Lightning's Trainer, from `check_trainer`.
        callbacks: callbacks of the search.
        directory: Lightning's folder, if any.
        corners: their number; devices without a corner are not used.

    Raises:
        SettingError: if the Trainer refuses the arguments.
    """
    devices = device_ids(arguments)[:corners]
    shared = len(devices) > 1
    # In an allocation of SLURM (or another scheduler) Lightning would take the search for one of
    # many
    # processes, refuse its devices, requeue the job, and log only in the first.
    alone = LightningEnvironment()
    alone.set_global_rank(0)
    own = {
        "devices": len(devices) if arguments["accelerator"] == "cpu" else devices,
        "strategy": CornersOverRanks() if shared else "auto",
    }
    try:
        with quiet_lightning():
            return Trainer(
                **(arguments | own),
                max_epochs=-1,
                logger=False,
                callbacks=list(callbacks),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=directory,
                plugins=[alone, CheckpointFile()],
            )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise SettingError("trainer", arguments, str(error)) from None


def fit(trainer: Trainer, module: Collision, logger: Logger | None, ckpt_path: Path | None) -> None:
    """Run the search in `module` until its callbacks stop it; the result is `module.found`.

    Args:
        trainer: from `make_trainer`.
        module: the search.
        logger: a Lightning logger for curves and pictures.
        ckpt_path: a checkpoint to resume.

    Raises:
        SettingError: if the network cannot be compiled.
        CollisionError: if the loss is not finite, memory runs out, or a rank fails.
    """
    trainer.logger = logger
    with quiet_lightning():
        trainer.fit(module, itertools.repeat(0), ckpt_path=ckpt_path, weights_only=True)


def halve_and_compare(module: Collision, device: torch.device) -> float:
    """Halve the network's weights, and compare the first gradient before and after.

    Args:
        module: a search in float32 before its first step; its network stays in bf16-mixed.
        device: of the search.

    Returns:
        The smallest cosine over the corners between the two gradients.
    """
    per_batch = module.per_batch
    module.to(device)
    before = _gradient(module, False)
    halve_weights(module.network, "bf16-mixed")
    after = _gradient(module, True)
    module.cpu()
    module.per_batch = per_batch  # `auto` is measured on the search's device
    return float(torch.cosine_similarity(before, after, dim=1).nan_to_num(-1).min())


def _gradient(module: Collision, mixed: bool) -> Tensor:
    """Gradient of the first step, (K, numbers of a corner) in float64."""
    (parameter,) = module.parameterisation.parameters()
    with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
        module._descend(0, Tensor.backward)
    gradient = parameter.grad
    assert gradient is not None
    parameter.grad = None
    return gradient.flatten(1).double()
