"""Linear layers of NumPy arrays, each of a batch (B, ...)."""

import math

import numpy as np

Array = np.ndarray
Pair = tuple[int, int]
_TOGETHER = 2**19  # numbers of the windows that are unfolded at once


def pair(option: int | list[int] | tuple[int, ...]) -> Pair:
    """An option of both axes: one number, or one each."""
    both = [option] if isinstance(option, int) else list(option)
    return both[0], both[-1]


def convolved(
    x: Array, weight: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Array:
    """Cross-correlation (B, I, H, W) to (B, O, h, w), zeros around the images.

    Args:
        x: the images.
        weight: (O, I / groups, rows, columns).
        stride: from one window to the next.
        padding: zeros before and behind each axis.
        dilation: from one cell of a window to the next.
        groups: of channels, each convolved alone.
    """
    out, inside, *kernel = weight.shape
    padded = np.pad(x.swapaxes(0, 1), ((0, 0), (0, 0), *((each, each) for each in padding)))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = ((padded.shape[2 + k] - spans[k]) // stride[k] + 1 for k in (0, 1))
    found = np.empty((len(x), out, height, width))
    each = out // groups
    together = max(1, _TOGETHER // max(1, height * width * inside * math.prod(kernel)))
    for begin in range(0, len(x), together):
        some = padded[:, begin : begin + together]
        cells = np.empty((*kernel, len(padded), some.shape[1], height, width))
        for row, column in np.ndindex(*kernel):
            top, left = row * dilation[0], column * dilation[1]
            cells[row, column] = some[
                :, :, top : top + height * stride[0] : stride[0],
                left : left + width * stride[1] : stride[1],
            ]  # fmt: skip
        for group in range(groups):
            mine = slice(group * each, (group + 1) * each)
            part = cells[:, :, group * inside : (group + 1) * inside]
            filters = weight[mine].transpose(0, 2, 3, 1).reshape(each, -1)
            values = filters @ part.reshape(filters.shape[1], -1)
            found[begin : begin + together, mine] = values.reshape(
                each, some.shape[1], height, width
            ).swapaxes(0, 1)
    return found


def averaged(x: Array, cells: Array) -> Array:
    """Averages over windows: (B, C, P) to (B, C, windows), cells (windows, cells), -1 for none."""
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1)))  # the cell -1
    found: Array = padded[:, :, cells].sum(3) / (cells >= 0).sum(1)
    return found


def window_cells(size: Pair, out: Pair, kernel: Pair, stride: Pair, padding: Pair,
                 dilation: Pair) -> Array:  # fmt: skip
    """Which places of a map, in flat order, each window has: (windows, cells), -1 outside."""
    axes = [
        np.arange(out[k])[:, None] * stride[k] - padding[k] + np.arange(kernel[k]) * dilation[k]
        for k in (0, 1)
    ]
    return _crossed(axes, size)


def adaptive_cells(size: Pair, out: Pair) -> Array:
    """The windows of an adaptive pool: of n, i is from floor(i s / n) to ceil((i + 1) s / n)."""
    axes = []
    for length, count in zip(size, out, strict=True):
        begins = [k * length // count for k in range(count)]
        ends = [-(-(k + 1) * length // count) for k in range(count)]
        longest = max(end - begin for begin, end in zip(begins, ends, strict=True))
        axes.append(np.array([
            [place if place < end else -1 for place in range(begin, begin + longest)]
            for begin, end in zip(begins, ends, strict=True)
        ]))  # fmt: skip
    return _crossed(axes, size)


def _crossed(axes: list[Array], size: Pair) -> Array:
    rows, columns = (
        np.where((axis >= 0) & (axis < length), axis, -1)
        for axis, length in zip(axes, size, strict=True)
    )
    rows, columns = rows[:, None, :, None], columns[None, :, None, :]
    cells = np.where((rows >= 0) & (columns >= 0), rows * size[1] + columns, -1)
    return cells.reshape(rows.shape[0] * columns.shape[1], -1)
