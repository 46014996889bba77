"""A cache that cannot be written is done without: a warning, and the same result."""

import errno
import stat
import warnings
from pathlib import Path

import pytest
import torch

from feature_collisions.data.caches import Cache, cache_path, writable_folder
from feature_collisions.data.datasets import DataSplit, Images
from feature_collisions.networks import mnist_mlp
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.patches import build as patch_build
from feature_collisions.patches import composite_kernel
from feature_collisions.patches import index as patch_index
from feature_collisions.patches.database import open_database
from feature_collisions.patches.paste import find_neighbours
from feature_collisions.settings.train import ClassifierSettings
from helpers.patches import FAISS, SETTINGS, images_of

MLP = ClassifierSettings("mnist_mlp", None, "hidden1")


@pytest.fixture
def few(monkeypatch):
    """Digits to train on, for ten steps."""
    train = mnist_mlp.train_mnist_classifier
    monkeypatch.setattr(
        mnist_mlp, "train_mnist_classifier", lambda train_on, seed: train(train_on, seed, 10)
    )
    pixels = torch.randint(0, 256, (64, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = Images(pixels.to(torch.uint8), torch.arange(64) % 10, tuple("0123456789"))
    return DataSplit(images, images)


def a_file(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")


def a_link_to_nowhere(tmp_path, monkeypatch):
    (tmp_path / "cache").symlink_to("/proc/none")


def read_only(tmp_path, monkeypatch):
    """As on a file system that is mounted so; root's tests ignore permissions."""
    (tmp_path / "cache").mkdir()
    real = Path.mkdir

    def mkdir(path, *arguments, **options):
        if path.is_relative_to(tmp_path / "cache") and not path.exists():
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)


@pytest.fixture(params=[a_file, a_link_to_nowhere, read_only], ids=lambda value: value.__name__)
def no_cache(request, tmp_path, monkeypatch):
    """The cache's folder cannot be made."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    request.param(tmp_path, monkeypatch)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_a_classifier_that_cannot_be_kept_is_used_all_the_same(few, no_cache, tmp_path):
    message = (
        r"the trained classifier is not cached, for .*cannot be written \(.+\); "
        "set XDG_CACHE_HOME to a writable folder"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        model = load_classifier(MLP, few, 0)
    assert len(caught) == 1
    assert torch.equal(weights(model), weights(mnist_mlp.train_mnist_classifier(few.train, 0)))


def test_a_kept_classifier_is_the_one_that_was_trained(few, empty_cache, monkeypatch):
    trained = load_classifier(MLP, few, 0)
    monkeypatch.setattr(mnist_mlp, "train_mnist_classifier", None)
    assert torch.equal(weights(load_classifier(MLP, few, 0)), weights(trained))


def test_a_damaged_classifier_is_trained_again(few, empty_cache):
    trained = load_classifier(MLP, few, 0)
    (path,) = cache_path("classifiers").iterdir()
    for damage in (b"", path.read_bytes()[:1000], b"\xff" * 100):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="ignored .*; the trained classifier is made again"):
            again = load_classifier(MLP, few, 0)
        assert torch.equal(weights(again), weights(trained))
        assert path.stat().st_size > 1000


def patches():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 28, 28), generator=generator).to(torch.uint8)
    return images_of(pixels)


@pytest.mark.parametrize("settings", [SETTINGS, FAISS], ids=["exact", "faiss"])
def test_patches_without_a_cache_are_those_with_one(settings, no_cache, tmp_path, monkeypatch):
    images = patches()
    with pytest.warns(
        UserWarning, match="the patch database is made in .* and not cached, for "
    ) as c:
        database, found = find_neighbours(images[3], images, settings, 0)
    assert len(c) == 1
    assert stat.S_IMODE(database.folder.parent.stat().st_mode) == 0o700  # nobody else's to plant in
    with warnings.catch_warnings():  # a second pair of the same process builds nothing
        warnings.simplefilter("ignore")
        monkeypatch.setattr(patch_build, "_build", None)
        again, _ = find_neighbours(images[3], images, settings, 0)
    assert again.folder == database.folder
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    expected, kept = find_neighbours(images[3], images, settings, 0)
    assert torch.equal(database.images, expected.images)
    for one, other in zip(found, kept, strict=True):
        assert torch.equal(one, other)


def test_a_database_that_may_only_be_read_is_read(empty_cache, monkeypatch):
    """A cache that came with a container, or another user's."""
    images = patches()
    expected = open_database(SETTINGS, images, 0)

    class Denied:
        def __init__(self, path):
            self.path = path

        def acquire(self, timeout=-1):
            raise PermissionError(errno.EACCES, "Permission denied", str(self.path))

    monkeypatch.setattr(patch_build, "FileLock", Denied)
    monkeypatch.setattr(patch_build, "_build", None)
    monkeypatch.setattr(patch_index, "save_tensors", lambda *_: Denied("here").acquire())
    found = open_database(SETTINGS, images, 0)
    assert torch.equal(found.images, expected.images)
    with pytest.warns(UserWarning, match=r"the index of patches is not cached.*Permission denied"):
        index = patch_index.open_index(found, progress=False)
    assert index.index.ntotal == len(found)


def test_the_kernel_is_compiled_without_a_cache(no_cache):
    with pytest.warns(UserWarning, match="the composite's kernel is not cached"):
        library = composite_kernel._library.__wrapped__()
    assert library.blend


def test_what_is_kept_or_not_is_said_with_the_reason(empty_cache, tmp_path):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    message = r"it is not cached, for .*/x-1 cannot be written \(No space left"
    cache = Cache("kind", 1, "it", tmp_path)
    with pytest.warns(UserWarning, match=message) as caught:
        made = [cache.get_or_make("x", lambda: 3, Path.stat, full) for _ in range(2)]
    assert made == [3, 3]
    assert len(caught) == 1
    assert writable_folder("it", tmp_path / "a" / "b", "whole") == tmp_path / "a" / "b"
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_job_without_a_cache_ends_well(few, command, tmp_path, monkeypatch):
    a_file(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    quick = (
        "wandb.mode=disabled",
        "classifier.train=true",
        "corner=0",
        "stop.max_steps=5",
        "stop.min_steps=0",
    )
    with pytest.warns(UserWarning, match="the trained classifier is not cached"):
        assert command("train.py", *quick, "classifier.train=true", "hydra.run.dir=run") is None
    assert (tmp_path / "run" / "collision.safetensors").exists()
