"""Exact corners whose PNGs are nearly exact: whole numbers near the polytope, on a lattice.

Rounding each pixel apart puts W (x - t) off by what the roundings add up to. Rounded together they
cancel: of all whole numbers z, seek one with little ||W (z - x)||^2 + s^2 ||z - x||^2, by Babai's
nearest plane in a basis that Lenstra, Lenstra and Lovász's algorithm has reduced. The basis is the
same for all windows. No z is exact, in general: 8-bit pictures are finitely many.
"""

import numpy as np
import torch
from torch import Tensor

from .nearest import Matrix, nearest_points
from .polytope import Polytope, Problem

_PIXELS = 256  # of a window: a larger one's basis takes minutes
_TRIES = ((2 / 255, 0.02), (0.0, 0.1), (0.0, 0.3))  # margins that pixels keep from 0 and 1, and s
_SMALL = 0.2  # of directions whose values the layer makes small: they cost pixels to put right
_OFF = 1e-10  # of the sides' norm: what exact windows may be off
_LOVASZ = 0.99


def with_exact_pngs(polytope: Polytope, points: Tensor) -> Tensor:
    """Points of the polytope, a few levels from `points` (K, n), whose PNGs are nearly in it.

    Windows stay as they are where some units are hidden, where many pixels are seen together, or
    where the polytope is at the edge of the pixels' range.
    """
    found = points.clone()
    for problem in polytope.problems:
        if problem.given is None or problem.pixels.shape[1] > _PIXELS or not problem.equal.all():
            continue
        columns = points[:, problem.pixels].flatten(0, 1).mT.contiguous()
        part = _moved(problem, problem.given.matrix, columns)
        found[:, problem.pixels] = part.mT.reshape(len(points), *problem.pixels.shape)
    return found


def _moved(problem: Problem, matrix: np.ndarray, columns: Tensor) -> Tensor:
    """The same of one problem's windows, columns (p, K P)."""
    assert isinstance(problem.rows, Matrix)
    sides = problem.sides.repeat(1, columns.shape[1] // problem.sides.shape[1])
    rows = matrix / np.linalg.norm(matrix, axis=1).mean()
    seen = np.vstack([rows, _SMALL * problem.rows.weight.numpy()])

    def off(whole: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.linalg.norm(rows @ (whole - 255 * columns.numpy()), axis=0)
        return found

    best, least = columns, off(np.rint(255 * columns.numpy()))
    for margin, spread in _TRIES:
        width = 1 - 2 * margin  # of the range that the pixels keep to
        edge = problem.rows.times(torch.full_like(columns[:, :1], margin))
        inner = nearest_points(
            (columns - margin) / width, problem.rows, (sides - edge) / width, problem.equal
        )
        metric = np.vstack([seen, spread * np.eye(len(columns))])
        at = 255 * (margin + width * inner.points).numpy()
        whole = nearest_plane(metric, reduced(metric), at)
        near = torch.from_numpy(whole / 255)
        exact = nearest_points(near, problem.rows, sides, problem.equal)
        better = (off(whole) < least) & (whole >= 0).all(0) & (whole <= 255).all(0)
        better &= ((inner.error <= _OFF) & (exact.error <= _OFF)).numpy()
        better &= (np.rint(255 * exact.points.numpy()) == whole).all(0)
        best = torch.where(torch.from_numpy(better), exact.points, best)
        least = np.where(better, off(whole), least)
    return best


def reduced(basis: np.ndarray) -> np.ndarray:
    """Whole numbers U (n, n) of determinant 1 or -1, for which the columns of basis U are reduced.

    Each is nearly at right angles to those before it (Lenstra, Lenstra, Lovász 1982).
    """
    count = basis.shape[1]
    unit = np.eye(count)
    upper = np.linalg.qr(basis)[1]
    k = 1
    while k < count:
        for j in reversed(range(k)):
            if times := np.rint(upper[j, k] / upper[j, j]):
                upper[: j + 1, k] -= times * upper[: j + 1, j]
                unit[:, k] -= times * unit[:, j]
        pair = slice(k - 1, k + 1)
        length = np.hypot(*upper[pair, k])
        if length**2 >= _LOVASZ * upper[k - 1, k - 1] ** 2:
            k += 1
            continue
        unit[:, pair], upper[:, pair] = (
            unit[:, pair][:, ::-1].copy(),
            upper[:, pair][:, ::-1].copy(),
        )
        cosine, sine = upper[pair, k - 1] / length
        upper[pair, k - 1 :] = np.array([[cosine, sine], [-sine, cosine]]) @ upper[pair, k - 1 :]
        upper[k, k - 1] = 0.0
        k = max(k - 1, 1)
    return unit


def nearest_plane(basis: np.ndarray, unit: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whole numbers z (n, B) with little ||basis (z - point)||: Babai's nearest planes (1986)."""
    orthogonal, upper = np.linalg.qr(basis @ unit)
    at = orthogonal.T @ (basis @ points)
    found = np.zeros_like(at)
    for i in reversed(range(len(upper))):
        found[i] = np.rint((at[i] - upper[i, i + 1 :] @ found[i + 1 :]) / upper[i, i])
    whole: np.ndarray = unit @ found
    return whole
