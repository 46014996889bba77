"""Composites: many sources blended by control parameters (section 4, Eq. 5), and R(P) (sec. 4.1).

P holds numbers only where a source is pasted: its window of n + 2 s pixels. Elsewhere a source has
no weight, as in the paper's dense planes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import composite_kernel


class Sources(NamedTuple):
    """Pasted patches: what the composite is made of.

    Attributes:
        windows: (M, C, w, w) float32 in [0, 1], each a patch with its surround, w = n + 2 s.
        top, left: (M,) int64, a window's first row and column; it may stick out of the image.
        size: (H, W) of the composite.
    """

    windows: Tensor
    top: Tensor
    left: Tensor
    size: tuple[int, int]


def tent(side: int) -> Tensor:
    """Eq. 5's weight of a window's pixels before it is normalised, (side, side).

    It falls from the patch's centre to its window's edge in both directions.
    """
    distance = (torch.arange(side) - (side - 1) / 2).abs()
    ramp = side / 2 - distance
    return ramp[:, None] * ramp


def blend(logits: Tensor, sources: Sources, planes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x = G(P, Q) with P = softmax(logits) over the sources that cover a pixel, and R(P).

    R is the sum of |differences| between neighbouring control parameters of one source, both ways,
    where the parameters outside its window are 0 (sec. 4.1).

    Args:
        logits: (K, M, w, w).
        sources: M windows.
        planes: of `layers`, to compute in plain PyTorch; None for the kernel.

    Returns:
        Images (K, C, H, W) and R (K,).
    """
    if planes is None:
        images, variation = composite_kernel.Blend.apply(logits, *sources)
        return images, variation
    return _blend_in_planes(logits, sources, planes)


def layers(sources: Sources) -> Tensor:
    """Windows laid into planes in which none touch another, as indices (L, H, W) into (M, w, w).

    M w w, one past the last, stands for no window.
    """
    height, width = sources.size
    side = sources.windows.shape[-1]
    found: list[Tensor] = []
    taken: list[Tensor] = []
    places = torch.arange(len(sources.top) * side * side).view(-1, side, side)
    for m, (top, left) in enumerate(zip(sources.top.tolist(), sources.left.tolist(), strict=True)):
        rows = slice(max(0, top), min(height, top + side))
        columns = slice(max(0, left), min(width, left + side))
        wide = (slice(rows.start, rows.stop + 1), slice(columns.start, columns.stop + 1))
        free = (k for k, plane in enumerate(taken) if not plane[wide].any())
        layer = next(free, len(taken))
        if layer == len(taken):
            taken.append(torch.zeros(height + 1, width + 1, dtype=torch.bool))
            found.append(torch.full((height, width), places.numel()))
        taken[layer][wide] = True
        inside = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        found[layer][rows, columns] = places[m][inside]
    return torch.stack(found)


def _blend_in_planes(logits: Tensor, sources: Sources, planes: Tensor) -> tuple[Tensor, Tensor]:
    outside = logits.new_full((len(logits), 1), -torch.inf)
    p = torch.cat([logits.flatten(1), outside], 1)[:, planes].softmax(1)
    channels = sources.windows.movedim(1, 0).flatten(1)
    q = F.pad(channels, (0, 1))[:, planes]
    images = torch.einsum("klhw,clhw->kchw", p, q)
    variation = p.diff(dim=2).abs().sum((1, 2, 3)) + p.diff(dim=3).abs().sum((1, 2, 3))
    return images, variation
