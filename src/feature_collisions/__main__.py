"""The command `feature-collisions train|evaluate`, also as `python -m feature_collisions`."""

import sys

from . import __version__
from .commands.command_line import command
from .commands.main import evaluate, train
from .commands.start import conf_folder, run_command

_HELP = """\
Pictures that differ and have the same features in a network: find them, and measure how different.

  {train} [NAME=VALUE ...]       find a hull of such pictures
  {evaluate} [NAME=VALUE ...]    measure it, and write a report

With --help each lists its settings. Version: {version}"""


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("train", "evaluate"):
        del sys.argv[1]
        run_command(name, train if name == "train" else evaluate, conf_folder())
    elif name == "--version":
        print(f"feature_collisions {__version__}")
    elif name in ("-h", "--help"):
        names = {name: command(name) for name in ("train", "evaluate")}
        print(_HELP.format(**names, version=__version__))
    else:
        sys.exit(f"error: {name}: must be train or evaluate; {command('train')} --help says more")


if __name__ == "__main__":
    main()
