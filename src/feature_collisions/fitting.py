"""Lightning's Trainer around a search: one device, and its mistakes in the user's words."""

import itertools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from .collision import Collision
from .errors import CollisionError, SettingError


def fit(
    module: Collision,
    arguments: dict[str, Any],
    callbacks: list[Callback],
    directory: Path | None = None,
    logger: Logger | None = None,
    ckpt_path: Path | None = None,
) -> None:
    """Run the search in `module` until its callbacks stop it.

    Args:
        module: the search.
        arguments: of Lightning's Trainer.
        callbacks: what happens between the steps.
        directory, logger: where Lightning writes, if anywhere.
        ckpt_path: a checkpoint to continue from.

    Raises:
        SettingError: for arguments that the Trainer refuses, or a network that does not compile.
        CollisionError: when the loss stops being finite, or memory runs out.
    """
    with _quiet_lightning():
        trainer = _trainer(arguments, callbacks, directory, logger)
        try:
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
                f"out of memory at step {module.step} with {module.per_batch} corners at once; "
                "lower corners_per_batch or data.size, or set trainer.precision=bf16-mixed. "
                "Checkpoints written before are kept: go on with ckpt_path=last"
            ) from error


def _trainer(
    arguments: dict[str, Any],
    callbacks: list[Callback],
    directory: Path | None,
    logger: Logger | None,
) -> Trainer:
    try:
        return Trainer(
            **arguments,
            max_epochs=-1,
            logger=logger or False,
            callbacks=callbacks,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=directory,
        )
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise SettingError(f"trainer={arguments}: {error}") from None


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
