"""The two kinds of error that a user can fix."""


class SettingError(ValueError):
    """A setting that cannot be used. Its message is `setting=value: rule; remedy`.

    Args:
        setting: its name on the command line, an argument's, or a file.
        value: what it is; None leaves it out of the message.
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
    """A search that could not go on; what was saved before is kept."""
