"""The composite's kernel, whatever has become of the cache it is kept in."""

from pathlib import Path

import pytest

from feature_collisions.patches import composite_kernel

make = composite_kernel._library.__wrapped__


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "feature_collisions" / "kernels"


def test_a_cache_that_cannot_be_written_is_done_without(kernels: Path) -> None:
    kernels.parent.mkdir()
    kernels.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="kernel is not cached"):
        assert make() is not None
    assert kernels.read_text() == "a file where the folder should be"


def test_a_damaged_kernel_is_compiled_again(
    kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another cache, for a process loads the file of one name once."""
    assert make() is not None
    (path,) = kernels.iterdir()
    damaged = tmp_path / "other" / "feature_collisions" / "kernels" / path.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(path.read_bytes()[:100])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with pytest.warns(UserWarning, match="ignored .*the composite's kernel is made again"):
        assert make() is not None
    assert damaged.stat().st_size == path.stat().st_size


def test_a_kernel_that_is_there_is_not_compiled_again(
    kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make() is not None
    monkeypatch.setattr(composite_kernel, "_compile", None)
    assert make() is not None
