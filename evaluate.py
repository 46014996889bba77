"""Measure the hull of a run's corners: `python evaluate.py run=DIR`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from feature_collisions.commands import explain, run_command
from feature_collisions.config import to_settings
from feature_collisions.errors import SettingError
from feature_collisions.evaluate_settings import EvaluateSettings
from feature_collisions.places import newest_run


def main(config: DictConfig) -> None:
    """Read the run, measure it, and write and print the report."""
    try:
        settings = to_settings(config)
        measure(settings, Path(settings.run) if settings.run else newest_run(Path("runs")))
    except (SettingError, OSError) as error:
        sys.exit(f"error: {explain(error)}")


def measure(settings: EvaluateSettings, directory: Path) -> None:
    """Evaluate the run in `directory`, as data: nothing it names is executed."""
    from feature_collisions.evaluation import evaluate, hull_of
    from feature_collisions.files import write_json
    from feature_collisions.report import print_evaluation, write_report
    from feature_collisions.runs import read_run

    run = read_run(directory)
    hull, data = hull_of(
        run, settings.data.root, settings.classifier.weights, settings.classifier.path
    )
    distance = data.test.mean_distance() * run.summary["distance_scale"]
    result = evaluate(hull, distance, settings, directory)
    write_json(directory / "evaluation.json", result)
    write_report(directory, hull, result, data.test.class_names)
    print_evaluation(result, data.test.class_names, directory)


if __name__ == "__main__":
    run_command(main, Path(__file__).parent / "conf", "evaluate")
