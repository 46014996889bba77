"""Read the lines of a user's CSV file, as written by editors and spreadsheets."""

import csv
import io

from ..data.files import opened
from ..errors import SettingError
from ..paths import expanded

_MOST_BYTES = 10_000_000
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
    try:
        with opened(expanded(path), _MOST_BYTES) as file:
            content = file.read()
    except SettingError as error:  # it begins with the path
        raise SettingError(f"{setting}={error}; {rule}") from None
    except OSError as error:
        raise SettingError(setting, path, f"cannot be read ({error.strerror})", rule) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise SettingError(
            setting, path, f"line {line} is not in UTF-8", "save the file as CSV UTF-8"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    except csv.Error as error:
        raise SettingError(
            setting, path, f"line {reader.line_num} cannot be read ({error})", rule
        ) from None
    return [(number, fields) for number, fields in lines if any(fields)]


def shown(fields: list[str]) -> str:
    """A line for messages: without control characters, and cut if it is long."""
    text = ",".join(fields)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
