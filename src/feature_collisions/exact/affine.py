"""A layer as one exact affine map of the pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..graph.operations import NotPiecewiseLinear
from ..graph.target_layer import TargetLayer, check_affine

_LARGEST = 2**28  # entries of the map: 2 GiB
_CHUNK = 2**22  # numbers of the images that are computed together: 32 MiB


@dataclass(frozen=True)
class AffineMap:
    """f0(x) = weight x + bias, float64: weight (N, C H W), bias (N,)."""

    weight: np.ndarray
    bias: np.ndarray


def affine_map(layer: TargetLayer, size: Sequence[int], batch: int = 256) -> AffineMap:
    """The target layer as one exact affine map of the pixels.

    Args:
        layer: the cut network, float64.
        size: (C, H, W) of an image.
        batch: images a forward pass takes at most; large ones go through by fewer.

    Raises:
        NotPiecewiseLinear: when the cut network is not affine, or the map would not fit in memory.
    """
    check_affine(layer)
    return probed(layer, size, batch)


@torch.no_grad()
def probed(layer: Callable[[Tensor], Tensor], size: Sequence[int], batch: int = 256) -> AffineMap:
    """The map of a layer that is known to be affine: its values at one pixel after another.

    Raises:
        NotPiecewiseLinear: when the map would not fit in memory.
    """
    pixels = int(np.prod(size))
    bias = layer(torch.zeros(1, *size, dtype=torch.float64))[0]
    if pixels * len(bias) > _LARGEST:
        raise NotPiecewiseLinear(f"a map from {pixels} pixels to {len(bias)} units is too big")
    columns = torch.empty(pixels, len(bias), dtype=torch.float64)
    batch = max(1, min(batch, _CHUNK // pixels))
    for first in range(0, pixels, batch):
        count = min(batch, pixels - first)
        units = torch.zeros(count, pixels, dtype=torch.float64)
        units[torch.arange(count), first + torch.arange(count)] = 1
        columns[first : first + count] = layer(units.view(count, *size)) - bias
    return AffineMap(columns.T.numpy(), bias.numpy())
