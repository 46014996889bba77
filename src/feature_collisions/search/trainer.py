"""Lightning's Trainer around a search: one device, and its mistakes in the user's words."""

import itertools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from ..errors import CollisionError, SettingError
from ..settings.trainer import device_ids
from .callbacks import Stop
from .checkpoints import CheckpointFile
from .collision import Collision


def make_trainer(
    arguments: dict[str, Any],
    callbacks: list[Callback],
    directory: Path | None,
    file: CheckpointFile | None = None,
) -> Trainer:
    """A Trainer for one search on the first of its devices.

    Args:
        arguments: of Lightning's Trainer, as `check_trainer` leaves them.
        callbacks: what happens between the steps, beside stopping.
        directory: where Lightning writes, if anywhere.
        file: how checkpoints are written and read, if several processes take part.

    Raises:
        SettingError: for arguments that the Trainer refuses.
    """
    first = 1 if arguments["accelerator"] == "cpu" else device_ids(arguments)[:1]
    # In an allocation of SLURM's (or of others) Lightning would take the search for one of many
    # processes, refuse its devices, requeue the job and keep all but the first from logging.
    alone = LightningEnvironment()
    alone.set_global_rank(0)
    try:
        with _quiet_lightning():
            return Trainer(
                **(arguments | {"devices": first, "strategy": "auto"}),
                max_epochs=-1,
                logger=False,
                callbacks=[*callbacks, Stop()],
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=directory,
                plugins=[alone, file or CheckpointFile()],
            )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise SettingError(f"trainer={arguments}: {error}") from None


def fit(trainer: Trainer, module: Collision, logger: Logger | None, ckpt_path: Path | None) -> None:
    """Run the search in `module` until its callbacks stop it.

    Args:
        trainer: of `make_trainer`.
        module: the search.
        logger: a Lightning logger for curves and pictures.
        ckpt_path: a checkpoint to continue from.

    Raises:
        SettingError: for a network that does not compile.
        CollisionError: when the loss stops being finite, or memory runs out.
    """
    trainer.logger = logger
    try:
        with _quiet_lightning():
            trainer.fit(module, itertools.repeat(0), ckpt_path=ckpt_path, weights_only=True)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise SettingError(
            f"compile=true: the network cannot be compiled here ({_first_line(error)}); leave "
            "compile out"
        ) from error
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        raise CollisionError(
            f"out of memory at step {module.step} with "
            f"corners_per_batch={module.per_batch or 'auto'}; lower it or data.size, or "
            "set trainer.precision=bf16-mixed. Checkpoints written before are kept: go on with "
            "ckpt_path=last"
        ) from error


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's lines about the hardware, and warnings that do not apply."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The frozen network is meant to be in eval mode.
            warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")
            # One process is right: where SLURM is installed, Lightning tells to use it.
            warnings.filterwarnings("ignore", ".*srun. command is available")
            # Lightning 2.6 asks torch in a way that torch 2.12 and later deprecate.
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
            yield
    finally:
        logger.setLevel(level)
