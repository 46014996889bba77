"""Distances between images, as pure functions with gradients."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

SQUARE = 8  # pixels; what is averaged away over 8x8 pixels, nobody sees
SIGMA = 4  # pixels, of the Gaussian low-pass, and how far apart its samples are


def visible_distances(images: Tensor) -> Tensor:
    """L2 distances between images whose pixels are replaced by the means of 8x8 pixels.

    A border of less than 8 pixels is left out. This is what is reported; a search that is rewarded
    for it finds the squares, and is rewarded for `smooth_distances` instead.

    Args:
        images: (K, C, H, W), of 8x8 pixels or more.

    Returns:
        (K (K - 1) / 2,) At equal images, where every search begins, their gradient is 0.
    """
    means = F.avg_pool2d(images, SQUARE).flatten(1) * SQUARE  # each mean stands for 8x8 pixels
    distances: Tensor = F.pdist(means)
    return distances


def low_pass(images: Tensor) -> Tensor:
    """A Gaussian low-pass of images, sampled every `SIGMA` pixels.

    At this spacing less than a hundredth of what the filter passes is folded, so that the result
    does not depend on where the samples lie. At the border the weights inside the image count.

    Args:
        images: (..., H, W).

    Returns:
        (..., h, w), h = ceil(H / SIGMA).
    """
    down, across = (_gaussian(side, images.dtype, images.device) for side in images.shape[-2:])
    with torch.autocast(images.device.type, enabled=False):  # bfloat16 would draw steps
        found: Tensor = down @ images @ across.T
    return found


@functools.cache
def _gaussian(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(h, H): each row the weights of one sample, which add up to 1."""
    places = torch.arange(side, dtype=torch.float64)
    centres = torch.arange((SIGMA - 1) / 2, side + (SIGMA - 1) / 2, SIGMA, dtype=torch.float64)
    weights = (-((places - centres[:, None]) ** 2) / (2 * SIGMA**2)).exp()
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)


def smooth_distances(images: Tensor) -> Tensor:
    """L2 distances between low-passed images, in the pixels of the whole image.

    Args:
        images: (K, C, H, W).

    Returns:
        (K (K - 1) / 2,) At equal images, where every search begins, their gradient is 0.
    """
    # Less the first: what rounding would tell apart of equal images has a gradient of full length.
    distances: Tensor = F.pdist(low_pass(images - images[:1]).flatten(1) * SIGMA)
    return distances
