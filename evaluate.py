"""Measure the hull of a run's corners: `python evaluate.py run=DIR`."""

from pathlib import Path

from feature_collisions.commands.evaluate import main
from feature_collisions.commands.start import run_command

if __name__ == "__main__":
    run_command("evaluate", main, Path(__file__).parent / "conf")
