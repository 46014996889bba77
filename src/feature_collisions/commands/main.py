"""The two commands until their work begins: a mistake waits for no import that takes seconds."""

import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..errors import CollisionError, SettingError
from ..interrupts import Interrupted
from ..runs.directories import CONFIG, claimed, newest_run, place_of_run, remove_if_empty
from ..settings.solver import check_used
from ..settings.train import to_settings
from .command_line import changed, command, override
from .start import explain, importing


def train(config: DictConfig) -> None:
    """Run one job of Hydra; in a sweep errors are raised, so Hydra runs the next job."""
    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    setting = "hydra.sweep.dir=" if sweep else "hydra.run.dir="
    named = any(each.startswith(setting) for each in hydra.overrides.hydra)
    directory = output = Path(hydra.runtime.output_dir)
    try:
        settings = to_settings(config)
        given, of_many = hydra.overrides.task, settings.pairs
        objective, moved = settings.objective, settings.parameterisation
        check_used(settings.solver, given, objective, of_many, moved)
        directory, checkpoint = place_of_run(settings.ckpt_path, output, sweep, named)
        group = directory.parent.name if sweep else directory.name
        with claimed(directory, "hydra.sweep.dir" if sweep else "hydra.run.dir"):
            with importing():  # here, because it takes seconds
                from .train import train as search
            search(settings, directory, checkpoint, group, list(hydra.overrides.task))
    except Interrupted as interrupted:
        begun = (directory / CONFIG).exists()
        remove_if_empty(output)
        place = Path(hydra.sweep.dir).absolute() if sweep else directory
        resumable = config.get("solver", "gradient") == "gradient"
        interrupted.command = continuing(sys.argv[1:], place, sweep, sweep or begun, resumable)
        raise
    except (SettingError, CollisionError, OSError) as error:
        remove_if_empty(output)
        if sweep:
            raise
        sys.exit(f"error: {explain(error)}")


def continuing(arguments: list[str], place: Path, sweep: bool, begun: bool, resumable: bool) -> str:
    """The command that resumes the run or sweep at `place`, or starts it again if it is empty.

    Linear programs have no checkpoints; unsolved ones are solved again.
    """
    overrides = [override("hydra.sweep.dir" if sweep else "hydra.run.dir", place)]
    if resumable:
        overrides.append("ckpt_path=last")
    return command("train", *(changed(arguments, *overrides) if begun else arguments))


def evaluate(config: DictConfig) -> None:
    """Read the run or the runs, measure, and write and print the report."""
    try:
        settings = to_settings(config)
        directory = Path(settings.run) if settings.run else newest_run(Path("runs"))
        try:
            with importing():
                from .evaluate import evaluate_all
            evaluate_all(settings, directory)
        except Interrupted as interrupted:
            place = override("run", directory.absolute())
            interrupted.command = command("evaluate", *changed(sys.argv[1:], place))
            raise
    except (SettingError, OSError) as error:
        sys.exit(f"error: {explain(error)}")
