"""Find the corners of a polytope of feature collisions: `python train.py experiment=mnist`."""

from pathlib import Path

from feature_collisions.commands.main import train
from feature_collisions.commands.start import run_command

if __name__ == "__main__":
    run_command("train", train, Path(__file__).parent / "conf")
