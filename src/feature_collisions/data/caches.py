"""The user's cache folder: what is kept there saves time; where nothing can be, all works without.

It is `~/.cache/feature_collisions` on Linux; the variable XDG_CACHE_HOME moves it.
"""

import functools
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import platformdirs

from ..errors import SettingError

T = TypeVar("T")
Save = Callable[[Path, T], object]

_ADVICE = "set XDG_CACHE_HOME to a folder that can be written"


def cache_path(*parts: str) -> Path:
    """A place in the cache; it need not exist."""
    return platformdirs.user_cache_path("feature_collisions").joinpath(*parts)


@dataclass
class Cache:
    """Files of one kind, each under a key of all that its content depends on.

    Attributes:
        kind: the folder within the user's cache.
        version: of the content; raise it when the same key would give another.
        what: one of them, for warnings: "the trained classifier".
        folder: another folder than the user's cache.
    """

    kind: str
    version: int
    what: str
    folder: Path | None = None
    _full: bool = False

    def path(self, key: str) -> Path:
        """The file of `key`; it need not exist."""
        return (self.folder or cache_path(self.kind)) / f"{key}-{self.version}"

    def get_or_make(
        self, key: str, make: Callable[[], T], load: Callable[[Path], T], save: Save[T]
    ) -> T:
        """What is kept under `key`, or what `make` returns, which is kept.

        Args:
            key: names the file.
            make: the content, where there is no whole file.
            load: reads the file, and raises SettingError or OSError for a damaged one.
            save: writes it, and raises OSError where it cannot.
        """
        found = self.load(key, load)
        if found is None:
            found = make()
            self.save(key, found, save)
        return found

    def load(self, key: str, load: Callable[[Path], T]) -> T | None:
        """What is kept under `key`; None where nothing is, or with a warning a damaged file."""
        path = self.path(key)
        try:
            return load(path) if path.is_file() else None
        except (SettingError, OSError) as error:
            self.ignore(key, str(error))
            return None

    def ignore(self, key: str, reason: str) -> None:
        """Warn that what is kept under `key` is not used."""
        message = f"{self.path(key)}: ignored ({reason}); {self.what} is made anew"
        warnings.warn(message, stacklevel=4)

    def save(self, key: str, value: T, save: Save[T]) -> None:
        """Keep `value`; where that fails, one warning says so and work goes on."""
        if self._full:
            return
        try:
            save(self.path(key), value)
        except OSError as error:
            self._full = True
            reason = _reason(self.path(key), error)
            warnings.warn(
                f"{self.what} is not kept for the next time, {reason}; {_ADVICE}", stacklevel=3
            )


def writable_folder(what: str, folder: Path, whole: str) -> Path:
    """`folder` of the cache, made; where it cannot be written, one that lasts as long as we do.

    Where the file `whole` is in it, it need not be written to.

    Args:
        what: what goes there, for the warning: "the patch database".
        folder: where it belongs.
        whole: the name of the file that is made last.
    """
    try:
        if (folder / whole).is_file():
            return folder
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
