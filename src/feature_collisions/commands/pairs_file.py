"""A CSV file of pairs, lines of initial,target, as editors and spreadsheets write it."""

import csv
import io

from ..data.files import opened
from ..errors import SettingError

_MOST_BYTES = 10_000_000
_SHOWN = 60  # characters of a line, in a message


def read_pairs_file(setting: str) -> list[tuple[int, list[str]]]:
    """The fields of each line that has some, stripped of spaces, with the line's number.

    A byte-order mark, a first line of the names initial,target, empty lines and empty columns
    after the second are left out.

    Args:
        setting: the file's path.

    Raises:
        SettingError: for a file that cannot be read, or is no CSV in UTF-8; the line is numbered.
    """
    reader = csv.reader(
        io.StringIO(_text_of(setting), newline=""), skipinitialspace=True, strict=True
    )
    lines: list[tuple[int, list[str]]] = []
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            while len(stripped) > 2 and not stripped[-1]:
                stripped.pop()
            if any(stripped):
                lines.append((reader.line_num, stripped))
    except csv.Error as error:
        raise SettingError(
            f"pairs={setting}: line {reader.line_num} cannot be read ({error}); it must be "
            "initial,target"
        ) from None
    if lines and [name.lower() for name in lines[0][1]] == ["initial", "target"]:
        lines.pop(0)
    return lines


def shown(fields: list[str]) -> str:
    """A line as a message can show it: without control characters, and cut where it is long."""
    text = ",".join(fields)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _text_of(setting: str) -> str:
    rule = "give a CSV file with lines of initial,target"
    try:
        with opened(setting, _MOST_BYTES) as file:
            content = file.read()
    except SettingError as error:
        raise SettingError(f"pairs={error}; {rule}, or random:N") from None
    except OSError as error:
        raise SettingError(
            f"pairs={setting}: cannot be read ({error.strerror}); {rule}, random:N, or random:N:P "
            "for targets that the classifier gives a probability above P"
        ) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SettingError(
            f"pairs={setting}: line {line} is not in UTF-8; save the file as CSV UTF-8"
        ) from None
