"""What is proved of the whole hull, not of samples: that it collides, and its class (sec. 2)."""

import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.devices import able
from ..errors import CollisionError
from ..hull.hull import Hull
from ..networks.graph import NotPiecewiseLinear
from ..networks.target import TargetFeatures
from ..networks.target_layer import TargetLayer
from ..search.losses import negative, positive
from .bounds import Bounds, rounding
from .linear_program import Polytope, affine_map, check_affine
from .piecewise import traced


def collision_proof(hull: Hull) -> dict[str, Any]:
    """How far any point of the hull is from colliding, where the layer is affine in the pixels.

    There the pre-activations of a mix are the mix of the corners' pre-activations, and the figures
    below are convex in them: their largest values over the hull are those over its corners.

    Returns:
        `positive_relative_max`, the largest L_pos over ||f(t)||; `inactive_max`, the largest
        pre-activation of a unit that is inactive in the target (at most 0: all of them stay off),
        or what one is below the ceiling that it was above;
        `feature_error_max`, the largest difference of a post-activation. All are of the corners
        as saved, float32, computed in float64. Or the `reason` why nothing is proved.
    """
    place = able(hull.corners.device)
    cut = TargetLayer(hull.model, hull.layer).to(place, torch.float64)
    try:
        check_affine(cut)
    except NotPiecewiseLinear as error:
        return {"reason": f"layer {hull.layer} is not affine in the pixels: {error}"}
    with torch.no_grad():
        images = torch.stack([hull.target, *hull.corners]).to(place, torch.float64)
        target, *corners = cut(images)
    features = TargetFeatures(target, hull.features.ceiling)
    preactivation = torch.stack(corners)
    oriented, norm = features.oriented(preactivation), float(features.features.norm())
    distance = float(positive(oriented, features.values, features.active).max())
    inactive = oriented[:, ~features.active]
    off = (features.rectified(preactivation) - features.features).abs().max()
    return {
        "positive_relative_max": distance / norm if norm else None,
        "inactive_max": float(inactive.max()) if inactive.numel() else None,
        "feature_error_max": float(off),
    }


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=False)  # it may convolve otherwise than by adding products up
def class_proof(hull: Hull, seconds: float = 5.0) -> dict[str, Any]:
    """Prove that every point of the hull is the target's class, by bounds over pieces of it.

    Pieces on which the bounds do not decide are halved across their longest edge.

    The statement is of exact arithmetic: every exact mix of the corners as saved, through the
    network with its weights as they are. Float64's rounding in the bounds is accounted for. The
    model as it rounds in float32 may decide otherwise where its margin is as small as its own
    rounding.

    Args:
        hull: the hull.
        seconds: when to stop halving.

    Returns:
        `share_proved` (by volume), `margin_min` (what the target's logit is at least over any
        other on the proved pieces), `pieces`. Or the `reason` why the network cannot be bounded.
    """
    try:
        network = traced(hull.model, images=hull.corners)
        bounds = Bounds(network)
        corners = hull.corners.to(able(hull.corners.device), torch.float64)
        count = len(corners)
        undecided = [(torch.eye(count).to(corners), 1.0)]
        share, least, pieces = 0.0, list[float](), 0
        started = time.monotonic()
        while undecided and (pieces == 0 or time.monotonic() < started + seconds):
            weights, volume = undecided.pop(0)
            images = torch.tensordot(weights, corners, 1)
            margin = _margin(bounds, network, images, rounding(count, images), hull.target_class)
            pieces += 1
            if margin > 0:
                share += volume
                least.append(margin)
            else:
                undecided += [(half, volume / 2) for half in _halves(weights, images)]
    except NotPiecewiseLinear as error:
        return {"reason": str(error)}
    return {"share_proved": share, "margin_min": min(least, default=None), "pieces": pieces}


def _margin(
    bounds: Bounds, network: torch.nn.Module, images: Tensor, error: Tensor, target_class: int
) -> float:
    """The margin that holds at every point of the hull of images, each known to `error`."""
    lower, upper = bounds.over(images, error)
    logits = network(images)
    if not ((lower <= logits) & (logits <= upper)).all():
        raise NotPiecewiseLinear("the network's own logits lie outside its bounds")
    others = torch.arange(logits.shape[1], device=logits.device) != target_class
    return float((lower[:, target_class, None] - upper[:, others]).min())


def _halves(weights: Tensor, images: Tensor) -> list[Tensor]:
    """A simplex of weights (K, K) cut across the edge that is longest in pixels."""
    distances = torch.cdist(images.flatten(1), images.flatten(1))
    first, second = divmod(int(distances.argmax()), len(images))
    middle = (weights[first] + weights[second]) / 2
    halves = [weights.clone(), weights.clone()]
    halves[0][first], halves[1][second] = middle, middle
    return halves


def depth(hull: Hull) -> dict[str, Any]:
    """How deep gradient descent's corners are: L_neg as a share of Eq. 2's exact optimum.

    Both are of the units that the hull says its corners push down. The optimum is at L_pos = 0, by
    linear programs. Empty where the layer is not affine, or where the corners are linear programs'
    already.
    """
    if hull.summary.get("solver") == "linear_program":
        return {}
    cut = TargetLayer(hull.model, hull.layer).cpu().double()  # where HiGHS solves
    try:
        affine = affine_map(cut, hull.target.shape)
    except NotPiecewiseLinear:
        return {}
    with torch.no_grad():
        target, *corners = cut(torch.stack([hull.target, *hull.corners]).cpu().double())
    features = TargetFeatures(target, hull.features.ceiling)
    polytope = Polytope.around(features, affine)
    units = tqdm(hull.units.tolist(), "Eq. 2's optima", unit="corner", mininterval=0.5, delay=1)
    try:
        optima = [polytope.solve("eq2", unit, torch.Generator()).value for unit in units]
    except CollisionError as error:
        return {"depth": {"reason": str(error)}}
    found = negative(
        features.oriented(torch.stack(corners)), ~features.active, hull.units.cpu()
    ).tolist()
    shares = [f / best if best < 0 else None for f, best in zip(found, optima, strict=True)]
    return {"depth": {"optimum": optima, "share": shares}}
