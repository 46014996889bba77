"""Whether a person sees the corners' differences: large-scale differences or noise (sec. 4)."""

import torch
from torch import Tensor

from ..data.images import SQUARES, pooled_distance
from ..hull.distances import low_pass
from ..hull.hull import Hull
from ..runs.evaluation import Evaluation
from .differences import similarity


def macro_share(images: Tensor) -> float | None:
    """Share of the mean distance between two images that averages over 8x8 pixels preserve.

    The distance of averages is multiplied by 8, so the share is 1 if differences are constant over
    such squares. It is near 0.1 for noise, and at least 0.5 for a visible change.

    Args:
        images: (K, C, H, W), two or more.

    Returns:
        The share; None if images are equal or smaller than 8 pixels.
    """
    if min(images.shape[2:]) < SQUARES[-1]:
        return None
    whole = pooled_distance(images, 1)
    return pooled_distance(images, SQUARES[-1]) / whole if whole > 0 else None


def visible(hull: Hull) -> Evaluation:
    """What tells visible differences from noise.

    `total_variation` is the mean over the corners of R(P) (sec. 4.1), of composites only.
    """
    variations = [entry.total_variation for entry in hull.summary.corners]
    known = [value for value in variations if value is not None]
    return Evaluation(
        corner_distance_min=float(hull.corner_distances().min()),
        macro_share=macro_share(hull.corners),
        total_variation=sum(known) / len(known) if len(known) == len(variations) else None,
        ssim_to_target=similarity(hull.corners, hull.target),
        ssim_to_initial=similarity(hull.corners, hull.initial),
        outline_of_target=outline(hull.corners, hull.target),
        outline_of_initial=outline(hull.corners, hull.initial),
    )


def outline(images: Tensor, other: Tensor) -> float | None:
    """Mean correlation of low-passed images (K, C, H, W) with another, (C, H, W); at most 1.

    None if a picture has only one colour.
    """
    flat = low_pass(torch.cat([other[None], images])).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    norms = flat.norm(dim=1)
    if not bool((norms > 1e-5).all()):  # rounding may leave a little
        return None
    return float(((flat[1:] @ flat[0]) / (norms[1:] * norms[0])).mean())
