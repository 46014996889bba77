"""Image files to and from tensors: float32 in [0, 1], shape (C, H, W)."""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import SettingError
from ..paths import expanded
from .files import opened, write_atomically

# Formats whose decoders are Pillow's own: none of them starts a program, as EPS does.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
_LARGEST_FILE = 2**30  # bytes: as many as the largest image that is decoded has without packing
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # of an image that is read, or asked for


@functools.cache
def image_endings() -> frozenset[str]:
    """The endings of files that `load_image` reads with the Pillow that is installed."""
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in _FORMATS}
    return frozenset(end for end in known if Image.registered_extensions()[end] in Image.OPEN)


def load_image(path: str | Path, size: tuple[int, int, int], resize: str = "warp") -> Tensor:
    """Read an image file and bring it to `size` = (C, H, W), C being 1 (grey) or 3 (RGB).

    Orientation tags are applied, transparency is laid on black, 16-bit greys keep their range.

    Args:
        path: the file.
        size: of the image wanted.
        resize: `warp` to the whole size, as the authors do, or `crop`: the short side becomes
            256/224 of the size, and its middle is cut out.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        SettingError: when the file is missing or is no image, or when `size` is too large.
    """
    channels, height, width = size
    if height * width > _MOST_PIXELS:
        raise SettingError(
            "data.size",
            max(height, width),
            f"an image of {height}x{width} has more than {_MOST_PIXELS:,} pixels",
            "ask for a smaller one",
        )
    image = _read(path).convert("L" if channels == 1 else "RGB")
    if resize == "crop":
        image = _crop_to_shape(image, width, height)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return to_tensor(np.asarray(image))


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Pillow's remarks are ignored, but its refusal of pictures too large to decode.

    The filters belong to the process: enter this around threads that load images, or one thread
    may put back another's.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow remarks on tags that do not matter here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def load_picture(path: str | Path) -> Tensor:
    """Read an image file at its own size, in colour: (3, H, W) float32 in [0, 1].

    Raises:
        SettingError: when the file is missing or is no image.
    """
    return to_tensor(np.asarray(_read(path).convert("RGB")))


def _read(path: str | Path) -> Image.Image:
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
        raise SettingError(
            path, None, "there is no such image file", "give an existing one"
        ) from None
    except UnidentifiedImageError:
        raise SettingError(
            path,
            None,
            "is no image of a known format",
            f"convert it to one of {', '.join(_FORMATS)}",
        ) from None
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        reason = _reason(error)
        raise SettingError(
            path, None, f"cannot be read as an image ({reason})", "give another file, or repair it"
        ) from None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit greys to 8 bits and lay transparency on black.

    Raises:
        ValueError: for pixels without a known range.
    """
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image).astype(np.float64)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"pixels of mode {image.mode} have no known range: store 8 or 16 bits")
        return Image.fromarray((pixels / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image


def _crop_to_shape(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of the image, 224/256 of what fits, in the shape of (width, height)."""
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
    """Write a (C, H, W) image in [0, 1] as 8-bit PNG; none of other than 1 or 3 channels."""
    if len(image) not in PNG_CHANNELS:
        return
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "png", compress_level=1)
    write_atomically(path, buffer.getvalue())


def check_pair(initial: Tensor, target: Tensor) -> None:
    """Raise SettingError unless these are two images of one size, (C, H, W) float32 in [0, 1]."""
    for name, image in (("initial", initial), ("target", target)):
        if not isinstance(image, Tensor):
            raise SettingError(
                name,
                None,
                "must be a float32 tensor (C, H, W) with pixels in [0, 1], is a "
                f"{type(image).__name__}",
                "read files with feature_collisions.data.images.load_image, turn others with "
                "torchvision.transforms.functional.to_tensor",
            )
        if image.ndim != 3 or image.dtype != torch.float32:
            raise SettingError(
                name,
                None,
                f"must be a float32 image (C, H, W), is {image.dtype} {tuple(image.shape)}",
            )
        if not image.numel():
            raise SettingError(
                name, None, f"is empty, {tuple(image.shape)}", "give an image with pixels"
            )
        if not (image.isfinite().all() and image.min() >= 0 and image.max() <= 1):
            raise SettingError(name, None, "pixels must be in [0, 1]", "divide 8-bit pixels by 255")
    if initial.shape != target.shape:
        raise SettingError(
            "initial and target differ in size",
            None,
            f"{tuple(initial.shape)}, {tuple(target.shape)}",
        )
    if torch.equal(initial, target):
        raise SettingError(
            "initial and target are the same image, which collides with itself; choose another"
        )


SQUARES = (1, 2, 4, 8)  # sides in pixels: what differs after averaging over 8x8, a person sees


def averaged(images: Tensor, square: int) -> Tensor:
    """Means (..., C, H // n, W // n) over squares of n x n pixels; a narrower border is left out.

    Args:
        images: (M, C, H, W).
        square: n, at most H and W.
    """
    return images if square == 1 else F.avg_pool2d(images, square)


def pooled_distances(images: Tensor, square: int) -> Tensor:
    """L2 distances (M (M - 1) / 2,) between images (M, C, H, W), `averaged`.

    An average of n x n pixels counts n times, so distances are in pixels of the whole image.
    """
    distances: Tensor = F.pdist(averaged(images, square).flatten(1)) * square
    return distances


def pooled_distance(images: Tensor, square: int) -> float:
    """The mean of `pooled_distances`."""
    return float(pooled_distances(images, square).mean())
