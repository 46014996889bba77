"""What `train.py` and `evaluate.py` share: Hydra, and one message for a user's mistake."""

import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import Container, DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from .config import Settings, expand_corner_sweep
from .errors import CollisionError, SettingError
from .escaping import for_terminal
from .evaluate_settings import EvaluateSettings

_MENDABLE = (SettingError, CollisionError, HydraException, OmegaConfBaseException, OSError)


def run_command(task: Callable[[DictConfig], None], conf: Path, name: str) -> None:
    """Run `task` on the config `conf`/`name`.yaml and the command line's overrides.

    A mistake the user can mend ends with one message and exit status 1, without a traceback.
    """
    register_schemas(ConfigStore.instance())
    sys.argv[1:] = expand_or_exit(sys.argv[1:])
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    # Threads that spin while they wait make small networks 50 times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through, to be put in our own words
    try:
        hydra.main(config_path=str(conf), config_name=name, version_base="1.3")(task)()
    except _MENDABLE as error:
        sys.exit(f"error: {explain(error)}")


def keep_freed_memory() -> None:
    """Have glibc, where it is, keep what a step frees for the next step.

    Otherwise each tensor of some megabytes is given back and comes as fresh pages again, which took
    a third of the time of a SqueezeNet step on composites.
    """
    if sys.platform != "linux" or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


def register_schemas(store: ConfigStore) -> None:
    """Tell Hydra which keys exist and which types they have."""
    store.store("train_schema", Settings)
    store.store("evaluate_schema", EvaluateSettings)


def expand_or_exit(arguments: list[str]) -> list[str]:
    """The arguments with `corner=0..4` expanded for a sweep; a mistake in it ends the program."""
    try:
        return expand_corner_sweep(arguments)
    except SettingError as error:
        sys.exit(f"error: {error}")


def explain(error: BaseException) -> str:
    """One message: what is wrong and what may be written instead."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: unknown; known are {', '.join(error.options)}"
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, ConfigKeyError | ConfigAttributeError):
        parent = cause.parent_node
        known = ", ".join(map(str, parent)) if isinstance(parent, Container) else "none"
        return f"{cause.full_key}: there is no such setting; known here are {known}"
    if isinstance(cause, OmegaConfBaseException):
        return f"{cause.full_key}: {str(cause).splitlines()[0]}"
    if isinstance(error, OSError):
        return (
            f"{error.filename or 'output'}: {error.strerror or error}; what was written before is "
            "kept. Free some space or choose another place with hydra.run.dir=DIR"
        )
    return for_terminal(str(error).strip())
