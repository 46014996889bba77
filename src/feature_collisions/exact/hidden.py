"""Number of directions of the pixels that a layer sees, and hides, at the target."""

import time

import torch
from torch import Tensor, fx

from ..data.memory import images_at_once
from ..errors import SettingError
from ..graph.simpler import write_detach_out
from ..graph.target import TargetFeatures, logits_of
from ..graph.target_layer import TargetLayer
from ..hull.hull import Hull
from ..runs.evaluation import Evaluation, Rounding
from .first_layer import first_layer
from .polytope import polytope_of

_BATCH = 64  # gradients computed at once, if memory allows
_SMALL = 1e-10  # relative to the largest singular value; smaller ones are rounding


def hidden_dimensions(hull: Hull, seconds: float) -> Evaluation:
    """Count the directions of the pixels that the layer's active units see and hide at the target.

    The count is exact for a layer that is affine in the pixels. For deeper layers it is the rank of
    the Jacobian at the target, from as many random combinations of its rows as time allows (Halko
    et al. 2011). If these are all independent, the layer sees at least so many.

    Args:
        hull: its layer and target.
        seconds: time for a deeper layer.

    Returns:
        `pixel_dimensions`; `seen_dimensions`; `hidden_dimensions`, the rest; and
        `hidden_dimensions_exact`: False if the time ended first, so fewer may be hidden.
    """
    pixels, exact = hull.target.numel(), True
    try:
        layer = first_layer(hull.graph, hull.layer)
        polytope = polytope_of(layer, hull.target.cpu())
        seen, exact = pixels - polytope.hidden, polytope.counted
    except SettingError:
        seen, exact = _rank(hull, seconds)
    return Evaluation(
        pixel_dimensions=pixels,
        seen_dimensions=seen,
        hidden_dimensions=pixels - seen,
        hidden_dimensions_exact=exact,
    )


@torch.inference_mode(False)
@torch.enable_grad()
def _rank(hull: Hull, seconds: float) -> tuple[int, bool]:
    """Rank of the layer's Jacobian at the target, or a lower bound if time ends first."""
    started, generator = time.perf_counter(), torch.Generator().manual_seed(0)
    layer = TargetLayer(hull.graph, hull.layer).cpu().double()
    if isinstance(layer.network, fx.GraphModule):
        write_detach_out(layer.network)
    target = hull.target.detach().cpu().double()
    features = TargetFeatures(layer(target[None])[0].detach(), hull.features.activation)
    least = min(target.numel(), int(features.active.sum()))
    rows = torch.zeros(0, target.numel(), dtype=torch.float64)
    count, looked = min(_BATCH, images_at_once(layer, target[None])), 0
    while len(rows) < least + 1:
        rows = torch.cat([rows, _gradients(layer, features, target, count, generator)])
        late = time.perf_counter() - started > seconds
        if len(rows) < 2 * looked and len(rows) <= least and not late:
            continue  # the rank is computed whenever the number of rows has doubled
        sizes, looked = torch.linalg.svdvals(rows), len(rows)
        rank = min(least, int((sizes > _SMALL * sizes[0]).sum()))
        if rank < len(rows):
            return rank, True
        if late:
            return rank, False
    return least, True


def _gradients(
    layer: TargetLayer,
    features: TargetFeatures,
    target: Tensor,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Gradients (count, n) of random combinations of the features."""
    images = target.repeat(count, 1, 1, 1).requires_grad_()
    values = features.rectified(layer(images))
    mixed = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    (found,) = torch.autograd.grad((mixed * values).sum(), images)
    return found.flatten(1)


@torch.no_grad()
def rounded(hull: Hull) -> Evaluation:
    """Effect of rounding on the first layer's values of exact corners: `rounding`.

    It is the largest ||W (c - t)|| / ||W t|| of a corner, and so of every interpolation, since it
    is convex: in `float64` as found, in `float32` as saved, in `uint8` as in the PNGs. For inactive
    units only the violation of the edge counts. `amplification` is measured at the PNGs: the
    relative change of the output, in L2, over that of the first layer's values.
    """
    if hull.summary.solver != "exact":
        return Evaluation()
    layer, corners = first_layer(hull.graph, hull.layer), hull.corners
    features = layer.features(hull.target.cpu())
    pixels = (corners.cpu().double() * 255).round() / 255
    saved, pngs = (layer.residual(images, features) for images in (corners.cpu(), pixels))
    images = torch.cat([hull.target[None], pixels.to(corners)])
    target, *others = logits_of(hull.model, images).cpu().double()
    amplification = None
    if pngs.any() and target.any():
        off = (torch.stack(others) - target).norm(dim=1) / target.norm()
        amplification = float((off / pngs).nan_to_num(0, 0).max())
    return Evaluation(
        rounding=Rounding(
            float64=hull.summary.residual, float32=float(saved.max()), uint8=float(pngs.max()),
            amplification=amplification,
        )
    )  # fmt: skip
