import numpy as np
import pytest
import torch
from PIL import Image

from feature_collisions.data.images import load_image, save_png, to_uint8
from feature_collisions.errors import SettingError


def test_a_saved_image_is_read_back_to_half_a_level(tmp_path):
    for channels in (1, 3):
        image = torch.rand(channels, 5, 7, generator=torch.Generator().manual_seed(0))
        save_png(tmp_path / "image.png", image)
        again = load_image(tmp_path / "image.png", (channels, 5, 7))
        assert again.dtype == torch.float32
        assert (again - image).abs().max() <= 0.5 / 255 + 1e-6


def test_pixels_outside_the_range_are_clipped():
    assert to_uint8(torch.tensor([[[-1.0, 0.0, 1.0, 2.0]]])).tolist() == [[0, 0, 255, 255]]


def test_sixteen_bits_keep_their_range(tmp_path):
    levels = np.array([[0, 257, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    image = load_image(tmp_path / "deep.png", (1, 1, 3))
    assert (image * 255).tolist() == [[[0, 1, 255]]]


def test_transparency_is_laid_on_black(tmp_path):
    pixels = np.array([[[255, 255, 255, 255], [255, 255, 255, 0]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png", (1, 1, 2)).tolist() == [[[1.0, 0.0]]]


def test_orientation_tags_are_applied(tmp_path):
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by half a turn
    image.save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png", (1, 1, 2)).tolist() == [[[1.0, 0.0]]]


def test_files_that_are_no_images_are_refused(tmp_path):
    with pytest.raises(SettingError, match=r"none\.png: there is no such image file"):
        load_image(tmp_path / "none.png", (1, 2, 2))
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(SettingError, match=r"text\.png: is not an image of a known format; conv"):
        load_image(tmp_path / "text.png", (1, 2, 2))
    save_png(tmp_path / "half.png", torch.rand(1, 64, 64))
    half = (tmp_path / "half.png").read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    with pytest.raises(SettingError, match=r"half\.png: cannot be read as an image"):
        load_image(tmp_path / "half.png", (1, 64, 64))
