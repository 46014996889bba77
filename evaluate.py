"""Measure the hull of a run's corners: `python evaluate.py run=DIR`."""

from pathlib import Path

from feature_collisions.commands.main import evaluate
from feature_collisions.commands.start import run_command

if __name__ == "__main__":
    run_command("evaluate", evaluate, Path(__file__).parent / "conf")
