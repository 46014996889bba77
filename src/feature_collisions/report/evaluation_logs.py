"""An evaluation in Weights & Biases: in the run that made the corners, or beside the runs.

A hull put together from several jobs has no run of its own; it gets one, of the job type
`evaluation`, in the jobs' group. So does a table over many runs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..hull.hull import SAMPLERS
from ..hull.run import Run
from .logs import IDENTITY, Identity, kept, known, log_hull, new_id, wandb_run

_TABLE = Path("wandb") / "table.json"
_OF_SAMPLES = ("samples", "accuracy", "accuracy_lower_95", "probability_mean", "probability_min",
               "positive_relative_max", "inactive_kept", "kl_mean", "kl_max")  # fmt: skip
_OF_OTHERS = ("ball_accuracy", "ball_clipped_accuracy", "ball_span_accuracy",
              "random_simplex_accuracy", "plain_accuracy")  # fmt: skip


def log_evaluation(
    mode: str, run: Run, result: dict[str, Any], class_names: Sequence[str]
) -> str | None:
    """Add an evaluation to W&B.

    Args:
        mode: `online`, `offline` or `disabled`: the user's, never what the run was made with.
        run: the corners; where no job of theirs has been in W&B, nothing is logged.
        result: what `evaluation.json` holds.
        class_names: one a class.

    Returns:
        The name of the W&B run, or None.

    Raises:
        SettingError: when `wandb/run.json` is damaged, or W&B refuses.
    """
    first = None if mode == "disabled" else _first(run.jobs)
    if first is None:
        return None
    identity, config = first, None
    if len(run.jobs) > 1:
        corners = [entry["corner"] for entry in run.summary["corners"]]
        name = f"{run.summary['experiment']} corners {', '.join(map(str, corners))}"
        identity = _own(run.directory / IDENTITY, first, name)
        config = run.config | {"corner": corners}
    with wandb_run(mode, run.directory, identity, config) as logged:
        if config:  # the images and the summary are not there yet
            log_hull(logged, run)
        logged.log(
            _media(run.directory, result, class_names),
            step=max(logged.step, run.summary["steps"] + 1),
        )
        figures = {k: v for k, v in run.summary.items() if k != "corners"}
        logged.summary.update(figures | hull_figures(result))
    return identity.name


def hull_figures(result: dict[str, Any]) -> dict[str, Any]:
    """What runs are compared by: size, accuracy, worst case; those that were measured."""
    sample = result.get("dirichlet", {})
    figures = {
        "accuracy": sample.get("accuracy"),
        "accuracy_lower_95": sample.get("accuracy_lower_95"),
        "probability": sample.get("probability_mean"),
        "size": result.get("relative_size"),
        "corner_distance": result.get("corner_distance_mean"),
        "worst_case": result.get("worst_case_probability"),
        "worst_case_correct": result.get("worst_case_correct"),
        "ball_accuracy": result.get("ball_accuracy"),
        "edges_proved": result.get("edges", {}).get("share_proved"),
        "class_proved": result.get("proof", {}).get("class", {}).get("share_proved"),
    }
    return {f"hull/{name}": value for name, value in figures.items() if value is not None}


def _media(directory: Path, result: dict[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """The table, the histograms and the worst point."""
    import wandb

    names = [law + suffix for law in SAMPLERS for suffix in ("", "_uint8")]
    names = [name for name in names if name in result]
    rows = [[name, *(result[name][key] for key in _OF_SAMPLES)] for name in names]
    empty = [None] * (len(_OF_SAMPLES) - 2)
    rows += [
        [name.removesuffix("_accuracy"), None, result[name], *empty]
        for name in _OF_OTHERS
        if result.get(name) is not None
    ]
    media: dict[str, Any] = {"evaluation": wandb.Table(["points", *_OF_SAMPLES], rows)}
    for law in (law for law in SAMPLERS if law in result):
        counts = result[law]["probability_histogram"]
        edges = np.linspace(0, 1, len(counts) + 1)
        media[f"hull/probability_{law}"] = wandb.Histogram(np_histogram=(counts, edges))
    worst = directory / "images" / "worst_case.png"
    if "worst_case_class" in result and worst.exists():
        seen = class_names[result["worst_case_class"]]
        caption = f"{seen}; target's class: {result['worst_case_probability']:.4f}"
        media["hull/worst_point"] = wandb.Image(str(worst), caption=caption)
    return media


def log_table(
    mode: str, directory: Path, runs: Sequence[Run], rows: Sequence[dict[str, Any]]
) -> str | None:
    """Log the table over many runs, and hull size against the loss's weights.

    Args:
        mode: as for `log_evaluation`.
        directory: which holds the runs, and `sizes.png` where weights differ.
        runs: the hulls; where no job of theirs has been in W&B, nothing is logged.
        rows: one a hull or a refused run, as `write_table` takes them.

    Returns:
        The name of the W&B run, or None.
    """
    first = None if mode == "disabled" else _first([job for run in runs for job in run.jobs])
    if first is None:
        return None
    import wandb

    identity = _own(directory / _TABLE, first, f"{directory.name}: {len(rows)} runs")
    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(str(name)) for name in columns] for row in rows]
    media: dict[str, Any] = {"runs": wandb.Table(columns, cells, allow_mixed_types=True)}
    sizes = directory / "sizes.png"
    if sizes.exists():
        media["sizes"] = wandb.Image(str(sizes))
    good = sum(row["outcome"] == "success" for row in rows)
    with wandb_run(mode, directory, identity) as logged:
        logged.log(media)
        logged.summary.update({"runs/evaluated": len(rows), "runs/success": good})
    return identity.name


def _first(jobs: Sequence[Path]) -> Identity | None:
    """The first job's identity that is known."""
    found = (known(job / IDENTITY) for job in jobs)
    return next((identity for identity in found if identity), None)


def _own(path: Path, job: Identity, name: str) -> Identity:
    """A run beside the jobs', kept for the next evaluation."""
    fresh = replace(job, id=new_id(), name=name[:128], job_type="evaluation")
    return kept(path, fresh)
