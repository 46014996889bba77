"""The user's cache folder. Everything works without it, only slower.

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

_ADVICE = "set XDG_CACHE_HOME to a writable folder"


def cache_path(*parts: str) -> Path:
    """Path in the cache; it need not exist."""
    return platformdirs.user_cache_path("feature_collisions").joinpath(*parts)


@dataclass
class Cache:
    """Files of one kind. The key of a file names everything its content depends on.

    Attributes:
        kind: name of the folder within the cache.
        version: raise it when the same key gives different content.
        what: a name of the content for warnings, such as "the trained classifier".
        folder: used in place of the user's cache.
    """

    kind: str
    version: int
    what: str
    folder: Path | None = None
    _full: bool = False

    def path(self, key: str) -> Path:
        """Path of the file of `key`; it need not exist."""
        return (self.folder or cache_path(self.kind)) / f"{key}-{self.version}"

    def get_or_make(
        self, key: str, make: Callable[[], T], load: Callable[[Path], T], save: Save[T]
    ) -> T:
        """Load the content of `key`, or make and save it.

        Args:
            key: names the file.
            make: returns the content; called if the file is missing or damaged.
            load: reads the file; raises SettingError or OSError if it is damaged.
            save: writes the file; raises OSError on failure.
        """
        found = self.load(key, load)
        if found is None:
            found = make()
            self.save(key, found, save)
        return found

    def load(self, key: str, load: Callable[[Path], T]) -> T | None:
        """Load the content of `key`; None if it is missing, or damaged (with a warning)."""
        path = self.path(key)
        try:
            return load(path) if path.is_file() else None
        except (SettingError, OSError) as error:
            self.ignore(key, str(error))
            return None

    def ignore(self, key: str, reason: str) -> None:
        """Warn that the file of `key` is not used."""
        message = f"{self.path(key)}: ignored ({reason}); {self.what} is made again"
        warnings.warn(message, stacklevel=4)

    def save(self, key: str, value: T, save: Save[T]) -> None:
        """Save `value`; a failure gives one warning."""
        if self._full:
            return
        try:
            save(self.path(key), value)
        except OSError as error:
            self._full = True
            reason = _reason(self.path(key), error)
            warnings.warn(f"{self.what} is not cached, {reason}; {_ADVICE}", stacklevel=3)


def writable_folder(what: str, folder: Path, whole: str) -> Path:
    """Create `folder`; if it is not writable, return a folder removed at exit instead.

    A folder that contains the file `whole` is complete and need not be writable.

    Args:
        what: name of the content for the warning, such as "the patch database".
        folder: the preferred folder.
        whole: name of the file that is written last.
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
            f"{what} is made in {place.parent} and not cached, {_reason(folder, error)}; {_ADVICE}",
            stacklevel=3,
        )
        return place
    return folder


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="feature_collisions-")  # removed with the process


def _reason(path: Path, error: OSError) -> str:
    return f"for {path} cannot be written ({error.strerror or error})"
