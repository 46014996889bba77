"""What is proved of the whole hull, not of samples: that it collides, and its class (sec. 2)."""

import time
from typing import Any

import torch
from torch import Tensor

from .bounds import Bounds
from .errors import CollisionError, SettingError
from .features import TargetLayer
from .hull import Hull
from .linear_program import LinearPrograms, check_affine
from .losses import positive
from .piecewise import NotPiecewiseLinear, traced

_ROUNDING = 1e-9  # of the largest bound; float64 keeps 1e-16 in each step


def collision_proof(hull: Hull) -> dict[str, Any]:
    """How far any point of the hull is from colliding, where the layer is affine in the pixels.

    There the pre-activations of a mix are the mix of the corners' pre-activations, and the figures
    below are convex in them: their largest values over the hull are those over its corners.

    Returns:
        `positive_relative_max`, the largest L_pos over ||f(t)||; `inactive_max`, the largest
        pre-activation of a unit that is inactive in the target (at most 0: all of them stay off);
        `feature_error_max`, the largest difference of a post-activation. All are of the corners
        as saved, float32, computed in float64. Or the `reason` why nothing is proved.
    """
    cut = TargetLayer(hull.model, hull.layer).double()
    try:
        check_affine(cut)
    except NotPiecewiseLinear as error:
        return {"reason": f"layer {hull.layer} is not affine in the pixels: {error}"}
    with torch.no_grad():
        images = torch.stack([hull.target, *hull.corners]).double()
        target, *corners = cut(images)
    preactivation, active, features = torch.stack(corners), target >= 0, target.relu()
    norm = float(features.norm())
    distance = float(positive(preactivation, features, active).max())
    inactive = preactivation[:, ~active]
    return {
        "positive_relative_max": distance / norm if norm else None,
        "inactive_max": float(inactive.max()) if inactive.numel() else None,
        "feature_error_max": float((preactivation.relu() - features).abs().max()),
    }


@torch.no_grad()
def class_proof(hull: Hull, seconds: float = 5.0) -> dict[str, Any]:
    """Prove that every point of the hull is the target's class, by bounds over pieces of it.

    Pieces on which the bounds do not decide are halved across their longest edge.

    Args:
        hull: the hull.
        seconds: when to stop halving.

    Returns:
        `share_proved` (by volume), `margin_min` (what the target's logit is at least over any
        other on the proved pieces), `pieces`, `rounding` (what a margin had to exceed). Or the
        `reason` why the network cannot be bounded.
    """
    try:
        network = traced(hull.model)
        bounds = Bounds(network)
        corners, count = hull.corners.double(), len(hull.corners)
        undecided = [(torch.eye(count, dtype=torch.float64), 1.0)]
        share, least, pieces, rounding = 0.0, list[float](), 0, 0.0
        started = time.monotonic()
        while undecided and (pieces == 0 or time.monotonic() < started + seconds):
            weights, volume = undecided.pop(0)
            images = torch.tensordot(weights, corners, 1)
            margin, slack = _margin(bounds, network, images, hull.target_class)
            pieces, rounding = pieces + 1, max(rounding, slack)
            if margin > slack:
                share += volume
                least.append(margin)
            else:
                undecided += [(half, volume / 2) for half in _halves(weights, images)]
    except NotPiecewiseLinear as error:
        return {"reason": str(error)}
    return {
        "share_proved": share,
        "margin_min": min(least, default=None),
        "pieces": pieces,
        "rounding": rounding,
    }


def _margin(
    bounds: Bounds, network: torch.nn.Module, images: Tensor, target_class: int
) -> tuple[float, float]:
    """The margin that holds at every point of the images' hull, and what rounding can be in it."""
    lower, upper = bounds.over(images)
    slack = _ROUNDING * float(torch.maximum(lower.abs(), upper.abs()).max())
    logits = network(images)
    if not ((lower <= logits + slack) & (logits <= upper + slack)).all():
        raise NotPiecewiseLinear("the network's own logits lie outside its bounds")
    others = torch.arange(logits.shape[1]) != target_class
    return float((lower[:, target_class, None] - upper[:, others]).min()), slack


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

    The optimum is at L_pos = 0, by linear programs. Empty where the layer is not affine, or where
    the corners are linear programs' already.
    """
    if hull.summary.get("solver") == "linear_program":
        return {}
    numbers = [int(entry["corner"]) for entry in hull.summary["corners"]]
    try:
        programs = LinearPrograms(hull.model, hull.layer, hull.initial, hull.target, numbers)
    except SettingError:
        return {}
    try:
        optima = [solution.value for solution in programs.solutions("Eq. 2's optima")]
    except CollisionError as error:
        return {"depth": {"reason": str(error)}}
    found = [float(entry["negative"]) for entry in hull.summary["corners"]]
    shares = [f / best if best < 0 else None for f, best in zip(found, optima, strict=True)]
    return {"depth": {"optimum": optima, "share": shares}}
