"""The command `feature-collisions train|evaluate`, also as `python -m feature_collisions`."""

import importlib
import sys

from . import __version__
from .commands.command_line import command
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
        module = importlib.import_module(f".commands.{name}", __package__)
        run_command(name, module.main, conf_folder())
    elif name == "--version":
        print(f"feature_collisions {__version__}")
    elif name in ("-h", "--help"):
        train, evaluate = command("train"), command("evaluate")
        print(_HELP.format(train=train, evaluate=evaluate, version=__version__))
    else:
        sys.exit(f"error: {name}: must be train or evaluate; {command('train')} --help says more")


if __name__ == "__main__":
    main()
