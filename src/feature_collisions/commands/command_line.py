"""Help texts, and printed commands, quoted for Hydra and the shell."""

import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException


def override(key: str, value: str | Path) -> str:
    """`key=value` in Hydra's grammar, quoted if necessary.

    Example:
        >>> override("run", "a b=c")
        'run="a b=c"'
    """
    text = str(value)
    bare = f"{key}={text}"
    if _reads_as(bare, text) and "${" not in text:
        return bare
    text = text.replace("${", r"\${")  # OmegaConf reads it as a reference
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"


def _reads_as(argument: str, text: str) -> bool:
    try:
        (parsed,) = OverridesParser.create().parse_overrides([argument])
        return not parsed.is_sweep_override() and parsed.value() == text
    except OverrideParseException:
        return False


def command(name: str, *arguments: str) -> str:
    """Shell command that starts `train` or `evaluate` in the same way as this process."""
    running = Path(sys.argv[0])
    if running.name in ("train.py", "evaluate.py"):
        program = ["python", str(running.with_name(f"{name}.py"))]
    elif running.name == "__main__.py" and running.parent.name == "feature_collisions":
        program = ["python", "-m", "feature_collisions", name]
    else:
        program = ["feature-collisions", name]
    return shlex.join([*program, *arguments])


_USAGE = {
    "train": """\
Find pictures that look different but have the same features in a network: the corners of a hull.

usage: {command} [NAME=VALUE ...] [-m]

The settings that are changed most:
  experiment=NAME          a case with all its settings:
                           {experiments}
  classifier=NAME          the network; file is your own, at classifier.path=MODULE:NAME:
                           {classifiers}
  data.root=DIR            the folder of the images
  initial=I target=T       the two images: a class, CLASS:N for its Nth image, or an image file
  corner=0..4              how many corners: an index, a list '[0,3]', or a range
  stop.max_steps=N         when to give up

Examples:
  {command}
  {command} initial=4 target=9 corner=0..9
  {command} experiment=small_pixel classifier.path=MODULE:NAME data=cifar10 \\
      data.root=DIR
""",
    "evaluate": """\
Measure a run's hull by sampling, search and proof, and write a report.

usage: {command} [NAME=VALUE ...]

The settings that are changed most:
  run=DIR                  the run, or the folder of a sweep or of many runs; default: the newest
  samples=N                points to draw with each sampler
  proof.seconds=S          time for each proof
  edges.seconds=S          time for all edges between corners
  data.root=DIR            the run's images, if they were moved
  trainer.accelerator=gpu  the device; or cpu, mps

Examples:
  {command}
  {command} run=runs/mnist/DATE proof.seconds=60
  {command} run=runs/survey wandb.mode=disabled
""",
}
_ALL = """
All settings, with the values this command line sets: {command} --cfg job
Their meaning: docs/reference/settings.md. Several values, one job each: NAME=A,B -m.
Options of Hydra: --hydra-help. Version: --version.
"""


def usage(name: str, conf: Path) -> str:
    """The text of `--help`.

    Args:
        name: `train` or `evaluate`.
        conf: the config's folder; its files are the choices.
    """
    choices = {}
    for group in ("experiment", "classifier"):
        names = ", ".join(sorted(path.stem for path in (conf / group).glob("*.yaml")))
        choices[f"{group}s"] = textwrap.fill(names, 65, subsequent_indent=27 * " ")
    return (_USAGE[name] + _ALL).format(command=command(name), **choices).rstrip()


def changed(arguments: Sequence[str], *overrides: str) -> list[str]:
    """Replace overrides of the same keys in the arguments.

    The new ones follow the last override, since Hydra does not recognise overrides between options.
    """
    keys = {each.partition("=")[0] for each in overrides}
    kept = [each for each in arguments if each.partition("=")[0].lstrip("+~") not in keys]
    overriding = [i for i, each in enumerate(kept, 1) if "=" in each and not each.startswith("-")]
    at = overriding[-1] if overriding else len(kept)
    return [*kept[:at], *overrides, *kept[at:]]
