import errno
import functools
import json
import os
import threading
import warnings
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from feature_collisions.data.datasets import Images
from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.data.images import load_image
from feature_collisions.errors import SettingError
from feature_collisions.patches import build as patch_build
from feature_collisions.patches.database import (
    open_database,
    patch_images,
    scaled,
    shares,
    source,
)
from feature_collisions.settings.patches import PatchSettings
from feature_collisions.settings.train import DataSettings

SETTINGS = PatchSettings(fraction=0.5, size=32, reduction=2, search_stride=4, patch=7, stride=7)
SIDE = 28  # of the composite: a patch of 7 is a window of 4 among 16 pixels


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A folder of two classes with 5 and 4 images, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generator = np.random.default_rng(0)
    for name, count in (("cat", 5), ("dog", 4)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")

    return functools.partial(folder_in, tmp_path)


def folder_in(tmp_path):
    return ImageFolder(DataSettings("image_folder", str(tmp_path / "set"), SIDE))


def cached(tmp_path):
    return tmp_path / "cache" / "feature_collisions" / "patches"


def slow_images(database):
    """Each image of the database from its file, two by two pixels averaged, by hand."""
    for member in database.members.tolist():
        path = database.image_set.files[member][0]
        pixels = (load_image(path, (3, 32, 32)) * 255).double()
        yield (pixels[:, 0::2, 0::2] + pixels[:, 0::2, 1::2]
               + pixels[:, 1::2, 0::2] + pixels[:, 1::2, 1::2]) / 4  # fmt: skip


def test_images_are_the_files_halved_and_come_back_from_the_cache(make, monkeypatch):
    database = open_database(SETTINGS, make(), 0)
    assert database.images.shape == (4, 3, 16, 16)
    assert database.images.dtype == torch.uint8
    for image, slow in zip(database.images, slow_images(database), strict=True):
        assert (image.double() - slow).abs().max() <= 0.5 + 1e-4
    assert (database.window, database.stride, database.places, len(database)) == (4, 2, 7, 4 * 49)
    monkeypatch.setattr(patch_build, "reduced", None)  # a second build would call it
    again = open_database(SETTINGS, make(), 0)
    assert torch.equal(again.images, database.images)
    assert torch.equal(again.members, database.members)


def test_a_fraction_of_each_class_is_drawn_by_the_seed(make):
    labels = make().labels
    draws = [open_database(SETTINGS, make(), seed).members for seed in range(4)]
    for members in draws:
        assert labels[members].tolist() == [0, 0, 1, 1]
        assert members.unique().tolist() == members.tolist()
    assert len({tuple(members.tolist()) for members in draws}) > 1
    # 0.29 * 100 is 28.999999999999996 in binary, and still 29 images.
    digits = Images(torch.zeros(100, 1, 8, 8, dtype=torch.uint8), torch.zeros(100).long(), ("0",))
    settings = PatchSettings(None, 0.29, 8, 1, 1, 4, 1, 0)
    assert len(open_database(settings, digits, 0).members) == 29


def test_every_class_gives_an_image_and_else_its_share_rounded_down(make, tmp_path):
    """10 % of ImageNet's classes, of 732 to 1300 images, is what the authors' 128,066 sums up."""
    counts = list(range(1, 1301))
    assert shares(0.1, counts) == [max(1, count // 10) for count in counts]
    for fraction in ("0.29", "0.07", "0.001", "1"):
        exact = [int(Fraction(fraction) * count) for count in counts]
        assert shares(float(fraction), counts) == [max(1, count) for count in exact]
    for name in ("eel", "fox"):
        (tmp_path / "set" / name).mkdir()
        Image.new("RGB", (20, 20), "red").save(tmp_path / "set" / name / "0.png")
    for fraction, taken in ((0.5, [0, 0, 1, 1, 2, 3]), (0.1, [0, 1, 2, 3]), (1e-9, [0, 1, 2, 3])):
        database = open_database(replace(SETTINGS, fraction=fraction), make(), 0)
        assert database.image_set.labels[database.members].tolist() == taken


def test_a_source_is_the_file_at_the_composites_size(make):
    database = open_database(SETTINGS, make(), 0)
    path = database.image_set.files[int(database.members[2])][0]
    assert torch.equal(source(database, 2, SIDE), load_image(path, (3, SIDE, SIDE)))


def test_digits_in_memory_are_their_own_database(digits, make):
    settings = PatchSettings(None, 0.02, 28, 1, 3, 7, 1, 0)
    database = open_database(settings, digits.test, 0)
    assert database.images.shape == (20, 1, 28, 28)
    assert torch.equal(database.images, digits.test.pixels[database.members])
    assert torch.equal(source(database, 3, 28), digits.test[int(database.members[3])])
    with pytest.raises(SettingError, match=r"patches\.size=32: these images have only 28x28"):
        open_database(SETTINGS, digits.test, 0)


def test_a_change_of_files_or_settings_is_another_database(make, tmp_path):
    first = open_database(SETTINGS, make(), 0)
    path = first.image_set.files[int(first.members[0])][0]
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(path)
    changed = open_database(SETTINGS, make(), 0)
    assert changed.images[0].max() == 0
    assert first.images[0].max() > 0
    cropped = ImageFolder(DataSettings("image_folder", str(tmp_path / "set"), SIDE, "crop"))
    smaller = replace(SETTINGS, size=64, reduction=4)
    folders = {first.folder, changed.folder, open_database(SETTINGS, cropped, 0).folder}
    assert len(folders | {open_database(smaller, make(), 0).folder}) == 4
    os.utime(path, (1, 1))
    assert open_database(SETTINGS, make(), 0).folder not in folders


def test_a_stopped_build_is_continued(make, tmp_path, monkeypatch):
    """Stopped after each image in turn; the first of all is broken, the file ends in mid-image."""
    whole = open_database(SETTINGS, make(), 0)
    broken = whole.image_set.files[int(whole.members[1])][0]
    broken.write_bytes(broken.read_bytes()[:100])
    state = broken.stat()
    with pytest.warns(UserWarning, match="1 of 4 images"):
        expected = open_database(SETTINGS, make(), 0)
    monkeypatch.setattr(patch_build, "_BATCH", 1)
    read = ImageFolder.at_side
    for stop in range(4):
        left, seen = [stop], []

        def some(self, index, side, left=left, seen=seen):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            seen.append(index)
            return read(self, index, side)

        (expected.folder / "images.u8").unlink(missing_ok=True)
        os.utime(broken, ns=(state.st_atime_ns, state.st_mtime_ns))
        monkeypatch.setattr(ImageFolder, "at_side", some)
        with pytest.raises(KeyboardInterrupt):
            open_database(SETTINGS, make(), 0)
        with (expected.folder / "images.part").open("ab") as file:
            file.write(b"half an image")
        left[0] = -1
        with pytest.warns(UserWarning, match="1 of 4 images"):
            again = open_database(SETTINGS, make(), 0)
        assert again.folder == expected.folder
        assert torch.equal(again.images, expected.images)
        assert torch.equal(again.members, expected.members)
        # Nothing is read twice, but a broken image that nothing followed.
        assert seen in ([*whole.members.tolist()], [*whole.members[:2], *whole.members[1:]])
    monkeypatch.setattr(ImageFolder, "at_side", read)


def test_broken_images_are_left_out_and_listed(make, tmp_path):
    whole = open_database(SETTINGS, make(), 0)
    files = [whole.image_set.files[int(member)][0] for member in whole.members]
    files[1].write_bytes(b"no image")
    with pytest.warns(
        UserWarning, match=r"1 of 4 images for patches.*broken\.txt lists them.*not an image"
    ):
        database = open_database(SETTINGS, make(), 0)
    assert database.members.tolist() == whole.members[[0, 2, 3]].tolist()
    assert torch.equal(database.images, whole.images[[0, 2, 3]])
    assert str(files[1]) in (database.folder / "broken.txt").read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once, not at every run
        open_database(SETTINGS, make(), 0)
    for file in files:
        file.write_bytes(b"no image")
    with pytest.raises(SettingError, match=r"none of the chosen images can be read; .*image of"):
        open_database(SETTINGS, make(), 0)


@pytest.mark.parametrize("damage", ["cut", "other", "no json", "half json"])
def test_a_damaged_database_is_built_again(make, damage):
    whole = open_database(SETTINGS, make(), 0)
    expected = whole.images.clone()
    path, entry = whole.folder / "images.u8", whole.folder / "database.json"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "other":
        content = json.loads(entry.read_text())
        content["key"]["content"] = "other images"
        entry.write_text(json.dumps(content))
    elif damage == "no json":
        entry.unlink()
    else:
        entry.write_text(entry.read_text()[:20])
    with pytest.warns(UserWarning, match=r"images\.u8: is incomplete, or does not match"):
        again = open_database(SETTINGS, make(), 0)
    assert torch.equal(again.images, expected)


def test_two_that_ask_at_once_build_it_once(make, monkeypatch, capsys):
    read, seen = ImageFolder.at_side, []
    monkeypatch.setattr(
        ImageFolder, "at_side", lambda self, i, side: (seen.append(i), read(self, i, side))[1]
    )
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_database(SETTINGS, make(), 0)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert all(torch.equal(database.images, found[0].images) for database in found)
    assert len(found) == 3


def test_a_full_disk_ends_with_one_message_and_nothing_half_used(make, monkeypatch):
    read, calls = patch_build.reduced, []

    def full(image, reduction):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return read(image, reduction)

    monkeypatch.setattr(patch_build, "_BATCH", 1)
    monkeypatch.setattr(patch_build, "reduced", full)
    with pytest.raises(SettingError, match=r"images\.part: the disk is full after 2 of 4 images"):
        open_database(SETTINGS, make(), 0)
    database = open_database(SETTINGS, make(), 0)
    assert len(calls) == 5  # two are kept
    for image, slow in zip(database.images, slow_images(database), strict=True):
        assert (image.double() - slow).abs().max() <= 0.5 + 1e-4


def test_a_disk_too_small_is_noticed_before_the_build(make, monkeypatch):
    monkeypatch.setattr(patch_build.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SettingError, match=r"takes 0\.00 GB more, 0\.00 GB are free; make room"):
        open_database(SETTINGS, make(), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 35}, r"patches\.patch=35: is larger than the images, 28x28; lower it"),
        ({"patch": 6}, r"patches\.patch=6: 6 of the images' 28 pixels are 6\.85714 of patches\.si"),
        ({"search_stride": 5}, r"patches\.search_stride=5: must be a multiple of patches\.reduct"),
        ({"size": 33}, r"patches\.size=33: must be a multiple of patches\.reduction=2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make, change, message):
    with pytest.raises(SettingError, match=message):
        open_database(replace(SETTINGS, **change), make(), 0)


def test_scaled_gives_the_papers_geometry():
    paper = PatchSettings()
    assert scaled("patch", 56, paper, 224) == 32
    assert scaled("stride", 7, paper, 224) == 4


def test_patches_may_come_from_another_folder(make, tmp_path, digits):
    own, data = make(), DataSettings("image_folder", str(tmp_path / "set"), SIDE)
    assert patch_images(SETTINGS, data, own) is own
    other = replace(SETTINGS, root=str(tmp_path / "other"))
    with pytest.raises(SettingError, match=r"patches\.root=.*other: there is no such folder"):
        patch_images(other, data, own)
    (tmp_path / "set").rename(tmp_path / "other")
    assert patch_images(other, data, own).size == (3, SIDE, SIDE)
    with pytest.raises(SettingError, match=r"images are in colour, the run's are grey"):
        patch_images(other, DataSettings("digits"), digits.test)
