"""The user's cache folder: what is kept there saves time; where nothing can be, all works without.

It is `~/.cache/feature_collisions` on Linux; the variable XDG_CACHE_HOME moves it.
"""

import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs

_ADVICE = "set XDG_CACHE_HOME to a folder that can be written"


def cache_path(*parts: str) -> Path:
    """A place in the cache; it need not exist."""
    return platformdirs.user_cache_path("feature_collisions").joinpath(*parts)


def is_kept(path: Path) -> bool:
    """Whether a file is in the cache and may be looked at."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def keep(what: str, path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` on a path of the cache; where it fails, one warning says so and work goes on.

    Args:
        what: what is lost, for the warning: "the trained classifier".
        path: where it belongs.
        write: writes it there, and raises OSError where it cannot.
    """
    try:
        write(path)
    except OSError as error:
        warnings.warn(
            f"{what} is not kept for the next time, {_reason(path, error)}; {_ADVICE}",
            stacklevel=3,
        )


def writable_folder(what: str, folder: Path) -> Path:
    """`folder` of the cache, made; where it cannot be written, one that lasts as long as we do.

    Args:
        what: what goes there, for the warning: "the patch database".
        folder: where it belongs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        place = Path(_temporary().name) / folder.name
        place.mkdir(exist_ok=True)
        warnings.warn(
            f"{what} is made in {place.parent} and not kept, {_reason(folder, error)}; {_ADVICE}",
            stacklevel=3,
        )
        return place
    return folder


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="feature_collisions-")  # removed with the process


def _reason(path: Path, error: OSError) -> str:
    return f"for {path} cannot be written ({error.strerror or error})"
