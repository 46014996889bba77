"""Barycentric weights of points in a hull: sampling, projection, distance from the centroid.

Shrink the hull of K corners about its centroid c = (1/K, ..., 1/K) to the share s. It contains the
points c + s (w - c) for all weights w: the weights of at least (1 - s) / K. So a point needs the
share

    gauge(w) = max_k (1 - K w_k).

Over a subdomain with vertices v_j the least gauge is the value of a matrix game. By duality it is

    min_x max_k (1 - K x_k) = max_l min_j sum_k l_k (1 - K v_jk),   l >= 0, sum_k l_k = 1,

so any l gives a lower bound. If s is the least gauge of all unverified subdomains, the interior of
the shrunk hull is in verified subdomains only. These are closed, so they contain its boundary.
"""

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

_PROGRAMS = 2000  # linear programs at most; other subdomains keep the simpler bound
_SLACK = 1e-12  # rounding error of a gauge, which is at most 1


def dirichlet(count: int, corners: int, generator: torch.Generator) -> Tensor:
    """Weights (count, corners) uniform on the simplex, Dirichlet(1, ..., 1)."""
    draws = torch.empty(count, corners, dtype=torch.float64).exponential_(generator=generator)
    return draws / draws.sum(1, keepdim=True)


def stick_breaking(count: int, corners: int, generator: torch.Generator) -> Tensor:
    """The authors' weights (count, corners): w1 = u1, w2 = u2 (1 - w1), ..., the last the rest.

    Their means are 1/2, 1/4, 1/8, ...: they favour the first corners.

    Example:
        >>> weights = stick_breaking(10_000, 3, torch.Generator().manual_seed(0))
        >>> weights.mean(0).round(decimals=2)
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    breaks = torch.rand(count, corners - 1, generator=generator, dtype=torch.float64)
    left = torch.cat([torch.ones(count, 1, dtype=torch.float64), (1 - breaks).cumprod(1)], 1)
    return torch.cat([breaks, torch.ones(count, 1, dtype=torch.float64)], 1) * left


SAMPLERS = {"dirichlet": dirichlet, "stick_breaking": stick_breaking}


def mixes(weights: Tensor, corners: Tensor) -> Tensor:
    """Interpolations (B, C, H, W) of corners (K, C, H, W) with weights (B, K).

    They keep the corners' memory format.
    """
    images: Tensor = torch.tensordot(weights.to(corners), corners, 1)
    return images.contiguous(memory_format=layout_of(corners))


def layout_of(images: Tensor) -> torch.memory_format:
    """Memory format of `images`: hulls found in channels-last format are measured in it."""
    last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def project_to_simplex(points: Tensor) -> Tensor:
    """The nearest weights (B, K) that are at least 0 and add up to 1.

    Example:
        >>> project_to_simplex(torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    ranked = points.sort(1, descending=True).values
    excess = ranked.cumsum(1) - 1
    index = torch.arange(1, points.shape[1] + 1, device=points.device)
    last = (ranked - excess / index > 0).sum(1, keepdim=True)
    return (points - excess.gather(1, last - 1) / last).clamp_min(0)


def gauge(weights: Tensor) -> Tensor:
    """Smallest share of the shrunk hulls that contain each point: weights (..., K) to (...)."""
    return (1 - weights.shape[-1] * weights.amin(-1)).clamp(0, 1)


def scale_without(subdomains: Tensor, most: float = 1.0) -> float:
    """Share to which the hull can be shrunk without touching any subdomain (n, V, K).

    It is the largest up to `most`, or smaller if there are very many subdomains.
    """
    count = subdomains.shape[2]
    least = begins_at(subdomains)
    refined = torch.zeros(len(least), dtype=torch.bool)
    for _ in range(_PROGRAMS):
        if not len(least) or refined[k := int(least.argmin())] or least[k] > most:
            break
        refined[k] = True
        least[k] = max(float(least[k]), _best_bound(1 - count * subdomains[k].numpy()))
    found = float(least.min()) - _SLACK if len(least) else 1.0
    return min(max(found, 0.0), most)


def begins_at(subdomains: Tensor) -> Tensor:
    """Lower bounds (n,) on the least gauge: l uniform on the m farthest facets, best m."""
    count = subdomains.shape[2]
    farthest = subdomains.amax(1, keepdim=True).argsort(2).expand_as(subdomains)
    together = subdomains.gather(2, farthest).cumsum(2) / torch.arange(1, count + 1)
    return (1 - count * together.amax(1)).amax(1)


def _best_bound(game: np.ndarray) -> float:
    """Lower bound min_j (A l)_j on the value of a game A (V, K), by linear programming."""
    rows, columns = game.shape
    found = linprog(
        [0.0] * columns + [-1.0],
        A_ub=np.hstack([-game, np.ones((rows, 1))]), b_ub=np.zeros(rows),
        A_eq=[[1.0] * columns + [0.0]], b_eq=[1.0],
        bounds=[(0, None)] * columns + [(None, None)],
    )  # fmt: skip
    if found.x is None:
        return -1.0
    weigh = np.maximum(found.x[:-1], 0)
    return float((game @ (weigh / weigh.sum())).min())
