"""A user's CSV files, as written by editors and spreadsheets: lines, and columns for a survey."""

import csv
import difflib
import io
import math
from collections.abc import Sequence
from functools import partial

from ..data.files import opened
from ..errors import SettingError
from ..paths import expanded

_MOST_BYTES = 10_000_000
_RULE = "give a CSV file: network,COLUMN,... in its first line, then a network and its numbers"
_SHOWN = 60  # characters of a line, in a message


def csv_lines(setting: str, path: str, rule: str) -> list[tuple[int, list[str]]]:
    """The stripped fields of each line that is not empty, with the line's number.

    A byte-order mark is removed.

    Args:
        setting: name of the file's setting, for messages.
        path: the file.
        rule: the remedy, for messages.

    Raises:
        SettingError: if the file cannot be read, or is not CSV in UTF-8; with the line's number.
    """
    wrong = partial(SettingError, setting, path)
    try:
        with opened(expanded(path), _MOST_BYTES) as file:
            content = file.read()
    except SettingError as error:  # it begins with the path
        raise SettingError(f"{setting}={error}; {rule}") from None
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})", rule) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise wrong(f"line {line} is not in UTF-8", "save the file as CSV UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise wrong(f"line {reader.line_num} cannot be read ({error})", rule) from None
    return [(number, fields) for number, fields in lines if any(fields)]


def shown(fields: list[str]) -> str:
    """A line for messages: without control characters, and cut if it is long."""
    text = ",".join(fields)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def read_extra(path: str, networks: Sequence[str]) -> dict[str, dict[str, float]]:
    """A survey's additional columns (`survey.extra`): the entries of each network.

    The part after the last colon suffices as a name: `cnn_a_adv` for `cifar:cnn_a_adv`.

    Raises:
        SettingError: if the file cannot be read, a line names no network of the survey, a network
            has no line, or an entry is not a number; with the line's number.
    """
    where = f"survey.extra={path}"
    wrong = partial(SettingError, where, None)
    lines = csv_lines("survey.extra", path, _RULE)
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise wrong("has no columns", _RULE)
    columns = lines[0][1][1:]
    if len(set(columns)) < len(columns) or not all(columns):
        raise wrong("two columns share a name, or one has none", _RULE)
    found: dict[str, dict[str, float]] = {}
    for number, (name, *cells) in lines[1:]:
        network = _network(f"{where}: line {number}", name, networks)
        if network in found:
            raise wrong(f"line {number} names {name} again", "one line each")
        if len(cells) != len(columns):
            raise wrong(
                f"line {number} has {len(cells)} entries, and there are {len(columns)} columns",
                _RULE,
            )
        found[network] = {
            column: _number(f"{where}: line {number}", column, cell)
            for column, cell in zip(columns, cells, strict=True)
        }
    if missing := [network for network in networks if network not in found]:
        raise wrong(f"has no line for {', '.join(missing)}", _RULE)
    return found


def _network(where: str, name: str, networks: Sequence[str]) -> str:
    called = [each for each in networks if name in (each, each.rpartition(":")[2])]
    if len(called) == 1:
        return called[0]
    near = difflib.get_close_matches(name, networks, 3, 0.5) or networks
    rule = "names several networks" if called else "names no network of the survey"
    raise SettingError(f"{where}, {name!a:.60}, {rule}; similar: {', '.join(called or near)}")


def _number(where: str, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingError(where, None, f"{column}={cell!a:.40} must be a finite number")
    return value
