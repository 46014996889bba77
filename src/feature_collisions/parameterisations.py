"""What is optimised: modules whose forward gives the images of all corners."""

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """The corners' pixels themselves, all starting from one image (sec. 3).

    Args:
        initial: (C, H, W) in [0, 1].
        count: number of corners K.
        memory_format: how their numbers lie in memory.
    """

    def __init__(
        self,
        initial: Tensor,
        count: int,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        super().__init__()
        pixels = initial.repeat(count, 1, 1, 1).contiguous(memory_format=memory_format)
        self.pixels = nn.Parameter(pixels)

    def forward(self) -> Tensor:
        """The corners, (K, C, H, W)."""
        return self.pixels

    @torch.no_grad()
    def project(self) -> None:
        """Clip to [0, 1], as the authors do after every step (they to [0, 255])."""
        self.pixels.clamp_(0, 1)
