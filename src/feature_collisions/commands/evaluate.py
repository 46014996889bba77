"""Measure the hull of a run's corners: `python evaluate.py run=DIR`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..data.devices import without_tf32
from ..data.files import refuse_links, write_json
from ..data.images import SQUARES
from ..errors import SettingError
from ..escaping import for_line, for_terminal
from ..evaluation.evaluate import EVALUATION, evaluate, reason_of
from ..evaluation.hull_of_run import hull_of
from ..evaluation.judge import judge_of
from ..networks.classifiers import names_in
from ..report import report
from ..report.findings import Description, claims_table, describe
from ..report.runs import OF_RUNS, columns_of, row_of_run, runs_table, write_runs
from ..report.survey import OF_HULLS, write_survey
from ..report.tables import as_text, print_table
from ..report.wandb_logs import log_evaluation, log_rows, use_account
from ..report.words import names_of
from ..runs.directories import claimed
from ..runs.evaluation import Evaluation
from ..runs.rows import Row
from ..runs.run import Run, hulls_below
from ..settings.evaluate import EvaluateSettings
from ..settings.trainer import check_trainer
from .survey import is_survey, read_survey

_IMAGES = 200  # of the data set, whose features are compared with the target's


def evaluate_all(settings: EvaluateSettings, directory: Path) -> None:
    """Evaluate each hull in `directory`; several hulls also get a table."""
    use_account(settings.wandb.entity)
    settings.trainer = check_trainer(settings.trainer)
    runs, refused = hulls_below(directory)
    if not runs:
        raise SettingError("; ".join(refused.values()))
    with claimed(directory, "run"):
        if len(runs) + len(refused) == 1:
            evaluate_one(settings, runs[0])
        elif is_survey(runs):
            evaluate_survey(settings, directory, runs, refused)
        else:
            evaluate_many(settings, directory, runs, refused)


def evaluate_one(settings: EvaluateSettings, run: Run) -> None:
    """Measure one hull and write its report."""
    result, names = measured(settings, run)
    say(settings.wandb.mode, log_evaluation(settings.wandb.mode, run, result, names))
    end_with(failures(run, result))


def evaluate_survey(
    settings: EvaluateSettings, directory: Path, runs: list[Run], refused: dict[str, str]
) -> None:
    """Measure the pairs that all networks share, and write tables over them."""
    survey = read_survey(settings, runs)
    rows, failed = survey.measured(settings)
    for table in write_survey(
        directory, rows, survey.reference, survey.extra, survey.budget, settings.seed
    ):
        print_table(table)
    for line in survey.left_out:
        print(for_terminal(f"skipped: {line}"))
    print(for_terminal(f"\nsurvey: {directory / 'survey.html'}"))
    every = [row for hulls in rows.values() for row in hulls]
    mode = settings.wandb.mode
    say(mode, log_rows(mode, directory, runs, every, OF_HULLS, "survey_hulls", "survey"))
    end_with([f"{name}: {reason}" for name, reason in (refused | failed).items()])


def evaluate_many(
    settings: EvaluateSettings, directory: Path, runs: list[Run], refused: dict[str, str]
) -> None:
    """Measure the hulls, write their reports and a table over all of them."""
    mode, found = settings.wandb.mode, []
    rows = [Row(run=name, outcome=reason) for name, reason in refused.items()]
    for run in runs:
        name = str(run.directory.relative_to(directory))
        print(f"\n{for_line(name)}", flush=True)
        try:
            found.append((run, *measured(settings, run)))
            rows.append(row_of_run(name, *found[-1]))
        except Exception as error:  # of any kind; the other hulls' tables are kept
            refused[name] = reason_of(error)
            rows.append(Row(run=name, outcome=refused[name]))
    write_runs(directory, rows)
    print_table(runs_table(rows, brief=True))
    print(for_terminal(f"table: {directory / 'runs.html'}"))
    for each in found:
        say(mode, log_evaluation(mode, *each))
    say(mode, log_rows(mode, directory, runs, rows, columns_of(rows, OF_RUNS), "runs", "sizes"))
    reasons = [f"{name}: {reason}" for name, reason in refused.items()]
    for run, result, _ in found:
        reasons += failures(run, result)
    end_with(reasons)


def failures(run: Run, result: Evaluation) -> list[str]:
    """Failed measurements of a hull, with the reason."""
    return [f"{run.directory}: {name} ({reason})" for name, reason in result.failed.items()]


def end_with(reasons: list[str]) -> None:
    """Exit with a nonzero status and the reasons, if measurements failed."""
    if reasons:
        sys.exit(f"error: some measurements failed; the others are saved. {'; '.join(reasons)}")


def say(mode: str, name: str | None) -> None:
    """Print the W&B run that was updated, if any."""
    if name:
        print(f"W&B ({mode}): added to {for_line(name)}")


def measured(settings: EvaluateSettings, run: Run) -> tuple[Evaluation, Sequence[str]]:
    """Evaluate a run without executing code that it names; also return the class names."""
    refuse_links(run.directory)
    hull, data = hull_of(run, settings)
    judge = judge_of(settings.sizes.judge, data)
    if judge:
        judge.check(hull)
    seconds: dict[str, float] = {}
    with claimed(run.directory, "run"), without_tf32():
        scale = run.summary.distance_scale

        def distances() -> dict[int, float]:
            return {n: each * scale for n, each in data.test.mean_distances(SQUARES).items()}

        def images() -> Tensor:
            return data.test.draw(_IMAGES, settings.seed)

        result = evaluate(hull, distances, settings, run.directory, seconds, judge, images)
        pictures = [run.config.get(name, name) for name in ("initial", "target")]
        names = names_of(hull, data.test.class_names, names_in(hull.model), pictures)
        try:
            description = report.write_report(run.directory, hull, result, names)
        except Exception as error:  # results are in evaluation.json
            result = result.with_failure("report", reason_of(error))
            write_json(run.directory / EVALUATION, result.entries())
            description = describe(run.summary, result, names)
    print_report(run.directory, description)
    print(f"time: {where_time_went(seconds)}")
    return result, names


def print_report(directory: Path, description: Description) -> None:
    """Print the claims, how each is known, and the path of the report."""
    print(for_terminal(f"\n{description.headline}. {description.warning}".rstrip()))
    print(f"\n{as_text(claims_table(description.claims, notes=False))}\n")
    print(for_terminal(f"report: {directory / 'report.html'}"))


def where_time_went(seconds: dict[str, float]) -> str:
    """The total time, and the slowest measurements.

    Example:
        >>> where_time_went({"balls": 0.1, "edges": 10.0, "plain": 2.5})
        '12.6 s: edges 10.0 s, plain 2.5 s'
    """
    total, longest = sum(seconds.values()), sorted(seconds.items(), key=lambda each: -each[1])
    parts = [f"{name} {spent:.1f} s" for name, spent in longest[:5] if spent > total / 50]
    return f"{total:.1f} s: {', '.join(parts)}" if parts else f"{total:.1f} s"
