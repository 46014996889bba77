from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feature_collisions import patch_index, patch_search
from feature_collisions.data import Images
from feature_collisions.errors import SettingError
from feature_collisions.patch_database import open_database
from feature_collisions.patch_search import (
    Matches,
    query_patches,
    reduced_seed,
    same_images,
    search_patches,
)
from feature_collisions.patch_settings import PatchSettings
from feature_collisions.patch_windows import (
    ROUNDING,
    Descriptions,
    basis_of,
    squared_distances,
    windows_at,
)

SETTINGS = PatchSettings(None, 1.0, 28, 1, 3, 7, 7, 0)


def images_of(pixels):
    count = len(pixels)
    return Images(pixels, torch.arange(count) % 2, ("even", "odd"))


@pytest.fixture
def database(tmp_path, monkeypatch):
    """40 smooth pictures in colour, so that near windows exist; the last equals the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 6, 6, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, 28, mode="bilinear")
    pixels = (pixels * 255).round().to(torch.uint8)
    pixels[-1] = pixels[0]
    return open_database(SETTINGS, images_of(pixels), 0)


def slow_search(database, queries, neighbours, left_out=()):
    """Section 4's nearest neighbours, window by window and without any bound."""
    images = database.images.float() / 255
    side, window, stride = images.shape[-1], database.window, database.stride
    windows, places = [], []
    for number, image in enumerate(images):
        for row in range(0, side - window + 1, stride):
            for column in range(0, side - window + 1, stride):
                if number not in left_out:
                    windows.append(image[:, row : row + window, column : column + window])
                    places.append((number, row, column))
    windows = torch.stack(windows).double()
    answers = []
    for query in queries:
        distances = (windows - query.double()).square().sum((1, 2, 3)).sqrt().tolist()
        nearest = {}
        for distance, place in sorted(zip(distances, places, strict=True)):
            nearest.setdefault(place[0], (distance, *place))  # of equal ones the first
        answers.append(list(nearest.values())[:neighbours])
    return answers


def assert_same(matches, slow):
    distance = torch.tensor([[entry[0] for entry in row] for row in slow])
    assert matches.distance.dtype == torch.float32
    torch.testing.assert_close(matches.distance, distance, rtol=1e-5, atol=1e-6)
    for name, position in (("image", 1), ("row", 2), ("column", 3)):
        expected = torch.tensor([[entry[position] for entry in row] for row in slow])
        assert torch.equal(getattr(matches, name), expected), name


@pytest.mark.parametrize("neighbours", [1, 3])
def test_exact_search_is_the_slow_one(database, neighbours):
    seed = database.image_set[int(database.members[7])]
    queries = query_patches(seed, replace(SETTINGS, stride=3))
    assert queries.shape == (64, 3, 7, 7)
    noise = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    black_and_white = torch.stack([torch.zeros(3, 7, 7), torch.ones(3, 7, 7)])
    queries = torch.cat([queries, noise, black_and_white])
    settings = replace(SETTINGS, neighbours=neighbours)
    found = search_patches(database, queries, settings, seed, progress=False)
    assert isinstance(found, Matches)
    assert_same(found, slow_search(database, queries, neighbours, left_out=(7,)))


def test_without_a_seed_windows_of_the_database_find_themselves(database):
    numbers = torch.arange(0, len(database), 97)
    queries = windows_at(database, numbers).float() / 255
    found = search_patches(database, queries, SETTINGS, progress=False)
    assert (found.distance == 0).all()
    assert_same(found, slow_search(database, queries, 1))


def test_of_equal_windows_the_first_counts(tmp_path, monkeypatch):
    """Blank pictures but for one dot: nearly all windows tie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pixels = torch.zeros(80, 1, 28, 28, dtype=torch.uint8)
    pixels[:, :, :9, :9] = torch.arange(80, dtype=torch.uint8).view(-1, 1, 1, 1) + 1
    database = open_database(SETTINGS, images_of(pixels), 0)
    queries = torch.zeros(2, 1, 7, 7)
    queries[1] = 40.5 / 255
    found = search_patches(database, queries, replace(SETTINGS, neighbours=2), progress=False)
    assert_same(found, slow_search(database, queries, 2))
    assert found.image.tolist()[0] == [0, 1]
    assert (found.row[0, 0], found.column[0, 0]) == (0, 9)


def test_digits_find_digits(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    database = open_database(replace(SETTINGS, fraction=0.05), digits.test, 0)
    seed = digits.test[int(database.members[4])]
    queries = query_patches(seed, SETTINGS)
    found = search_patches(database, queries, SETTINGS, seed, progress=False)
    assert_same(found, slow_search(database, queries, 1, left_out=(4,)))


def test_the_bound_is_never_above_the_distance(database):
    """Also for black and white images, whose |x|^2 is largest, and in coordinates of others."""
    images = torch.cat([database.images[:6], torch.zeros_like(database.images[:1])])
    images = torch.cat([images, torch.full_like(images[:1], 255)])
    queries = windows_at(database, torch.arange(300, 340)).float() / 255
    for basis in (basis_of(queries, 5), basis_of(queries, 40)):
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-6)
        descriptions = Descriptions(basis, 7, 3)
        few, query_squares = descriptions.of_windows(queries)
        many, squares = descriptions.of_images(images)
        bounds = query_squares[:, None] + squares - 2 * few @ many.T
        windows = images.unfold(2, 7, 3).unfold(3, 7, 3).permute(0, 2, 3, 1, 4, 5)
        windows = windows.flatten(3).flatten(0, 2).double() / 255
        exact = torch.cdist(queries.flatten(1).double(), windows).square()
        slack = 4 * ROUNDING * (squares + query_squares[:, None])
        assert (bounds <= exact + slack).all()
        # In the queries' own coordinates it is also near: that is what makes it worth while.
        if basis.shape[1] > 5:
            assert (bounds >= exact - 0.05 * (squares + query_squares[:, None])).all()


def test_float32_errs_far_less_than_the_bound_allows():
    """At the paper's size, on images of one grey, where sums of rounding errors are largest."""
    levels = torch.arange(0, 256, 15, dtype=torch.uint8).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (8, 3, 128, 128), generator=generator, dtype=torch.uint8)
    images = torch.cat([levels.expand(-1, 3, 128, 128), noise])
    queries = images.unfold(2, 32, 48).unfold(3, 32, 48).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    basis = basis_of(queries.float() / 255, 64)
    few, squares = Descriptions(basis, 32, 48).of_images(images)
    exact = queries.double().flatten(1) / 255 - 0.5
    inside = exact @ basis.double()
    whole = exact.square().sum(1)
    assert ((squares - whole).abs() <= ROUNDING * whole / 2).all()
    rest = (whole - inside.square().sum(1)).clamp_min(0)
    grown = few[:, -1].double().square() - ROUNDING * squares
    assert ((grown - rest).abs() <= ROUNDING * whole).all()


def test_the_measured_distance_is_the_distance(database):
    queries = torch.rand(3, 3, 7, 7, generator=torch.Generator().manual_seed(2))
    query, patches = torch.tensor([2, 0, 0, 1]), torch.tensor([5, 700, 5, 64])
    found = squared_distances(database, queries, query, patches)
    for pair, number in enumerate(patches.tolist()):
        image, place = divmod(number, 64)
        row, column = 3 * (place // 8), 3 * (place % 8)
        window = database.images[image, :, row : row + 7, column : column + 7] / 255
        slow = (window - queries[query[pair]]).double().square().sum()
        assert float(found[pair]) == pytest.approx(float(slow), rel=1e-5)


def test_queries_are_the_seed_at_the_databases_size():
    paper = PatchSettings()
    seed = torch.zeros(3, 224, 224)
    seed[:, 56:112, 63:119] = 1  # the patch at row 8, column 9 of 25
    queries = query_patches(seed, paper)
    assert queries.shape == (625, 3, 32, 32)
    assert queries[8 * 25 + 9].mean() > 0.98
    assert queries[8 * 25 + 9].mean() == queries.mean((1, 2, 3)).max()
    assert queries[0].max() == 0
    with pytest.raises(SettingError, match=r"patches\.stride=5: 5 of the images' 224 pixels are"):
        query_patches(seed, replace(paper, stride=5))


def test_the_seeds_own_picture_is_left_out_however_it_was_reduced(database):
    assert same_images(database.images, None).sum() == 0
    first = database.images[0].float() / 255
    assert same_images(database.images, first).nonzero().flatten().tolist() == [0, 39]
    blurred = torch.nn.functional.interpolate(first[None], 26, mode="bilinear", antialias=True)
    again = torch.nn.functional.interpolate(blurred, 28, mode="bilinear")[0]
    assert same_images(database.images, again).nonzero().flatten().tolist() == [0, 39]


def test_the_samples_own_images_are_told_from_all_others(tmp_path, monkeypatch):
    from conftest import SHARED

    from feature_collisions.config import DataSettings
    from feature_collisions.image_folder import ImageFolder

    root = SHARED / "data" / "imagenet-sample"
    if not root.exists():
        pytest.skip("the ImageNet sample is not beside the checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = ImageFolder(DataSettings("image_folder", str(root)))
    folder.files, folder.labels = folder.files[::30], folder.labels[::30]
    database = open_database(PatchSettings(fraction=1.0), folder, 0)
    for number in range(0, len(database.images), 3):
        seed = reduced_seed(folder[int(database.members[number])], PatchSettings())
        assert same_images(database.images, seed).nonzero().flatten().tolist() == [number]


def test_bad_requests_are_refused(database):
    with pytest.raises(SettingError, match=r"queries: must be \(Q, 3, 7, 7\).*are \(1, 3, 8, 8\)"):
        search_patches(database, torch.zeros(1, 3, 8, 8), SETTINGS)
    many = replace(SETTINGS, neighbours=39)
    seed = database.images[0].float() / 255
    with pytest.raises(SettingError, match=r"patches\.neighbours=39: the database has 38 images"):
        search_patches(database, torch.zeros(1, 3, 7, 7), many, seed)


FAISS = replace(SETTINGS, search="faiss")


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
    (basis,) = database.folder.glob("*.safetensors")
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
    with pytest.warns(UserWarning, match=r"window7-stride3\.faiss: the index of patches is cut"):
        again = patch_index.open_index(database, progress=False)
    assert again.index.ntotal == len(database)


def test_an_index_is_whole_or_absent(database, monkeypatch):
    def full(index, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("Error in write_index: No space left on device")

    monkeypatch.setattr(patch_index.faiss, "write_index", full)
    with pytest.raises(SettingError, match=r"\.faiss: the index cannot be written \(.*No space"):
        patch_index.open_index(database, progress=False)
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
