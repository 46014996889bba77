import hashlib
import pickle

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from feature_collisions.data.datasets import load_data
from feature_collisions.data.images import save_png
from feature_collisions.errors import SettingError
from feature_collisions.settings.train import DataSettings

CLASSES = ["airplane", "automobile", "bird"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A set of three classes in CIFAR-10's layout, whose checksums torchvision is told."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    generator = np.random.default_rng(0)

    def batch(name):
        data = generator.integers(0, 256, (6, 3072), dtype=np.uint8)
        return [name, write(name, {"data": data, "labels": [0, 1, 2, 2, 1, 0]})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1"), batch("data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    md5 = write("batches.meta", {"label_names": CLASSES})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path


def test_cifar_is_read_as_torchvision_lays_it_out(root):
    data = load_data(DataSettings("cifar10", str(root)))
    assert (len(data.train), len(data.test)) == (12, 6)
    assert data.test.class_names == tuple(CLASSES)
    raw = pickle.loads((root / "cifar-10-batches-py" / "test_batch").read_bytes())
    assert torch.equal(data.test[2] * 255, torch.tensor(raw["data"][2]).view(3, 32, 32).float())
    assert data.test.find("target", "bird:1").label == 2


def test_a_file_that_is_not_the_published_one_is_not_opened(root, tmp_path):
    """Pickles can execute anything: this one would make a folder."""

    class Evil:
        def __reduce__(self):
            return (type(tmp_path).mkdir, (tmp_path / "made",))

    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        SettingError, match=r"its files are not the published ones\); put the publis"
    ):
        load_data(DataSettings("cifar10", str(root)))
    assert not (tmp_path / "made").exists()


def test_nothing_is_downloaded_to_where_a_run_says_or_beside_image_folders(tmp_path):
    with pytest.raises(SettingError, match="CIFAR-10 is missing"):
        load_data(DataSettings("cifar10", str(tmp_path)), download=False)
    save_png(tmp_path / "airplane" / "000.png", torch.rand(3, 32, 32))
    with pytest.raises(
        SettingError, match=r"holds image folders, .*data=image_folder data.size=32"
    ):
        load_data(DataSettings("cifar10", str(tmp_path)))
    folder = load_data(DataSettings("image_folder", str(tmp_path), 32)).test
    assert folder.size == (3, 32, 32)
    assert folder.find("target", "airplane").image.shape == (3, 32, 32)
