"""Commands that are printed for the user to paste: quoted for Hydra, then for the shell."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException


def override(key: str, value: str | Path) -> str:
    """`key=value` as Hydra's grammar has it: quoted where the bare text would read otherwise.

    Example:
        >>> override("run", "a b=c")
        'run="a b=c"'
    """
    text = str(value)
    bare = f"{key}={text}"
    if _reads_as(bare, text) and "${" not in text:
        return bare
    text = text.replace("${", r"\${")  # which omegaconf reads as a reference
    return f"{key}={QuotedString(text, Quote.double).with_quotes()}"


def _reads_as(argument: str, text: str) -> bool:
    try:
        (parsed,) = OverridesParser.create().parse_overrides([argument])
        return not parsed.is_sweep_override() and parsed.value() == text
    except OverrideParseException:
        return False


def command(script: str, *arguments: str) -> str:
    """A line for the shell that starts `script`, which lies beside the script that runs now."""
    running = Path(sys.argv[0])
    place = running.with_name(script) if running.suffix == ".py" else Path(script)
    return shlex.join(["python", str(place), *arguments])


def changed(arguments: Sequence[str], *overrides: str) -> list[str]:
    """The arguments with `overrides` in place of those of the same keys.

    They follow the last override that is there: between or after two options Hydra would not
    recognise them.
    """
    keys = {each.partition("=")[0] for each in overrides}
    kept = [each for each in arguments if each.partition("=")[0].lstrip("+~") not in keys]
    overriding = [i for i, each in enumerate(kept, 1) if "=" in each and not each.startswith("-")]
    at = overriding[-1] if overriding else len(kept)
    return [*kept[:at], *overrides, *kept[at:]]
