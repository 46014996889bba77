"""The compressed index: what it finds, and that it is whole or built again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feature_collisions.patches import index as patch_index
from feature_collisions.patches import nearest_patches as patch_search
from feature_collisions.patches.database import open_database
from feature_collisions.patches.nearest_patches import (
    query_patches,
    search_patches,
)
from feature_collisions.patches.patch_windows import (
    windows_at,
)
from helpers.patches import FAISS, SETTINGS, assert_same, slow_search


@pytest.mark.parametrize("neighbours", [1, 2])
def test_the_index_finds_what_exact_search_finds(database, neighbours):
    """49 places an image: the seed's own windows crowd the candidates, and must not count."""
    seed = database.image_set[int(database.members[0])]  # of which the last is a copy
    queries = query_patches(seed, replace(SETTINGS, stride=3))
    exact = search_patches(
        database, queries, replace(SETTINGS, neighbours=neighbours), seed, progress=False
    )
    found = search_patches(
        database, queries, replace(FAISS, neighbours=neighbours), seed, progress=False
    )
    assert not torch.isin(found.image, torch.tensor([0, 39])).any()
    assert all(len(set(row)) == neighbours for row in found.image.tolist())
    same = (found.image == exact.image) & (found.row == exact.row)
    assert (same & (found.column == exact.column)).float().mean() > 0.99
    assert torch.equal(found.distance[same], exact.distance[same])


def test_queries_the_index_gives_too_little_for_are_searched_exactly(database, monkeypatch):
    """One candidate, and three neighbours wanted."""
    monkeypatch.setattr(patch_search, "_CANDIDATES", 1)
    settings = replace(FAISS, neighbours=3)
    queries = windows_at(database, torch.tensor([70, 1500])).float() / 255
    candidates = patch_index.PatchIndex.candidates
    monkeypatch.setattr(
        patch_index.PatchIndex,
        "candidates",
        lambda self, queries, count: candidates(self, queries, count)[:, [0, 0, 0]],
    )
    found = search_patches(database, queries, settings, progress=False)
    assert_same(found, slow_search(database, queries, 3))


def test_the_index_is_read_again_and_each_stride_has_its_own(database, monkeypatch):
    first = patch_index.open_index(database, progress=False)
    other = open_database(replace(SETTINGS, search_stride=7), database.image_set, 0)
    assert other.folder == database.folder
    assert patch_index.open_index(other, progress=False).index.ntotal == len(other)
    monkeypatch.setattr(patch_index, "basis_of", None)  # a second build would call it
    again = patch_index.open_index(database, progress=False)
    assert again.index.ntotal == first.index.ntotal == len(database) == 40 * 64
    assert torch.equal(again.descriptions.basis, first.descriptions.basis)


@pytest.mark.parametrize("damage", ["cut", "gone", "basis", "other"])
def test_a_damaged_index_is_built_again(database, damage):
    patch_index.open_index(database, progress=False)
    (index,) = database.folder.glob("*.faiss")
    (basis,) = set(database.folder.glob("index-*")) - {index}
    if damage == "cut":
        index.write_bytes(index.read_bytes()[:-100])
    elif damage == "gone":
        index.unlink()
    elif damage == "basis":
        basis.write_bytes(basis.read_bytes()[:-100])
    else:  # an index of fewer windows under this one's name
        few = open_database(replace(SETTINGS, search_stride=7), database.image_set, 0)
        patch_index.open_index(few, progress=False)
        (other,) = set(database.folder.glob("*.faiss")) - {index}
        index.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match=r"window7-stride3-1: ignored .*cut off"):
        again = patch_index.open_index(database, progress=False)
    assert again.index.ntotal == len(database)


def test_an_index_is_whole_or_absent(database, monkeypatch):
    def full(index, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("Error in write_index: No space left on device")

    monkeypatch.setattr(patch_index.faiss, "write_index", full)
    with pytest.warns(UserWarning, match=r"the index of patches is not cached.*No space left"):
        index = patch_index.open_index(database, progress=False)
    assert index.index.ntotal == len(database)
    assert not list(database.folder.glob("*index*"))


def test_with_a_gpu_the_index_is_built_and_searched_there(database, monkeypatch):
    """There is no GPU here: a stand-in counts what is handed over and back."""

    class OnGpu:
        def __init__(self, index):
            self.index = index

        def __getattr__(self, name):
            return getattr(self.index, name)

    moves = []
    fake = {
        "StandardGpuResources": lambda: None,
        "get_num_gpus": lambda: 1,
        "index_cpu_to_gpu": lambda _, device, index: (moves.append(device), OnGpu(index))[1],
        "index_gpu_to_cpu": lambda index: (moves.append("back"), index.index)[1],
    }
    for name, function in fake.items():
        monkeypatch.setattr(patch_index.faiss, name, function, raising=False)
    index = patch_index.open_index(database, progress=False)
    assert moves == [0, "back", 0]
    assert isinstance(index.index, OnGpu)
    windows = windows_at(database, torch.tensor([70, 1500])).float() / 255
    assert index.candidates(windows, 1).flatten().tolist() == [70, 1500]
