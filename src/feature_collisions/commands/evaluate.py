"""Measure the hull of a run's corners: `python evaluate.py run=DIR`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from ..ends import Stopped
from ..errors import SettingError
from ..hull.places import claimed, newest_run
from ..report.command_line import changed, command, override
from ..report.escaping import for_line
from ..settings.evaluate import EvaluateSettings
from ..settings.train import to_settings
from .start import explain

if TYPE_CHECKING:
    from ..hull.run import Run


def main(config: DictConfig) -> None:
    """Read the run or the runs, measure, and write and print the report."""
    try:
        settings = to_settings(config)
        directory = Path(settings.run) if settings.run else newest_run(Path("runs"))
        try:
            evaluate_all(settings, directory)
        except Stopped as stopped:
            place = override("run", directory.absolute())
            stopped.command = command("evaluate.py", *changed(sys.argv[1:], place))
            raise
    except (SettingError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def evaluate_all(settings: EvaluateSettings, directory: Path) -> None:
    """Evaluate each hull in `directory`; more than one are put into one table."""
    from ..report.many import hulls_below
    from ..settings.trainer import check_evaluation

    settings.trainer = check_evaluation(settings.trainer)
    runs, refused = hulls_below(directory)
    if not runs:
        raise SettingError("; ".join(refused.values()))
    with claimed(directory, "run"):
        measure_all(settings, directory, runs, refused)


def measure_all(
    settings: EvaluateSettings, directory: Path, runs: "list[Run]", refused: dict[str, str]
) -> None:
    """Measure the hulls, write their reports, and a table where there is more than one."""
    from ..evaluation.evaluate import reason_of
    from ..report.many import row_of, write_table
    from ..report.wandb_logs import log_evaluation, log_table

    mode, found = settings.wandb.mode, []
    if len(runs) + len(refused) == 1:
        found = [(runs[0], *measure(settings, runs[0]))]
        say(mode, log_evaluation(mode, *found[0]))
        end_with(found, {})
        return
    rows: list[dict[str, Any]] = [
        {"run": name, "outcome": reason} for name, reason in refused.items()
    ]
    for run in runs:
        name = str(run.directory.relative_to(directory))
        print(f"\n{for_line(name)}", flush=True)
        try:
            found.append((run, *measure(settings, run)))
            rows.append(row_of(name, *found[-1]))
        except Exception as error:  # whatever it is, the others' tables must not be lost
            refused[name] = reason_of(error)
            rows.append({"run": name, "outcome": refused[name]})
    print(f"\n{write_table(directory, rows)}")
    print(f"table: {directory / 'runs.md'}")
    for each in found:
        say(mode, log_evaluation(mode, *each))
    say(mode, log_table(mode, directory, runs, rows))
    end_with(found, refused)


def end_with(found: "Sequence[tuple[Run, dict[str, Any], Any]]", refused: dict[str, str]) -> None:
    """End with a status that is not 0, and the reasons, where not everything was measured."""
    reasons = [f"{name}: {reason}" for name, reason in refused.items()]
    for run, result, _ in found:
        failed = result.get("failed", {})
        reasons += [f"{run.directory}: {name} ({reason})" for name, reason in failed.items()]
    if reasons:
        sys.exit(f"error: not everything was measured; what was is written. {'; '.join(reasons)}")


def say(mode: str, name: str | None) -> None:
    """Say which W&B run was added to, if any."""
    if name:
        print(f"W&B ({mode}): added to {for_line(name)}")


def measure(settings: EvaluateSettings, run: "Run") -> tuple[dict[str, Any], Sequence[str]]:
    """Evaluate a run, as data: nothing it names is executed. Gives the classes' names too."""
    from ..data.devices import without_tf32
    from ..data.files import refuse_links, write_json
    from ..evaluation.evaluate import EVALUATION, evaluate, hull_of, reason_of
    from ..report.report import classes_of, print_evaluation, write_report

    refuse_links(run.directory)
    place, named = settings.data, settings.classifier
    hull, data = hull_of(run, place.root, named.weights, named.path, settings.trainer)
    with claimed(run.directory, "run"), without_tf32():
        scale = run.summary["distance_scale"]
        result = evaluate(hull, lambda: data.test.mean_distance() * scale, settings, run.directory)
        names = classes_of(hull, data.test.class_names)
        try:
            write_report(run.directory, hull, result, names)
        except Exception as error:  # what was measured stands in evaluation.json
            result.setdefault("failed", {})["report"] = reason_of(error)
            write_json(run.directory / EVALUATION, result)
    print_evaluation(result, names, run.directory)
    return result, names
