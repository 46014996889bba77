"""A user's additional columns for a survey: a CSV file, one line per network."""

import difflib
import math
from collections.abc import Sequence

from ..errors import SettingError
from .csv_lines import csv_lines

_RULE = "give a CSV file: network,COLUMN,... in its first line, then a network and its numbers"


def read_extra(path: str, networks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Entries of each network in the file's columns.

    The part after the last colon suffices as a name: `cnn_a_adv` for `cifar:cnn_a_adv`.

    Raises:
        SettingError: if the file cannot be read, a line names no network of the survey, a network
            has no line, or an entry is not a number; with the line's number.
    """
    where = f"survey.extra={path}"
    lines = csv_lines("survey.extra", path, _RULE)
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise SettingError(where, None, "has no columns", _RULE)
    columns = lines[0][1][1:]
    if len(set(columns)) < len(columns) or not all(columns):
        raise SettingError(where, None, "two columns share a name, or one has none", _RULE)
    found: dict[str, dict[str, float]] = {}
    for number, (name, *cells) in lines[1:]:
        network = _network(f"{where}: line {number}", name, networks)
        if network in found:
            raise SettingError(where, None, f"line {number} names {name} again", "one line each")
        if len(cells) != len(columns):
            raise SettingError(
                where,
                None,
                f"line {number} has {len(cells)} entries, and there are {len(columns)} columns",
                _RULE,
            )
        found[network] = {
            column: _number(f"{where}: line {number}", column, cell)
            for column, cell in zip(columns, cells, strict=True)
        }
    if missing := [network for network in networks if network not in found]:
        raise SettingError(where, None, f"has no line for {', '.join(missing)}", _RULE)
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
