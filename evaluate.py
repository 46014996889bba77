"""Measure the hull of a run's corners: `python evaluate.py run=DIR`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from feature_collisions.commands import explain, run_command
from feature_collisions.config import to_settings
from feature_collisions.errors import SettingError
from feature_collisions.escaping import for_line
from feature_collisions.evaluate_settings import EvaluateSettings
from feature_collisions.places import newest_run

if TYPE_CHECKING:
    from feature_collisions.runs import Run


def main(config: DictConfig) -> None:
    """Read the run or the runs, measure, and write and print the report."""
    try:
        settings = to_settings(config)
        evaluate_all(settings, Path(settings.run) if settings.run else newest_run(Path("runs")))
    except (SettingError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def evaluate_all(settings: EvaluateSettings, directory: Path) -> None:
    """Evaluate each hull in `directory`; more than one are put into one table."""
    from feature_collisions.evaluation_logs import log_evaluation, log_table
    from feature_collisions.many import hulls_below, row_of, write_table

    runs, refused = hulls_below(directory)
    if not runs:
        raise SettingError("; ".join(refused.values()))
    mode, found = settings.wandb.mode, []
    if len(runs) + len(refused) == 1:
        say(mode, log_evaluation(mode, runs[0], *measure(settings, runs[0])))
        return
    rows = [{"run": name, "outcome": reason} for name, reason in refused.items()]
    for run in runs:
        name = str(run.directory.relative_to(directory))
        print(f"\n{for_line(name)}", flush=True)
        try:
            found.append((run, *measure(settings, run)))
            rows.append(row_of(name, *found[-1]))
        except SettingError as error:  # the others' tables must not be lost
            rows.append({"run": name, "outcome": explain(error)})
    print(f"\n{write_table(directory, rows)}")
    print(f"table: {directory / 'runs.md'}")
    for each in found:
        say(mode, log_evaluation(mode, *each))
    say(mode, log_table(mode, directory, runs, rows))


def say(mode: str, name: str | None) -> None:
    """Say which W&B run was added to, if any."""
    if name:
        print(f"W&B ({mode}): added to {for_line(name)}")


def measure(settings: EvaluateSettings, run: "Run") -> tuple[dict[str, Any], Sequence[str]]:
    """Evaluate a run, as data: nothing it names is executed. Gives the classes' names too."""
    from feature_collisions.evaluation import evaluate, hull_of
    from feature_collisions.files import refuse_links, write_json
    from feature_collisions.report import print_evaluation, write_report

    refuse_links(run.directory)
    hull, data = hull_of(
        run, settings.data.root, settings.classifier.weights, settings.classifier.path
    )
    distance = data.test.mean_distance() * run.summary["distance_scale"]
    result = evaluate(hull, distance, settings, run.directory)
    write_json(run.directory / "evaluation.json", result)
    write_report(run.directory, hull, result, data.test.class_names)
    print_evaluation(result, data.test.class_names, run.directory)
    return result, data.test.class_names


if __name__ == "__main__":
    run_command(main, Path(__file__).parent / "conf", "evaluate")
