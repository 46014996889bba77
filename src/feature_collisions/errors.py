"""The two errors that a user can fix, and what others' errors and names become in them."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class SettingError(ValueError):
    """A setting that cannot be used. Its message is `setting=value: rule; remedy`.

    Args:
        setting: name of the setting, argument or file.
        value: its value; None leaves it out of the message.
        rule: what is wrong with it.
        remedy: what to do.
    """

    def __init__(
        self, setting: object, value: object = None, rule: str = "", remedy: str = ""
    ) -> None:
        named = str(setting) if value is None else f"{setting}={value}"
        cause = "; ".join(filter(None, (rule, remedy)))
        super().__init__(": ".join(filter(None, (named, cause))))


class CollisionError(RuntimeError):
    """A search that could not continue; saved files are kept."""


def first_line(error: object) -> str:
    """First line of what an error of a library says, or its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def explained(setting: str, value: object, rule: str, remedy: str = "") -> Iterator[None]:
    """Turn any error of a library into a SettingError, which ends the rule with its reason."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:  # of the library, of a connection or a damaged file
        reason = f"{rule} ({type(error).__name__}: {first_line(error)})"
        raise SettingError(setting, value, reason, remedy) from None


def similar(name: str, known: Iterable[str]) -> str:
    """The known names that are most like an unknown one, for a remedy."""
    near = difflib.get_close_matches(name, known, 5, 0.5)
    return f"similar names are {', '.join(near) or 'none'}"
