"""Windows of the database's images: cutting, exact distances, and lower bounds on distances.

Exact distances to 37 million windows of 3,072 numbers are expensive. Each window x (pixels minus
1/2) is first summarised by a few numbers: its coordinates B'x in an orthonormal basis, and the norm
of the residual, sqrt(|x|^2 - |B'x|^2). By the triangle inequality the distance between two such
descriptions is at most the distance between the windows. So a window is skipped if its description
is farther than the best window found so far.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.devices import device_for, without_cudnn
from .database import PatchDatabase

ROUNDING = 1e-5  # of |x|^2: more than the rounding error of any sum below in float32
_PAIRS = 2048  # distances per batch: 25 MB of the paper's windows


def cut(images: Tensor, window: int, stride: int) -> Tensor:
    """All windows of (M, C, s, s) as a view (M, C, rows, columns, window, window)."""
    return images.unfold(2, window, stride).unfold(3, window, stride)


def windows_at(database: PatchDatabase, patches: Tensor) -> Tensor:
    """The windows with these indices (N,), counted image by image and row by row.

    Args:
        database: the images.
        patches: indices from 0 to len(database) - 1.

    Returns:
        (N, C, window, window) uint8.
    """
    image, place = patches // database.places**2, patches % database.places**2
    views = cut(database.images, database.window, database.stride)
    found: Tensor = views[image, :, place // database.places, place % database.places]
    return found


def squared_distances(
    database: PatchDatabase, queries: Tensor, query: Tensor, patches: Tensor
) -> Tensor:
    """Squared distances (N,) between queries[query] and the windows `patches`.

    Args:
        database: the images.
        queries: (Q, C, window, window) in [0, 1].
        query: (N,) index of each pair's query.
        patches: (N,) index of each pair's window; may repeat.
    """
    flat = queries.flatten(1)
    found = [flat.new_empty(0)]
    for start in range(0, len(query), _PAIRS):
        q, p = query[start : start + _PAIRS], patches[start : start + _PAIRS]
        distinct, which = p.unique(return_inverse=True)
        windows = windows_at(database, distinct.cpu()).to(flat.device).flatten(1).float() / 255
        found.append(windows[which].sub_(flat[q]).square_().sum(1))
    return torch.cat(found)


def basis_of(windows: Tensor, dimensions: int) -> Tensor:
    """Orthonormal columns (C * w * w, d) that span most of these windows (N, C, w, w).

    d is `dimensions`, or less if the windows are few or small.
    """
    centred = windows.flatten(1) - 0.5
    size = min(dimensions, *centred.shape)
    start = torch.randn(centred.shape[1], size, generator=torch.Generator().manual_seed(0))
    basis: Tensor = start.to(windows.device)
    for _ in range(4):  # subspace iteration; approximate singular vectors suffice
        basis = torch.linalg.qr(centred.T @ (centred @ basis)).Q
    exact = basis.to(device_for(basis.device), torch.float64)
    orthonormal: Tensor = torch.linalg.qr(exact).Q.to(basis)
    return orthonormal


class Descriptions:
    """Summaries of windows, whose distances are lower bounds on those of the windows.

    Args:
        basis: (C * w * w, d), orthonormal columns.
        window, stride: geometry of an image's windows.
    """

    def __init__(self, basis: Tensor, window: int, stride: int) -> None:
        self.basis, self.window, self.stride = basis, window, stride

    def of_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptions (M * rows * columns, d + 1) of all windows, and their |x|^2.

        Args:
            images: (M, C, s, s) uint8.
        """
        centred = images.float() / 255 - 0.5
        filters = self.basis.T.reshape(-1, images.shape[1], self.window, self.window)
        with without_cudnn():
            inside = F.conv2d(centred, filters, stride=self.stride)
        # Columns, then rows: a single long sum would lose two digits.
        columns = F.avg_pool2d(centred.square().sum(1), (self.window, 1), (self.stride, 1))
        squares = F.avg_pool2d(columns, (1, self.window), (1, self.stride)) * self.window**2
        rows = inside.permute(0, 2, 3, 1).flatten(0, 2)
        return self._with_rest(rows, squares.flatten())

    def of_windows(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptions (N, d + 1) of windows (N, C, w, w) in [0, 1], and their |x|^2 (N,)."""
        centred = windows.flatten(1) - 0.5
        return self._with_rest(centred @ self.basis, centred.square().sum(1))

    def _with_rest(self, inside: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        # Rounding must not raise the bound, and the root is steep near 0: the residual is rounded
        # up, |x|^2 is kept.
        rest = (squares - inside.square().sum(1)).clamp_min(0) + ROUNDING * squares
        return torch.cat([inside, rest.sqrt()[:, None]], 1), squares
