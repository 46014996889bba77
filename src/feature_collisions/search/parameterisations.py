"""Parameterisations of corners: modules whose forward returns the images of all corners."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..patches.composite import Sources, blend, layout_for, tent

_NOISE, _LOGIT_NOISE = 0.01, 0.1  # in pixels of [0, 1], and in logits of a composite


class Pixels(nn.Module):
    """The corners' pixels, all starting from one image (sec. 3).

    Args:
        initial: (C, H, W) in [0, 1].
        count: number of corners K.
        memory_format: of the pixels.
    """

    def __init__(
        self,
        initial: Tensor,
        count: int,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        self.memory_format = memory_format
        self.pixels = nn.Parameter(self.laid(initial.repeat(count, 1, 1, 1)))

    def forward(self) -> Tensor:
        """The corners, (K, C, H, W)."""
        return self.pixels

    def penalised(self) -> tuple[Tensor, Tensor]:
        """The corners, and R(x) = 0 for each (sec. 3)."""
        return self.pixels, self.pixels.new_zeros(len(self.pixels))

    @torch.no_grad()
    def part(self, generator: torch.Generator) -> None:
        """Add different noise to each corner: equal corners have no direction to part in."""
        noise = torch.randn(self.pixels.shape, generator=generator)
        self.pixels.add_(_NOISE * noise.to(self.pixels)).clamp_(0, 1)

    def keep(self, rows: slice) -> None:
        """Keep only the corners `rows`."""
        self.pixels = nn.Parameter(self.laid(self.pixels.detach()[rows]))

    def laid(self, pixels: Tensor) -> Tensor:
        """Pixels in the parameter's memory format."""
        return pixels.contiguous(memory_format=self.memory_format)

    @torch.no_grad()
    def project(self) -> None:
        """Clip to [0, 1]; the authors clip to [0, 255] after every step."""
        self.pixels.clamp_(0, 1)


class PatchComposite(nn.Module):
    """Composites of the same sources, one per corner, with control parameters P (section 4).

    All corners start at Eq. 5's weights: the logits are their logarithm, up to a constant per pixel
    that softmax removes (section 4.2).

    Args:
        sources: M pasted patches with windows of w x w pixels.
        count: number of corners K.
        grid: None for one logit per pixel of a window, (K, M, w, w), as in the paper. With g, a
            g x g grid per window, (K, M, g, g), is enlarged by bicubic interpolation and added to
            Eq. 5's logits, so neighbouring pixels change together.
    """

    start: Tensor
    enlarge: Tensor

    def __init__(self, sources: Sources, count: int, grid: int | None = None) -> None:
        super().__init__()
        patches, side = len(sources.windows), sources.windows.shape[-1]
        self.sources, self.grid = sources, grid
        start = tent(side).log().to(sources.windows)
        self.register_buffer("start", start, persistent=False)
        self.layout: Any = None
        self.laid_out_for: tuple[torch.device, torch.dtype] | None = None
        if grid is None:
            self.control = nn.Parameter(start.repeat(count, patches, 1, 1))
            return
        identity = torch.eye(grid).to(start)[None, None]
        enlarge = F.interpolate(identity, (side, grid), mode="bicubic", align_corners=True)[0, 0]
        self.register_buffer("enlarge", enlarge, persistent=False)
        self.control = nn.Parameter(start.new_zeros(count, patches, grid, grid))

    def forward(self) -> Tensor:
        """The corners, (K, C, H, W)."""
        return self.penalised()[0]

    def penalised(self) -> tuple[Tensor, Tensor]:
        """The corners x = G(P, Q), (K, C, H, W), and R(P), (K,)."""
        self.sources = self.sources.like(self.control)  # the module may have been moved
        # Half precision is only for the network: rounding P would add visible steps to the image.
        with torch.autocast(self.control.device.type, enabled=False):
            logits = self.logits()
            kind = (logits.device, logits.dtype)
            if self.laid_out_for != kind:
                self.layout, self.laid_out_for = layout_for(logits, self.sources), kind
            return blend(logits, self.sources, self.layout)

    def logits(self) -> Tensor:
        """P before the softmax, (K, M, w, w)."""
        if self.grid is None:
            return self.control
        # Two large matrix products: many small ones take longer.
        taller = torch.matmul(self.enlarge, self.control)
        return (taller @ self.enlarge.T).add_(self.start)

    @torch.no_grad()
    def part(self, generator: torch.Generator) -> None:
        """Add different noise to each corner: equal corners have no direction to part in."""
        noise = torch.randn(self.control.shape, generator=generator)
        self.control.add_(_LOGIT_NOISE * noise.to(self.control))

    def keep(self, rows: slice) -> None:
        """Keep only the corners `rows`."""
        self.control = nn.Parameter(self.laid(self.control.detach()[rows]))

    def laid(self, control: Tensor) -> Tensor:
        """Control parameters in the parameter's memory format."""
        return control.contiguous()

    def project(self) -> None:
        """Do nothing: softmax keeps every composite in the range of its sources."""
