"""Visible differences of corners: SSIM, LPIPS, and regions that differ most (Figure 8 b)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from ..hull.hull import Hull
from ..runs.evaluation import Box, Evaluation

_BACKBONE = "squeezenet1_1-b8a52dc0.pth"  # LPIPS's smallest network, by torchvision's name
_SSIM_WINDOW = 11  # pixels: Gaussian, sigma 1.5, as in the SSIM paper


def boxes(corners: Tensor, count: int = 3, part: int = 5) -> list[Box]:
    """The regions where corners (K, C, H, W) differ most, none touching another.

    Args:
        corners: two images or more.
        count: largest number of boxes.
        part: side of the image divided by that of a box.
    """
    spread = corners.var(0).sum(0)
    total = float(spread.sum())
    height, width = (max(1, side // part) for side in spread.shape)
    sums = F.avg_pool2d(spread[None, None], (height, width), 1)[0, 0] * (height * width)
    found: list[Box] = []
    while len(found) < count and sums.max() > 0:
        row, column = divmod(int(sums.argmax()), sums.shape[1])
        share = float(sums[row, column]) / total
        found.append(Box(row=row, column=column, height=height, width=width, share=share))
        sums[
            max(0, row - height) : row + height + 1, max(0, column - width) : column + width + 1
        ] = 0
    return found


def ssim_mean(corners: Tensor) -> float | None:
    """Mean structural similarity between two corners, 1 for equal ones; None under 11 pixels."""
    first, second = torch.triu_indices(len(corners), len(corners), 1)
    return similarity(corners[first], corners[second])


def similarity(images: Tensor, others: Tensor) -> float | None:
    """Mean SSIM of images (B, C, H, W) with others, or with one (C, H, W); None under 11 pixels."""
    if min(images.shape[2:]) < _SSIM_WINDOW:
        return None
    others = others.expand_as(images)
    found = structural_similarity_index_measure(images, others, data_range=1.0)
    assert isinstance(found, Tensor)
    return float(found)


def lpips_weights() -> Path:
    """Path of the weights for LPIPS in torchvision's cache; they are never downloaded here."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONE


@torch.inference_mode()
def lpips_mean(corners: Tensor) -> float | None:
    """Mean LPIPS (SqueezeNet) between two corners, 0 for equal ones; None without its weights."""
    if not lpips_weights().exists() or min(corners.shape[2:]) < 32:
        return None
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", normalize=True).to(corners.device)
    coloured = corners.expand(-1, 3, -1, -1)
    for first, second in zip(*torch.triu_indices(len(corners), len(corners), 1), strict=True):
        metric.update(coloured[first][None], coloured[second][None])
    return float(metric.compute())


def differences(hull: Hull) -> Evaluation:
    """How different the corners look: `corner_ssim_mean`, `corner_lpips_mean`, `boxes`."""
    lpips = lpips_mean(hull.corners)
    found = Evaluation(
        corner_ssim_mean=ssim_mean(hull.corners),
        corner_lpips_mean=lpips,
        boxes=boxes(hull.corners),
    )
    if lpips is None:
        small = min(hull.corners.shape[2:]) < 32
        found.corner_lpips_reason = (
            "images under 32 pixels are too small for LPIPS's network"
            if small
            else f"its weights are missing: put {_BACKBONE} into torch.hub's checkpoints"
        )
    return found
