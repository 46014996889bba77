"""Baselines: balls of the hull's size, rotated simplices, plain Eq. 1 (Table 5)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.devices import device_for, in_half
from ..graph.graph import copied, evaluating
from ..graph.target_layer import TargetLayer
from ..hull.evaluator import Replica, batch_sizes, in_batches
from ..hull.hull import Hull
from ..hull.statistics import limit_of
from ..runs.evaluation import Evaluation, OtherImages, Sample
from ..search.optimizers import make_optimizer, rate_at
from ..settings.search import OptimizerSettings
from ..simplex import dirichlet, mixes

_SIMPLICES = 20  # simplices among which the samples are divided
_LOOK = 10  # steps between checks whether plain Eq. 1 is solved well enough


def radius(corners: Tensor) -> float:
    """Radius of the authors' ball: from the mean of the corners to the nearest (appendix B)."""
    return float((corners - corners.mean(0)).flatten(1).norm(dim=1).min())


def on_sphere(corners: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, C, H, W) on the ball's sphere, in any direction, not clipped."""
    directions = torch.randn(count, *corners.shape[1:], generator=generator).to(corners)
    return corners.mean(0) + radius(corners) * _unit(directions)


def on_span_sphere(corners: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The same in the corners' affine span, which contains the hull: the fair comparison."""
    basis = _basis(corners)
    coordinates = torch.randn(count, len(basis), generator=generator).to(corners)
    directions = (coordinates @ basis).view(count, *corners.shape[1:])
    return corners.mean(0) + radius(corners) * _unit(directions)


def turned(corners: Tensor, generator: torch.Generator) -> Tensor:
    """The corners' simplex (K, C, H, W), rotated about its centre uniformly at random (Haar).

    Distances between corners are preserved; pixels are not clipped.
    """
    basis, centre = _basis(corners), corners.mean(0)
    frame = torch.randn(basis.shape[1], len(basis), generator=generator).to(corners)
    coordinates = (corners - centre).flatten(1) @ basis.T
    q, r = torch.linalg.qr(frame)
    q = q * r.diagonal().sign()  # the signs that LAPACK chooses are not random (Mezzadri 2007)
    offsets: Tensor = coordinates @ q.T
    return centre + offsets.view_as(corners)


def _unit(directions: Tensor) -> Tensor:
    length: Tensor = directions.flatten(1).norm(dim=1)
    length = torch.where(length > 0, length, 1)  # 0 if all corners coincide
    return directions / length.view(-1, 1, 1, 1)


def _basis(corners: Tensor) -> Tensor:
    """Orthonormal rows (dimension, C H W) that span the corners' differences.

    There are fewer than K - 1 if corners coincide or are collinear: directions below the rounding
    of the pixels are dropped.
    """
    wide = corners.flatten(1).to(device_for(corners.device)).double()
    _, lengths, rows = torch.linalg.svd(wide[1:] - wide[0], full_matrices=False)
    rounding = torch.finfo(corners.dtype).eps * wide.norm()
    spanned: Tensor = rows[lengths > rounding].to(corners)
    return spanned


def dimension(corners: Tensor) -> int:
    """Dimension of the corners' affine span: K - 1, or less if they coincide or are collinear."""
    return len(_basis(corners))


def plain_corners(
    hull: Hull, count: int, steps: int, seed: int, precision: torch.dtype | None = None
) -> Tensor:
    """Images (count, C, H, W) of plain Eq. 1, without L_neg, from random starts.

    The search ends when all fit the target as well as the hull's corners, or after `steps`.

    Active units are compared before the ReLU. Eq. 1 as printed has the same zeros, but no gradient
    if such a unit is negative; on MNIST its error stays at half the features' norm.
    """
    evaluator, generator = hull.evaluator, torch.Generator().manual_seed(seed)
    layout = evaluator.own.layout
    images = torch.rand(count, *hull.target.shape, generator=generator)
    images = images.to(hull.features.features).contiguous(memory_format=layout)
    images.requires_grad_()
    settings = OptimizerSettings(rate=0.1, square_average=0.999)
    optimizer = make_optimizer(settings, [images])  # type: ignore[list-item]
    cut = TargetLayer(hull.graph, hull.layer)
    layers = {id(each): copied(cut).to(each.device) for each in evaluator.replicas}

    def slopes(on: Replica, part: Tensor) -> tuple[Tensor, Tensor]:
        part = part.detach().to(on.device).requires_grad_()
        with in_half(on.device, precision):
            preactivation = layers[id(on)](part).to(part.dtype)
        oriented = on.features.oriented(preactivation)
        kept = torch.where(on.features.active, oriented, oriented.relu())
        error = (kept - on.features.values).norm(dim=1)
        (gradient,) = torch.autograd.grad(error.sum(), part)
        return error.detach().to(hull.corners.device), gradient.to(hull.corners.device)

    with torch.no_grad():
        corners = hull.corners.to(images)
        enough = hull.features.error(layers[id(evaluator.own)](corners)).max()
    for step in tqdm(range(steps), "Plain Eq. 1", unit="step", mininterval=0.5, delay=1):
        optimizer.param_groups[0]["lr"] = rate_at(settings, step, steps)
        found = list(evaluator.map(slopes, images.split(evaluator.share(count))))
        error, gradient = (torch.cat(each) for each in zip(*found, strict=True))
        if step % _LOOK == 0 and (error <= enough).all():
            break
        images.grad = gradient.contiguous(memory_format=layout)  # as fused Adam assumes
        optimizer.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return images.detach()


def other_images(hull: Hull, images: Tensor) -> OtherImages | None:
    """Feature errors of images of the data set: what a limit on the hull's error means.

    Args:
        hull: the hull.
        images: (n, C, H, W) in [0, 1]; the target among them is left out.

    Returns:
        None if no image is left, or if f(t) is 0.
    """
    images = images.to(hull.corners)
    images = images[(images != hull.target).flatten(1).any(1)]
    norm = hull.features.features.norm()
    if not (len(images) and norm > 0):
        return None

    @torch.no_grad()
    def error(on: Replica, part: Tensor) -> Tensor:
        found = on.features.error(on.observe(part.to(on.device))[1])
        return found.to(hull.corners.device)

    evaluator = hull.evaluator
    with evaluating(hull.model):
        found = torch.cat(list(evaluator.map(error, images.split(evaluator.share(len(images))))))
    errors = found / norm
    return OtherImages(
        images=len(errors),
        within=int((errors <= limit_of(hull.summary)).sum()),
        nearest=float(errors.min()),
        median=float(errors.median()),
    )


Draw = Callable[[Tensor, int, torch.Generator], Tensor]
"""Corners (K, C, H, W) and a number to so many points (n, C, H, W)."""


def balls(hull: Hull, samples: int, seed: int) -> Evaluation:
    """Table 5: accuracy on the sphere, not clipped and clipped, and within the corners' span."""

    def points(name: str, draw: Draw, clip: bool) -> Sample:
        generator = torch.Generator().manual_seed(seed)
        pieces = (draw(hull.corners, n, generator) for n in hull.evaluator.pieces(samples))
        batches = in_batches(pieces, hull.evaluator.batch_size)
        images = (batch.clamp(0, 1) if clip else batch for batch in batches)
        return hull.evaluator.measure(images, samples, name)

    return (
        _share(hull, "ball", points("Ball", on_sphere, False))
        | _share(hull, "ball_clipped", points("Ball, clipped", on_sphere, True))
        | _share(hull, "ball_span", points("Ball in the corners' span", on_span_sphere, False))
        | {"ball_radius": radius(hull.corners) * hull.summary.distance_scale}
    )


def _share(hull: Hull, name: str, found: Sample) -> Evaluation:
    """Entries of a baseline's points: share of the target's class, feature error, and so on."""
    compared = {f"{name}_{key}": found[key] for key in hull.output.compared if key in found}
    return Evaluation(**compared)


def simplices(hull: Hull, samples: int, seed: int) -> Evaluation:
    """Accuracy in randomly rotated simplices of the hull's size and shape."""
    generator = torch.Generator().manual_seed(seed)

    def images() -> Iterator[Tensor]:
        for count in batch_sizes(samples, -(-samples // _SIMPLICES)):
            corners = turned(hull.corners, generator)
            for size in hull.evaluator.pieces(count):
                yield mixes(dirichlet(size, len(corners), generator), corners)

    batches = in_batches(images(), hull.evaluator.batch_size)
    found = hull.evaluator.measure(batches, samples, "Turned simplices")
    return _share(hull, "random_simplex", found)


def plain(
    hull: Hull, samples: int, seed: int, steps: int, precision: torch.dtype | None = None
) -> Evaluation:
    """The hull of as many plain solutions of Eq. 1: its size, and the fit of corners and points.

    They are searched in `precision`, for example half, and measured in the model's.
    """
    corners = plain_corners(hull, len(hull.corners), steps, seed, precision)
    with torch.no_grad():
        preactivation = TargetLayer(hull.graph, hull.layer)(corners)
    errors = (hull.features.rectified(preactivation) - hull.features.features).norm(dim=1)
    norm = float(hull.features.features.norm())
    found = hull.sample(samples, seed=seed, corners=corners, name="Hull of plain Eq. 1")
    distance = float(torch.pdist(corners.flatten(1)).mean())
    figures = {
        "plain_corner_error_relative_max": float(errors.max()) / norm if norm else None,
        "plain_corner_distance_mean": distance * hull.summary.distance_scale,
    }
    if "probability_mean" in found:
        figures["plain_probability_mean"] = found.probability_mean
    return _share(hull, "plain", found) | figures
