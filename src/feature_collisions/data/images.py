"""Read and write images: float32 tensors (C, H, W) in [0, 1]."""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import SettingError, first_line
from ..paths import expanded
from .files import opened, write_atomically

# Formats that Pillow decodes itself; others, such as EPS, start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
_LARGEST_FILE = 2**30  # bytes; about the size of the largest image, uncompressed
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # of an image, as read or as resized


@functools.cache
def image_endings() -> frozenset[str]:
    """File extensions that `load_image` reads with the installed Pillow."""
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in _FORMATS}
    return frozenset(end for end in known if Image.registered_extensions()[end] in Image.OPEN)


def load_image(path: str | Path, size: tuple[int, int, int], resize: str = "warp") -> Tensor:
    """Read an image file and resize it to `size` = (C, H, W), C = 1 (grey) or 3 (RGB).

    Orientation tags are applied. Transparent pixels become black. 16-bit greys keep their range.

    Args:
        path: the file.
        size: (C, H, W) of the result.
        resize: `warp` ignores the aspect ratio, as the authors do. `crop` scales the short side
            to 256/224 of the size and cuts out the middle.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        SettingError: if the file is missing or not an image, or `size` is too large.
    """
    channels, height, width = size
    if height * width > _MOST_PIXELS:
        raise SettingError(
            "data.size",
            max(height, width),
            f"an image of {height}x{width} has more than {_MOST_PIXELS:,} pixels",
            "choose a smaller size",
        )
    image = _read(path).convert("L" if channels == 1 else "RGB")
    if resize == "crop":
        image = _crop_to_shape(image, width, height)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return to_tensor(np.asarray(image))


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Ignore Pillow's warnings, except the one for pictures too large to decode.

    Warning filters are shared by all threads: enter this outside of threads that load images.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tags that do not matter here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def load_picture(path: str | Path) -> Tensor:
    """Read an image file as RGB without resizing: (3, H, W) float32 in [0, 1].

    Raises:
        SettingError: if the file is missing or not an image.
    """
    return to_tensor(np.asarray(_read(path).convert("RGB")))


def _read(path: str | Path) -> Image.Image:
    wrong = partial(SettingError, path, None)
    try:
        with (
            quiet_decoders(),
            opened(expanded(str(path)), _LARGEST_FILE) as content,
            Image.open(content, formats=_FORMATS) as file,
        ):
            return _eight_bit(ImageOps.exif_transpose(file))
    except SettingError:
        raise
    except FileNotFoundError:
        raise wrong("there is no such image file", "give an existing one") from None
    except UnidentifiedImageError:
        raise wrong(
            "is not an image of a known format", f"convert it to one of {', '.join(_FORMATS)}"
        ) from None
    except Exception as error:  # decoders raise any error for damaged bytes
        reason = getattr(error, "strerror", None) or first_line(error)
        raise wrong(
            f"cannot be read as an image ({reason})", "give another file, or repair it"
        ) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """Convert 16-bit greys to 8 bits and transparent pixels to black.

    Raises:
        ValueError: if the range of the pixels is unknown.
    """
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image).astype(np.float64)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no known range; store 8 or 16 bits")
        return Image.fromarray((pixels / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image


def _crop_to_shape(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut out the middle: 224/256 of the largest region with the aspect ratio width : height."""
    scale = 224 / 256 * min(image.width / width, image.height / height)
    across, down = width * scale, height * scale
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W) or (H, W, C) uint8 to (C, H, W) float32 in [0, 1]."""
    planes = torch.from_numpy(np.array(pixels, dtype=np.float32) / 255)
    return planes[None] if planes.ndim == 2 else planes.permute(2, 0, 1).contiguous()


PNG_CHANNELS = (1, 3)


def to_uint8(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] to (H, W) or (H, W, 3) uint8, rounded to the nearest."""
    planes = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return planes[0].numpy() if len(planes) == 1 else planes.permute(1, 2, 0).numpy()


def save_png(path: Path, image: Tensor) -> None:
    """Write a (C, H, W) image in [0, 1] as 8-bit PNG; nothing unless C is 1 or 3."""
    if len(image) not in PNG_CHANNELS:
        return
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "png", compress_level=1)
    write_atomically(path, buffer.getvalue())


def check_image(name: str, image: Tensor | None) -> None:
    """Raise SettingError unless it is one image, (C, H, W) float32 in [0, 1]."""
    wrong = partial(SettingError, name, None)
    if image is None:
        raise wrong("is missing", "give an image (C, H, W) in [0, 1]")
    if not isinstance(image, Tensor):
        raise wrong(
            "must be a float32 tensor (C, H, W) with pixels in [0, 1], is a "
            f"{type(image).__name__}",
            "read files with feature_collisions.data.images.load_image, convert others with "
            "torchvision.transforms.functional.to_tensor",
        )
    if image.ndim != 3 or image.dtype != torch.float32:
        raise wrong(f"must be a float32 image (C, H, W), is {image.dtype} {tuple(image.shape)}")
    if not image.numel():
        raise wrong(f"is empty, {tuple(image.shape)}", "give an image with pixels")
    if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
        raise wrong("pixels must be in [0, 1]", "divide 8-bit pixels by 255")


def check_pair(initial: Tensor, target: Tensor) -> None:
    """Raise SettingError unless both are images, as `check_image` has them, of the same size."""
    check_image("initial", initial)
    check_image("target", target)
    if initial.shape != target.shape:
        raise SettingError(
            "initial and target differ in size",
            None,
            f"{tuple(initial.shape)}, {tuple(target.shape)}",
            "resize one to the other's size, which the network must take",
        )
    if torch.equal(initial, target):
        raise SettingError("initial and target are the same image; choose another")


SQUARES = (1, 2, 4, 8)  # sides in pixels; differences that remain after 8x8 are plainly visible


def averaged(images: Tensor, square: int) -> Tensor:
    """Mean over squares of n x n pixels, (M, C, H // n, W // n); a narrower border is left out.

    Args:
        images: (M, C, H, W).
        square: n, at most H and W.
    """
    return images if square == 1 else F.avg_pool2d(images, square)


def pooled_distances(images: Tensor, square: int) -> Tensor:
    """L2 distances (M (M - 1) / 2,) between `averaged` images (M, C, H, W).

    An average of n x n pixels counts n times, so distances compare with those of whole images.
    """
    distances: Tensor = F.pdist(averaged(images, square).flatten(1)) * square
    return distances


def pooled_distance(images: Tensor, square: int) -> float:
    """Mean of `pooled_distances`."""
    return float(pooled_distances(images, square).mean())
