"""patches.search=faiss needs a package that may be missing, or there twice."""

import importlib.metadata

import pytest

from feature_collisions.errors import SettingError
from feature_collisions.settings import patches
from feature_collisions.settings.patches import PatchSettings


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these packages are installed, and no others."""

    def pretend(*packages):
        def version(package):
            if package in packages:
                return "1.15"
            raise importlib.metadata.PackageNotFoundError(package)

        monkeypatch.setattr(patches, "version", version)
        monkeypatch.setattr(patches, "find_spec", lambda name: packages or None)

    return pretend


@pytest.mark.parametrize("packages", [("faiss-cpu",), ("faiss-gpu",), ("faiss",)])
def test_one_faiss_is_enough(installed, packages):
    installed(*packages)
    PatchSettings(search="faiss").check()


def test_a_missing_faiss_is_named_with_what_to_install(installed):
    installed()
    with pytest.raises(SettingError, match=r"not installed; .*\[index\].*\[gpu\].*not both"):
        PatchSettings(search="faiss").check()
    PatchSettings().check()


def test_two_of_them_are_refused(installed):
    installed("faiss-cpu", "faiss-gpu")
    with pytest.raises(SettingError, match="pip uninstall -y faiss-cpu faiss-gpu"):
        PatchSettings(search="faiss").check()
