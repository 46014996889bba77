"""Approximate feature collisions: which pictures can a classifier not tell from this one?"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hull import Hull
    from .search import find_corners

__all__ = ["Hull", "find_corners"]


def __getattr__(name: str) -> Any:
    """Import PyTorch and Lightning on first use, so that `--help` and a typo answer at once."""
    if name == "find_corners":
        from .search import find_corners

        return find_corners
    if name == "Hull":
        from .hull import Hull

        return Hull
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
