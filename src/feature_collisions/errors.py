"""The two kinds of error that are the user's to mend."""


class SettingError(ValueError):
    """A setting that cannot be used: the message names it, its value, the rule and what to do."""


class CollisionError(RuntimeError):
    """A search that could not go on; what was saved before is kept."""
