"""Distances between images, as pure functions with gradients."""

import torch.nn.functional as F
from torch import Tensor

SQUARE = 8  # pixels; what is averaged away over 8x8 pixels, nobody sees


def visible_distances(images: Tensor) -> Tensor:
    """L2 distances between images whose pixels are replaced by the means of 8x8 pixels.

    A border of less than 8 pixels is left out.

    Args:
        images: (K, C, H, W), of 8x8 pixels or more.

    Returns:
        (K (K - 1) / 2,) At equal images, where every search begins, their gradient is 0.
    """
    means = F.avg_pool2d(images, SQUARE).flatten(1) * SQUARE  # each mean stands for 8x8 pixels
    distances: Tensor = F.pdist(means)
    return distances
