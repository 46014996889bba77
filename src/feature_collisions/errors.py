"""The two errors that a user can fix."""


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
