"""patches.search=faiss needs a package that may be missing."""

import pytest

from feature_collisions.errors import SettingError
from feature_collisions.settings import patches
from feature_collisions.settings.patches import PatchSettings


def test_a_missing_faiss_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(patches, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"not installed; .*\[index\].*\[gpu\]"):
        PatchSettings(search="faiss").validate()
    PatchSettings().validate()
    monkeypatch.setattr(patches, "find_spec", lambda name: "there")
    PatchSettings(search="faiss").validate()
