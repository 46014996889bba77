"""Deviations of a feature map confined to small windows, propagated layer by layer.

The deviation of one unit reaches few units of the next layers. K of them are a batch of windows:
convolutions process them like images, and other layers look up the cells they need.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bounds.steps import Grid, Pair

_ROUNDED = 1.001  # more than the rounding of sums in float32


@dataclass
class Windows:
    """sum_k phi_k patch_k on M intervals, phi_k unknown functions from 0 to 1.

    Attributes:
        intervals: M.
        shape: (C, H, W) of the map.
        interval: (K,) index of each window's interval.
        name: (K,) increasing ids, equal for the same phi_k in branches of a network.
        row, column: (K,) of each window's first cell; windows may overlap the map's border.
        patches: (K, h, w, C), 0 outside the map.
    """

    intervals: int
    shape: torch.Size
    interval: Tensor
    name: Tensor
    row: Tensor
    column: Tensor
    patches: Tensor

    @property
    def size(self) -> Pair:
        """Rows and columns of a window."""
        return self.patches.shape[1], self.patches.shape[2]

    def places(self) -> Tensor:
        """(K, h, w) rows in the maps of all intervals, (M H W, C); M H W is outside."""
        _, height, width = self.shape
        steps = [torch.arange(count, device=self.row.device) for count in self.size]
        rows = (self.row[:, None] + steps[0])[:, :, None]
        columns = (self.column[:, None] + steps[1])[:, None, :]
        flat = (self.interval[:, None, None] * height + rows) * width + columns
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return torch.where(inside, flat, self.intervals * height * width)

    def spread(self) -> Tensor:
        """Upper bound (M, C, H, W) on the absolute value of the sum for any phi_k."""
        channels, height, width = self.shape
        rows = self.patches.new_zeros(self.intervals * height * width + 1, channels)
        rows.index_add_(0, self.places().flatten(), self.patches.abs().flatten(0, 2))
        maps = rows[:-1].view(self.intervals, height, width, channels)
        return maps.mul_(_ROUNDED).permute(0, 3, 1, 2)

    def masked(self, kept: Tensor) -> "Windows":
        """Set units to 0 unless `kept` (M, C, H, W)."""
        patches = self.patches * looked_up(kept.to(self.patches.dtype), self.places())
        return replace(self, patches=patches)

    def convolved(self, weight: Tensor, grid: Grid, groups: int, shape: torch.Size) -> "Windows":
        """After a convolution without its bias."""
        row, column, canvas = self._to_windows_of(grid)
        values = F.conv2d(
            canvas.permute(0, 3, 1, 2), weight, None, grid.stride, 0, grid.dilation, groups
        )
        patches = values.permute(0, 2, 3, 1)
        found = replace(self, shape=shape, row=row, column=column, patches=patches)
        outside = found.places() == self.intervals * shape[1] * shape[2]
        return replace(found, patches=patches.masked_fill(outside[..., None], 0.0))

    def pooled(self, winner: Tensor, grid: Grid, shape: torch.Size) -> "Windows":
        """After a max pool.

        Args:
            winner: (M, C, H', W') index of the largest cell of a window; -1 if it changes.
            grid: of the pool.
            shape: (C, H', W') of its values.
        """
        first = [self._first(axis, at, grid) for axis, at in enumerate((self.row, self.column))]
        height, width = self.size_behind(grid)
        empty = self.patches.new_zeros(()).expand(len(self.name), height, width, 1)
        found = replace(self, shape=shape, row=first[0], column=first[1], patches=empty)
        cells = looked_up(winner, found.places(), outside=-1)
        rows = cells.div(self.shape[2], rounding_mode="floor") - self.row.view(-1, 1, 1, 1)
        columns = cells % self.shape[2] - self.column.view(-1, 1, 1, 1)
        inside = (cells >= 0) & (rows >= 0) & (rows < self.size[0])
        inside &= (columns >= 0) & (columns < self.size[1])
        index = torch.where(inside, rows * self.size[1] + columns, 0).flatten(1, 2)
        taken = self.patches.flatten(1, 2).gather(1, index).view(cells.shape)
        return replace(found, patches=taken * inside)

    def size_behind(self, grid: Grid) -> Pair:
        """Size of a window after a convolution or pool with `grid`."""
        height, width = (
            (count - 1 + (k - 1) * d) // s + 1
            for count, k, s, d in zip(
                self.size, grid.kernel, grid.stride, grid.dilation, strict=True
            )
        )
        return height, width

    def _first(self, axis: int, first: Tensor, grid: Grid) -> Tensor:
        """The first window along an axis that has a cell at `first` or behind it."""
        kernel, stride, padding, dilation = (option[axis] for option in grid)
        last_cell = first + padding - (kernel - 1) * dilation
        return -((-last_cell).div(stride, rounding_mode="floor"))

    def _to_windows_of(self, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
        """First windows by row and column, (K,) each, and all that they see (K, h, w, C)."""
        first, offset, seen, spare = [], [], [], []
        for axis, at in enumerate((self.row, self.column)):
            kernel, stride, padding, dilation = (option[axis] for option in grid)
            first.append(self._first(axis, at, grid))
            offset.append(at - (first[-1] * stride - padding))
            seen.append((self.size_behind(grid)[axis] - 1) * stride + (kernel - 1) * dilation + 1)
            spare.append(max(0, stride - 1 - (kernel - 1) * dilation))  # what no window sees
        height, width = (
            max(s + p, p + count + (k - 1) * d)
            for s, p, count, k, d in zip(
                seen, spare, self.size, grid.kernel, grid.dilation, strict=True
            )
        )
        canvas = self.patches.new_zeros(len(self.name), height, width, self.shape[0])
        _put(canvas, self.patches, offset[0] + spare[0], offset[1] + spare[1])
        rows, columns = (slice(p, p + s) for p, s in zip(spare, seen, strict=True))
        return first[0], first[1], canvas[:, rows, columns]

    def without_zeros(self) -> "Windows":
        """Only windows that are not zero."""
        return self[self.patches.flatten(1).any(1).nonzero()[:, 0]]

    def __getitem__(self, kept: Tensor) -> "Windows":
        """Windows with these indices."""
        if len(kept) == len(self.name):
            return self
        return replace(
            self, interval=self.interval[kept], name=self.name[kept], row=self.row[kept],
            column=self.column[kept], patches=self.patches[kept],
        )  # fmt: skip


def born(units: Tensor, radius: Tensor, names: Tensor, like: Windows) -> Windows:
    """Windows of one unit each: `units` (K, 4) are interval, channel, row, column."""
    interval, channel, row, column = units.unbind(1)
    height, width = like.size
    patches = like.patches.new_zeros(len(units), height, width, like.shape[0])
    number = torch.arange(len(units), device=units.device)
    patches[number, height // 2, width // 2, channel] = radius.to(patches.dtype)
    return replace(
        like, interval=interval, name=names, row=row - height // 2, column=column - width // 2,
        patches=patches,
    )  # fmt: skip


def none_yet(intervals: int, shape: torch.Size, like: Tensor) -> Windows:
    """An empty batch of windows on maps (C, H, W)."""
    none = torch.empty(0, dtype=torch.long, device=like.device)
    patches = torch.empty(0, 1, 1, shape[0], device=like.device)
    return Windows(intervals, shape, none, none, none, none, patches)


def together(first: Windows, second: Windows) -> Windows:
    """Concatenate two batches with distinct names, in windows of one size."""

    def both(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    return replace(
        first, interval=both("interval"), name=both("name"), row=both("row"),
        column=both("column"), patches=both("patches"),
    )  # fmt: skip


def united(given: Sequence[Windows], shape: torch.Size, signs: Sequence[int] | None) -> Windows:
    """After a signed sum of `given`, or after joining their channels."""
    name, place = torch.cat([each.name for each in given]).unique(return_inverse=True)
    numbers = place.split([len(each.name) for each in given])
    interval, (row, column) = torch.empty_like(name), name.new_full((2, len(name)), 2**40)
    end = name.new_full((2, len(name)), -(2**40))
    for each, number in zip(given, numbers, strict=True):
        interval[number] = each.interval
        row[number] = torch.minimum(row[number], each.row)
        column[number] = torch.minimum(column[number], each.column)
        end[0, number] = torch.maximum(end[0, number], each.row + each.size[0])
        end[1, number] = torch.maximum(end[1, number], each.column + each.size[1])
    height, width = int((end[0] - row).max()), int((end[1] - column).max())
    patches = given[0].patches.new_zeros(len(name), height, width, shape[0])
    channel = 0
    for k, (each, number) in enumerate(zip(given, numbers, strict=True)):
        rows, columns = each.row - row[number], each.column - column[number]
        if signs is None:
            part = patches[..., channel : channel + each.shape[0]]
            channel += each.shape[0]
            _put(part, each.patches, rows, columns, number)
        else:
            _put(patches, each.patches * signs[k], rows, columns, number, adds=True)
    return Windows(given[0].intervals, shape, interval, name, row, column, patches)


def _put(
    canvas: Tensor,
    patches: Tensor,
    row: Tensor,
    column: Tensor,
    number: Tensor | None = None,
    adds: bool = False,
) -> None:
    """Write patches (K, h, w, C) into canvases (.., H, W, C) from rows and columns (K,) on."""
    height, width = patches.shape[1:3]
    number = torch.arange(len(patches), device=row.device) if number is None else number
    rows = (row[:, None] + torch.arange(height, device=row.device))[:, :, None]
    columns = (column[:, None] + torch.arange(width, device=row.device))[:, None, :]
    at = number[:, None, None], rows, columns
    canvas[at] = canvas[at] + patches if adds else patches


def looked_up(maps: Tensor, places: Tensor, outside: float = 0) -> Tensor:
    """Values (..., C) of maps (M, C, H, W) at flat positions (...)."""
    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    rows = torch.cat([rows, rows.new_full((1, rows.shape[1]), outside)])
    return rows[places]


def put_back(rows: Tensor, places: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Maps of shape (M, C, H, W) with `rows` (n, C) at flat positions, and 0 elsewhere."""
    count, channels, height, width = shape
    flat = rows.new_zeros(count * height * width, channels)
    flat[places] = rows
    return flat.view(count, height, width, channels).permute(0, 3, 1, 2)
