"""Composites: many sources blended by control parameters (section 4, Eq. 5), and R(P) (sec. 4.1).

P has values only in each source's window of n + 2 s pixels. Elsewhere a source has no weight, as
in the paper's dense planes.
"""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingError
from . import composite_kernel

if TYPE_CHECKING:
    from .composite_triton import Tiles


@dataclass(frozen=True, eq=False)
class Sources:
    """Pasted patches, the sources of a composite; checked for the kernel on creation.

    Attributes:
        windows: (M, C, w, w) in [0, 1], each a patch with its surround, w = n + 2 s; float32, or
            another floating type for plain PyTorch.
        top, left: (M,) integers, a window's first row and column; it may extend beyond the image,
            but must overlap it.
        size: (H, W) of the composite; windows cover all of it.

    Raises:
        SettingError: if a shape, type or value is wrong, or no window covers a pixel.
    """

    windows: Tensor
    top: Tensor
    left: Tensor
    size: tuple[int, int]

    def __post_init__(self) -> None:
        shape, kind = tuple(self.windows.shape), self.windows.dtype
        if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or not kind.is_floating_point:
            raise SettingError(
                "sources.windows",
                None,
                "must be at least one window, floating (M, C, w, w)",
                f"is {kind} {shape}",
            )
        low, high = (float(end) for end in self.windows.detach().aminmax())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise SettingError(
                "sources.windows",
                None,
                "pixels must be in [0, 1]",
                f"they are in [{low:g}, {high:g}]",
            )
        for name in ("top", "left"):
            places: Tensor = getattr(self, name)
            whole = not (places.is_floating_point() or places.is_complex())
            if places.shape != shape[:1] or not whole or places.dtype == torch.bool:
                raise SettingError(
                    f"sources.{name}",
                    None,
                    f"must be whole numbers ({shape[0]},), one per window",
                    f"is {places.dtype} {tuple(places.shape)}",
                )
            places = places.to(self.windows.device, torch.int64).contiguous()
            object.__setattr__(self, name, places)  # as dataclasses do for frozen fields
        object.__setattr__(self, "windows", self.windows.contiguous())
        self._check_cover()

    def _check_cover(self) -> None:
        """Raise SettingError if a window is outside the composite, or a pixel has no window."""
        (height, width), side = self.size, self.windows.shape[-1]
        if min(height, width) < 1:
            raise SettingError("sources.size", self.size, "must be (H, W), each at least 1")
        covered = torch.zeros(height, width, dtype=torch.bool)
        places = zip(self.top.tolist(), self.left.tolist(), strict=True)
        for number, (top, left) in enumerate(places):
            if not (-side < top < height and -side < left < width):
                raise SettingError(
                    "sources",
                    None,
                    f"window {number}, {side}x{side} pixels at row {top}, column {left}, is "
                    f"outside the composite of {height}x{width}",
                )
            covered[max(0, top) : top + side, max(0, left) : left + side] = True
        if not covered.all():
            row, column = (~covered).nonzero()[0].tolist()
            raise SettingError(
                "sources",
                None,
                f"no window covers row {row}, column {column} of the composite of {height}x{width}",
                "place windows so that every pixel has one",
            )

    def like(self, tensor: Tensor) -> "Sources":
        """The sources in `tensor`'s dtype and on its device."""
        if (self.windows.device, self.windows.dtype) == (tensor.device, tensor.dtype):
            return self
        return replace(self, windows=self.windows.to(tensor))


def tent(side: int) -> Tensor:
    """Eq. 5's weights of a window's pixels before normalisation, (side, side).

    They decrease from the centre of the patch to the edge of its window in both directions.
    """
    distance = (torch.arange(side) - (side - 1) / 2).abs()
    ramp = side / 2 - distance
    return ramp[:, None] * ramp


def blend(
    logits: Tensor, sources: Sources, layout: "Tensor | Tiles | None" = None
) -> tuple[Tensor, Tensor]:
    """x = G(P, Q) with P = softmax(logits) over the sources that cover a pixel, and R(P).

    R is the sum of |differences| between neighbouring control parameters of one source in both
    directions; parameters outside its window are 0 (sec. 4.1).

    Args:
        logits: (K, M, w, w).
        sources: M windows; converted to the logits' dtype and device.
        layout: from `layout_for`: planes for plain PyTorch, tiles for the GPU's kernels, None for
            the CPU's kernel.

    Returns:
        Images (K, C, H, W) and R (K,). A NaN logit gives a NaN pixel.

    Raises:
        ValueError: if the logits have another shape, or the kernel does not support them.
    """
    sources = sources.like(logits)
    windows = sources.windows
    expected = (len(windows), *windows.shape[2:])
    if tuple(logits.shape[1:]) != expected or logits.dim() != 4:
        numbers = ", ".join(map(str, expected))
        raise ValueError(f"logits: must be (K, {numbers}) for these sources; are {logits.shape}")
    if isinstance(layout, Tensor):
        return _blend_in_planes(logits, sources, layout)
    given = (logits, windows, sources.top, sources.left, sources.size)
    if layout is None:
        images, variation = composite_kernel.Blend.apply(*given)
    else:
        from . import composite_triton  # Triton is missing without a GPU

        images, variation = composite_triton.Blend.apply(*given, layout)
    return images, variation


def layout_for(logits: Tensor, sources: Sources) -> "Tensor | Tiles | None":
    """The fastest layout for `blend`: a kernel's if the device has one.

    Args:
        logits: (K, M, w, w).
        sources: on their device.
    """
    if composite_kernel.usable(logits):
        return None
    if logits.is_cuda and logits.dtype == torch.float32 and find_spec("triton"):
        from . import composite_triton

        if composite_triton.works(logits.device):
            side = sources.windows.shape[-1]
            return composite_triton.tiles(sources.top, sources.left, side, sources.size)
    return layers(sources).to(logits.device)


def layers(sources: Sources) -> Tensor:
    """Place windows in planes without overlaps or contact: indices (L, H, W) into (M, w, w).

    The index M w w, one past the last, means no window.
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
