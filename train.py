"""Find the corners of a polytope of feature collisions: `python train.py experiment=mnist`."""

from pathlib import Path

from feature_collisions.commands.start import run_command
from feature_collisions.commands.train import main

if __name__ == "__main__":
    run_command("train", main, Path(__file__).parent / "conf")
