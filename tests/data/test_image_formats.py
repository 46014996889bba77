import numpy as np
import pytest
import torch
from PIL import Image

from feature_collisions.data.images import load_image
from feature_collisions.errors import SettingError


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 51, (0.2, 0.2, 0.2)),
        ("RGB", (255, 51, 0), (1, 0.2, 0)),
        ("CMYK", (0, 255, 255, 0), (1, 0, 0)),
        ("1", 1, (1, 1, 1)),
        ("I;16", 257 * 51, (0.2, 0.2, 0.2)),
        ("LA", (255, 51), (0.2, 0.2, 0.2)),
        ("RGBA", (255, 0, 255, 51), (0.2, 0, 0.2)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I;16") else "image.png")
    Image.new(mode, (4, 3), value).save(path)
    image = load_image(path, (3, 3, 4))
    assert image.shape == (3, 3, 4)
    assert image[:, 1, 1].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_transparent_colour_of_a_palette_is_laid_on_black(tmp_path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "image.gif", transparency=1)
    assert load_image(tmp_path / "image.gif", (1, 1, 2)).tolist() == [[[0, 0]]]


def test_one_pixel_fills_the_whole_image(tmp_path):
    Image.new("RGB", (1, 1), (255, 51, 0)).save(tmp_path / "dot.png")
    for resize in ("warp", "crop"):
        image = load_image(tmp_path / "dot.png", (3, 8, 8), resize)
        assert torch.equal(image, image[:, :1, :1].expand(3, 8, 8))


def test_warping_keeps_the_edges_and_cropping_cuts_them(tmp_path):
    pixels = np.full((256, 512, 3), 128, dtype=np.uint8)
    pixels[:, :100], pixels[:, -100:] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    warped = load_image(tmp_path / "wide.png", (3, 224, 224), "warp")
    cropped = load_image(tmp_path / "wide.png", (3, 224, 224), "crop")
    assert (warped[:, :, 0].max(), warped[:, :, -1].min()) == (0, 1)
    # 256 high: nothing is scaled, and columns 144 to 368 of the 512 are kept
    assert torch.equal(cropped, torch.full((3, 224, 224), 128 / 255))


def test_cropping_scales_the_short_side_to_256_of_224(tmp_path):
    ramp = np.arange(256, dtype=np.uint8)[:, None].repeat(300, 1)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    column = load_image(tmp_path / "ramp.png", (1, 224, 224), "crop")[0, :, 0] * 255
    assert column.round().tolist() == list(range(16, 240))


def test_an_orientation_tag_turns_the_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png", (1, 2, 1)).tolist() == [[[0], [1]]]


def broken(path):
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:700])


def no_image(path):
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def floats(path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("broken.jpg", broken, "broken.jpg: cannot be read as an image"),
        ("broken.png", broken, "broken.png: cannot be read as an image"),
        (
            "drawing.eps",
            no_image,
            "drawing.eps: is not an image of a known format; convert it to one",
        ),
        ("floats.tif", floats, "floats.tif: .* mode F have no known range"),
        ("missing.png", lambda path: None, "missing.png: there is no such image file"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(SettingError, match=message):
        load_image(tmp_path / name, (3, 8, 8))
