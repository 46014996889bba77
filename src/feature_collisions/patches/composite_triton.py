"""The composite's kernels for a GPU, in Triton: section 4's blend, R(P) (sec. 4.1), their gradient.

Like `composite.c` they use no planes: the 12.8 million control parameters of five corners are read
three times and written once a step. One program adds all values of a pixel in the windows' order,
so the same logits give the same images.

Outside its window, and outside the image, a control parameter p is 0. `TRITON_INTERPRET=1` runs the
kernels on the CPU, slowly: the tests do.
"""

import functools
import warnings
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import first_line

_WIDTH = 32  # pixels of a row per program
_ROWS = 8  # rows of a window per program


class Tiles(NamedTuple):
    """Windows on each `_WIDTH` pixels of a row: int32 (H, B, most), and their number (H, B)."""

    windows: Tensor
    counts: Tensor


def tiles(top: Tensor, left: Tensor, side: int, size: tuple[int, int]) -> Tiles:
    """Tiles of windows at these rows and columns (M,), on an image of `size`."""
    height, width = size
    rows = torch.arange(height, device=top.device)[:, None]
    columns = torch.arange(0, width, _WIDTH, device=top.device)[:, None]
    in_row = (top <= rows) & (rows < top + side)
    in_block = (left < columns + _WIDTH) & (columns < left + side)
    meet = in_row[:, None] & in_block
    counts = meet.sum(2)
    numbers = meet.to(torch.uint8).argsort(dim=2, descending=True, stable=True)
    return Tiles(numbers[:, :, : int(counts.max())].int().contiguous(), counts.int())


@functools.cache
def works(device: torch.device) -> bool:
    """Whether kernels can be compiled for `device`; if not, warn with the reason."""
    if device.type != "cuda":
        return False
    try:
        logits = torch.zeros(1, 1, 4, 4, device=device, requires_grad=True)
        places = torch.zeros(1, dtype=torch.int64, device=device)
        sources = torch.zeros(1, 1, 4, 4, device=device)
        images, variation = Blend.apply(
            logits, sources, places, places, (4, 4), tiles(places, places, 4, (4, 4))
        )
        (images.sum() + variation.sum()).backward()
        torch.cuda.synchronize(device)
    except Exception as error:  # any error of Triton, its compiler or the driver
        warnings.warn(
            f"composites are computed by plain PyTorch, many times slower: Triton cannot compile "
            f"for {device} ({first_line(error)}); it needs a C compiler, named in the variable CC",
            stacklevel=2,
        )
        return False
    return True


@triton.jit
def _p(logits, lse, window, image, row, column, y, x, side, height, width):
    """exp(P - lse) within the window and the image, otherwise 0."""
    there = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    there = there & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    logit = tl.load(logits + window + row * side + column, there, other=0.0)
    total = tl.load(lse + image + y * width + x, there, other=0.0)
    return tl.where(there, tl.exp(logit - total), 0.0)


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, 0.0) - tl.where(x < 0, 1.0, 0.0)


@triton.jit
def _blend(
    logits, sources, top, left, windows, counts, images, lse,
    count, side, height, width, most,
    channels: tl.constexpr, planes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Images and lse of `block` pixels of row y of corner k, by online softmax."""
    y, tile, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x = tile * block + tl.arange(0, block)
    plane = tl.arange(0, planes)[:, None]
    blocks = tl.cdiv(width, block)
    listed = (y * blocks + tile) * most
    high = tl.full([block], -3.0e38, tl.float32)
    total = tl.zeros([block], tl.float32)
    image = tl.zeros([planes, block], tl.float32)
    for j in range(tl.load(counts + y * blocks + tile)):
        m = tl.load(windows + listed + j).to(tl.int64)
        row = y - tl.load(top + m)
        column = x - tl.load(left + m)
        inside = (column >= 0) & (column < side) & (x < width)
        place = row * side + column
        p = tl.load(logits + (k.to(tl.int64) * count + m) * side * side + place, inside,
                    other=-float("inf"))  # fmt: skip
        q = tl.load(sources + (m * channels + plane) * side * side + place[None, :],
                    inside[None, :] & (plane < channels), other=0.0)  # fmt: skip
        higher = tl.maximum(high, p)
        kept, e = tl.exp(high - higher), tl.exp(p - higher)
        total = total * kept + e
        image = image * kept[None, :] + e[None, :] * q
        high = higher
    out = (k.to(tl.int64) * channels + plane) * height * width + y * width + x[None, :]
    shown = (x < width)[None, :] & (plane < channels)
    tl.store(images + out, image / total[None, :], shown)
    tl.store(lse + k * height * width + y * width + x, high + tl.log(total), x < width)


@triton.jit
def _slope(logits, lse, window, image, row, column, y, x, side, height, width):
    """p, dR/dp, and p's part of R: differences to the right, below, and at the window's start."""
    p = _p(logits, lse, window, image, row, column, y, x, side, height, width)
    up = _p(logits, lse, window, image, row - 1, column, y - 1, x, side, height, width)
    down = _p(logits, lse, window, image, row + 1, column, y + 1, x, side, height, width)
    before = _p(logits, lse, window, image, row, column - 1, y, x - 1, side, height, width)
    after = _p(logits, lse, window, image, row, column + 1, y, x + 1, side, height, width)
    has_up, has_down, has_before, has_after = y > 0, y + 1 < height, x > 0, x + 1 < width
    slope = tl.where(has_up, _sign(p - up), 0.0) + tl.where(has_down, _sign(p - down), 0.0)
    slope += tl.where(has_before, _sign(p - before), 0.0)
    slope += tl.where(has_after, _sign(p - after), 0.0)
    own = tl.where(has_down, tl.abs(p - down), 0.0) + tl.where(has_after, tl.abs(p - after), 0.0)
    own += tl.where(has_up & (row == 0), p, 0.0) + tl.where(has_before & (column == 0), p, 0.0)
    return p, slope, own


@triton.jit
def _variation(
    logits, lse, top, left, windows, counts, push, parts,
    count, side, height, width, most,
    block: tl.constexpr,
):  # fmt: skip
    """For the pixels of `_blend`: the sum of p dR/dp over windows, and their part of R."""
    y, tile, k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    x = tile * block + tl.arange(0, block)
    blocks = tl.cdiv(width, block)
    listed = (y * blocks + tile) * most
    image = k * height * width
    pushed = tl.zeros([block], tl.float32)
    owned = tl.zeros([block], tl.float32)
    for j in range(tl.load(counts + y * blocks + tile)):
        m = tl.load(windows + listed + j).to(tl.int64)
        window = (k.to(tl.int64) * count + m) * side * side
        row = y - tl.load(top + m)
        column = x - tl.load(left + m)
        p, slope, own = _slope(logits, lse, window, image, row, column, y, x, side, height, width)
        inside = (column >= 0) & (column < side) & (x < width)
        pushed += tl.where(inside, p * slope, 0.0)
        owned += tl.where(inside, own, 0.0)
    tl.store(push + image + y * width + x, pushed, x < width)
    tl.store(parts + (k * height + y) * blocks + tile, tl.sum(owned, 0))


@triton.jit
def _descend(
    logits, sources, top, left, lse, gradient, mean, weight, found,
    count, side, height, width,
    channels: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits in `rows` rows of a window: p (dL/dp - mean of dL/dp over windows)."""
    m, part, k = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row = part * rows + tl.arange(0, rows)[:, None]
    column = tl.arange(0, columns)[None, :]
    y, x = row + tl.load(top + m), column + tl.load(left + m)
    window, image = (k.to(tl.int64) * count + m) * side * side, k * height * width
    p, slope, _ = _slope(logits, lse, window, image, row, column, y, x, side, height, width)
    held = (row < side) & (column < side)
    inside = held & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    slope = slope * tl.load(weight + k)
    for channel in range(channels):
        q = tl.load(sources + (m * channels + channel) * side * side + row * side + column,
                    inside, other=0.0)  # fmt: skip
        plane = (k.to(tl.int64) * channels + channel) * height * width
        slope += q * tl.load(gradient + plane + y * width + x, inside, other=0.0)
    slope -= tl.load(mean + image + y * width + x, inside, other=0.0)
    tl.store(found + window + row * side + column, tl.where(inside, p * slope, 0.0), held)


class Blend(torch.autograd.Function):
    """Logits (K, M, w, w) and sources (M, C, w, w) to images (K, C, H, W) and R (K,)."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        sources: Tensor,
        top: Tensor,
        left: Tensor,
        size: tuple[int, int],
        given: Tiles,
    ) -> tuple[Tensor, Tensor]:
        """Save per pixel the log of the sum of exp(P) and the sum of p dR/dp for `backward`."""
        logits, sources = logits.contiguous(), sources.contiguous()
        (corners, count, side, _), channels = logits.shape, sources.shape[1]
        images = logits.new_empty(corners, channels, *size)
        lse, push = logits.new_empty(2, corners, *size)
        blocks, most = given.windows.shape[1:]
        parts = logits.new_empty(corners, size[0], blocks)
        grid, numbers = (size[0], blocks, corners), (count, side, *size, most)
        planes = triton.next_power_of_2(channels)
        _blend[grid](
            logits, sources, top, left, *given, images, lse, *numbers,
            channels=channels, planes=planes, block=_WIDTH,
        )  # fmt: skip
        _variation[grid](
            logits, lse, top, left, *given, push, parts, *numbers, block=_WIDTH
        )  # fmt: skip
        ctx.save_for_backward(logits, sources, top, left, lse, push, images)
        return images, parts.double().sum((1, 2)).to(logits)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, weight: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient with respect to the logits."""
        logits, sources, top, left, lse, push, images = ctx.saved_tensors
        (corners, count, side, _), (height, width) = logits.shape, images.shape[2:]
        gradient, weight = gradient.contiguous(), weight.contiguous()
        mean = (gradient * images).sum(1) + weight[:, None, None] * push
        found = torch.empty_like(logits)
        _descend[(count, triton.cdiv(side, _ROWS), corners)](
            logits, sources, top, left, lse, gradient, mean, weight, found,
            count, side, height, width,
            channels=sources.shape[1], rows=_ROWS, columns=triton.next_power_of_2(side),
        )  # fmt: skip
        return found, None, None, None, None, None
