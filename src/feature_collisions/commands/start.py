"""Common start of `train.py` and `evaluate.py`: Hydra, and one message for a user's mistake."""

import ctypes
import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from .. import __version__
from ..errors import CollisionError, SettingError
from ..escaping import for_terminal
from ..interrupts import Interrupted, interruptible
from ..settings.conversions import did_you_mean, in_plain_words
from ..settings.evaluate import EvaluateSettings
from ..settings.survey import tell_of_networks
from ..settings.train import (
    Settings,
    check_arguments,
    expand_corner_sweep,
    is_sweep,
    overrides_first,
)
from .command_line import changed, command, usage

_CONFIGS = {"train": "config", "evaluate": "evaluate"}  # files in conf/
_BROKEN_PIPE = 141  # 128 + SIGPIPE
_FIXABLE = (SettingError, CollisionError, HydraException, OmegaConfBaseException, OSError)


def conf_folder() -> Path:
    """The folder `conf/` of the installed package, or of the checkout of an editable install."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parents[1] / "conf"


def run_command(name: str, task: Callable[[DictConfig], None], conf: Path) -> None:
    """Run the command `name`, `train` or `evaluate`, with the overrides of the command line.

    Args:
        name: of the command.
        task: function of the composed config.
        conf: the folder of the config's files.

    A user's mistake ends with one message and exit status 1, without a traceback; SIGINT and
    SIGTERM end with one line and status 130 or 143; a closed pipe (`--help | head`) with 141.
    """
    register_schemas(ConfigStore.instance())
    asked = {"-h", "--help", "--version"}.intersection(sys.argv[1:])
    if not asked:
        sys.argv[1:] = expand_or_exit(sys.argv[1:], conf)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    # Threads that spin while they wait make small networks 50 times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # pass errors on, to be explained here
    try:
        if asked:
            version = f"feature_collisions {__version__}"
            print(version if "--version" in asked else usage(name, conf), flush=True)
            return
        with interruptible():
            config = {"config_path": str(conf), "config_name": _CONFIGS[name]}
            hydra.main(version_base="1.3", **config)(task)()
    except Interrupted as interrupted:
        go_on = interrupted.command or _again(name, sys.argv[1:])
        print(f"\n{interrupted}; written files are kept. To resume: {go_on}", file=sys.stderr)
        sys.exit(interrupted.status)
    except BrokenPipeError:  # `train.py --help | head`: end as by SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the remaining flush
        sys.exit(_BROKEN_PIPE)
    except _FIXABLE as error:
        sys.exit(f"error: {explain(error)}")


def _again(name: str, arguments: list[str]) -> str:
    """The command that resumes, if no job has set it: before the first or between two jobs."""
    if any(each.startswith("hydra.sweep.dir=") for each in arguments):
        arguments = changed(arguments, "ckpt_path=last")
    return command(name, *arguments)


def keep_freed_memory() -> None:
    """Keep glibc from returning freed memory to the system between steps.

    Otherwise tensors of several megabytes are unmapped and mapped again, which took a third of the
    time of a SqueezeNet step on composites. Threads share one arena: separate arenas hold 64 MiB
    and are returned whole, which took a quarter of the time of classification on two threads.
    """
    if sys.platform != "linux" or (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is None:
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)


@contextmanager
def importing() -> Iterator[None]:
    """Pause Python's garbage collector while a command imports Lightning.

    Modules do not become garbage, and scanning them took a quarter of the time. Afterwards they
    are excluded from collection. Later jobs of a sweep import nothing.
    """
    if "lightning" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def register_schemas(store: ConfigStore) -> None:
    """Register the keys and types of settings with Hydra."""
    store.store("train_schema", Settings)
    store.store("evaluate_schema", EvaluateSettings)


def expand_or_exit(arguments: list[str], conf: Path) -> list[str]:
    """Sort the arguments for Hydra, and expand `corner=0..4` for a sweep.

    For a sweep over classifiers all are added as `networks`. A mistake ends the program.
    """
    try:
        check_arguments(arguments)
        expanded = expand_corner_sweep(overrides_first(arguments))
        if is_sweep(arguments):
            expanded = overrides_first(tell_of_networks(expanded, conf))
        return expanded
    except SettingError as error:
        sys.exit(f"error: {error}")


def explain(error: BaseException) -> str:
    """One message with the mistake and the remedy, by the names of the command line."""
    return for_terminal(on_command_line(_words_of(error).strip()))


def on_command_line(message: str) -> str:
    """A message about a keyword of Python by the name of its setting.

    Example:
        >>> on_command_line("layer=a: is not a layer")
        'classifier.layer=a: is not a layer'
    """
    return re.sub(r"^(layer|output)(?=[=:])", r"classifier.\1", message)


def _words_of(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        question = did_you_mean(choice, error.options)
        known = f"the choices are {', '.join(error.options)}"
        return f"{group}={choice}: unknown; {f'{question} ' * bool(question)}{known}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read; write NAME=VALUE, with quotes within quotes if "
            "VALUE has spaces, commas or brackets: 'NAME=\"a value\"'"
        )
    cause = error.__cause__ if isinstance(error, HydraException) else error
    if isinstance(cause, OmegaConfBaseException):
        return in_plain_words(cause)
    if isinstance(error, OSError):
        reason = f"{error.filename or 'output'}: {error.strerror or error}"
        return f"{reason}; files written before are kept"
    return str(error)
