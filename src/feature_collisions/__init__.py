"""Approximate feature collisions: pictures that differ and look the same to a network.

The names listed here are public; the modules below may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .errors import CollisionError, SettingError
    from .exact.exact_hull import exact_hull
    from .hull.hull import Hull
    from .networks.classifiers import load_network
    from .networks.example import Example, load_example
    from .runs.run import Run, load_run
    from .search.find_corners import find_corners
    from .settings.patches import PatchSettings
    from .settings.search import LogSettings, LossSettings, OptimizerSettings, StopSettings

__all__ = [
    "CollisionError",
    "Example",
    "Hull",
    "LogSettings",
    "LossSettings",
    "OptimizerSettings",
    "PatchSettings",
    "Run",
    "SettingError",
    "StopSettings",
    "exact_hull",
    "find_corners",
    "load_example",
    "load_network",
    "load_run",
]

_PLACES = {
    "errors": ("CollisionError", "SettingError"),
    "exact.exact_hull": ("exact_hull",),
    "hull.hull": ("Hull",),
    "networks.classifiers": ("load_network",),
    "networks.example": ("Example", "load_example"),
    "runs.run": ("Run", "load_run"),
    "search.find_corners": ("find_corners",),
    "settings.patches": ("PatchSettings",),
    "settings.search": ("LogSettings", "LossSettings", "OptimizerSettings", "StopSettings"),
}


def __getattr__(name: str) -> Any:
    """Import PyTorch and Lightning on first use, so `--help` and a typo answer at once."""
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, so completion offers them before their first use."""
    return sorted(__all__)
