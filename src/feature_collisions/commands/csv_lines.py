"""A CSV file of the user's own, as editors and spreadsheets write it: its lines, by number."""

import csv
import io

from ..data.files import opened
from ..errors import SettingError
from ..paths import expanded

_MOST_BYTES = 10_000_000
_SHOWN = 60  # characters of a line, in a message


def csv_lines(setting: str, path: str, rule: str) -> list[tuple[int, list[str]]]:
    """The fields of each line that has some, stripped of spaces, with the line's number.

    A byte-order mark is left out.

    Args:
        setting: that names the file, for messages.
        path: the file.
        rule: what to give instead, for messages.

    Raises:
        SettingError: for a file that cannot be read, or is no CSV in UTF-8; the line is numbered.
    """
    try:
        with opened(expanded(path), _MOST_BYTES) as file:
            content = file.read()
    except SettingError as error:  # which begins with the path
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
    """A line as a message can show it: without control characters, and cut where it is long."""
    text = ",".join(fields)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
