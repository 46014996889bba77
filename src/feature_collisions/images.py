"""Image files to and from tensors: float32 in [0, 1], shape (C, H, W)."""

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import SettingError
from .files import write_atomically


def load_image(path: str | Path, size: tuple[int, int, int]) -> Tensor:
    """Read an image file and warp it to `size` = (C, H, W), C being 1 (grey) or 3 (RGB).

    Orientation tags are applied, transparency is laid on black, 16-bit images keep their range.

    Returns:
        (C, H, W) float32 in [0, 1].

    Raises:
        SettingError: when the file is missing or is no image.
    """
    channels, height, width = size
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = _eight_bit(ImageOps.exif_transpose(file))
    except FileNotFoundError:
        raise SettingError(f"{path}: there is no such image file; give an existing one") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning) as error:
        reason = "no image format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise SettingError(f"{path}: cannot be read as an image ({reason})") from None
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return to_tensor(np.asarray(image))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit greys to 8 bits and lay transparency on black."""
    if image.mode.startswith("I"):
        return Image.fromarray(
            (np.asarray(image).astype(np.float64) / 257).round().astype(np.uint8)
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W) or (H, W, C) uint8 to (C, H, W) float32 in [0, 1]."""
    planes = torch.from_numpy(np.array(pixels, dtype=np.float32) / 255)
    return planes[None] if planes.ndim == 2 else planes.permute(2, 0, 1).contiguous()


def to_uint8(image: Tensor) -> np.ndarray:
    """(C, H, W) in [0, 1] to (H, W) or (H, W, 3) uint8, rounded to the nearest."""
    planes = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return planes[0].numpy() if len(planes) == 1 else planes.permute(1, 2, 0).numpy()


def save_png(path: Path, image: Tensor) -> None:
    """Write a (C, H, W) image in [0, 1] as 8-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, "png", compress_level=1)
    write_atomically(path, buffer.getvalue())
