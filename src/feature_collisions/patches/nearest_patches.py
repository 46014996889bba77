"""Search the windows of the database nearest to a seed's patches (sec. 4, Figure 4)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data.devices import without_tf32
from ..errors import SettingError
from ..settings.patches import PatchSettings
from .database import PatchDatabase, scaled
from .patch_windows import ROUNDING, Descriptions, basis_of, squared_distances

_DIMENSIONS = 192  # of the exact search's basis; with 64, forty times as many windows are measured
_CHUNK = {"cpu": 32, "cuda": 512}  # images per batch
_CANDIDATES = 60  # of the index per neighbour, ranked exactly
_MOST = 2048  # limit of faiss on a GPU
_SAME = 8 / 255  # RMS difference; two reductions of one image differ by 0.9 / 255, at most 2 / 255


class Matches(NamedTuple):
    """The k nearest windows of each query, nearest first, each in another image.

    Attributes:
        image: (Q, k) int64, index into the database's images.
        row, column: (Q, k) int64, the window's upper left pixel in the reduced image.
        distance: (Q, k) float32, L2 on pixels in [0, 1].
    """

    image: Tensor
    row: Tensor
    column: Tensor
    distance: Tensor


def reduced_seed(seed: Tensor, settings: PatchSettings) -> Tensor:
    """The seed (C, S, S) in [0, 1] at the size of the database's images: (C, s, s)."""
    side = settings.size // settings.reduction
    if seed.shape[1:] == (side, side):
        return seed
    return F.interpolate(seed[None], side, mode="bilinear", antialias=True).clamp(0, 1)[0]


def query_patches(seed: Tensor, settings: PatchSettings) -> Tensor:
    """The seed's patches, row by row, at the resolution of the database's windows.

    Args:
        seed: (C, S, S) in [0, 1], at the composite's size.
        settings: `patch` and `stride`, in pixels of S.

    Returns:
        (Q, C, w, w) in [0, 1]: Q is 625 and w 32 for the paper's settings.

    Raises:
        SettingError: if patch or stride are not an integer number of reduced pixels.
    """
    window = scaled("patch", settings.patch, settings, seed.shape[-1])
    stride = scaled("stride", settings.stride, settings, seed.shape[-1])
    views = reduced_seed(seed, settings).unfold(1, window, stride).unfold(2, window, stride)
    return views.permute(1, 2, 0, 3, 4).flatten(0, 1)


def search_patches(
    database: PatchDatabase,
    queries: Tensor,
    settings: PatchSettings,
    seed_image: Tensor | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Matches:
    """Find the `neighbours` nearest windows of each query, at most one per image.

    Overlapping windows of one image are similar, so k of them would be nearly one source k times.
    Therefore the k matches are from k different images. Ties are broken by image, row and column.

    Args:
        database: the database to search.
        queries: (Q, C, w, w) in [0, 1].
        settings: `search` and `neighbours`.
        seed_image: (C, s, s) in [0, 1], see `reduced_seed`; images of the same picture are
            excluded.
        device: for the search; None for a GPU if there is one.
        progress: show a bar.

    Raises:
        SettingError: if queries have another size, or there are fewer images than `neighbours`.
    """
    expected = (database.images.shape[1], database.window, database.window)
    if queries.shape[1:] != expected:
        raise SettingError(
            "queries",
            None,
            f"must be (Q, {', '.join(map(str, expected))}) as the database's windows are, are "
            f"{tuple(queries.shape)}",
        )
    left_out = same_images(database.images, seed_image)
    others = len(left_out) - int(left_out.sum())
    if others < settings.neighbours:
        more = "raise patches.fraction" if settings.fraction < 1 else "name more (patches.root)"
        raise SettingError(
            "patches.neighbours",
            settings.neighbours,
            f"images in the database that are not the seed's own: {others}",
            f"{('lower it, or ' if others else '')}{more}",
        )
    queries = queries.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if settings.search == "faiss":
        return index_search(database, queries, settings.neighbours, left_out, progress)
    return exact_search(database, queries, settings.neighbours, left_out, progress)


def same_images(images: Tensor, seed_image: Tensor | None) -> Tensor:
    """Which images (M, C, s, s) uint8 show the picture `seed_image` (C, s, s) in [0, 1]: (M,) bool.

    The seed was reduced from another size than the images, so pixels differ slightly. Means over
    a 32nd of the side agree.
    """
    if seed_image is None:
        return torch.zeros(len(images), dtype=torch.bool)
    part = max(1, images.shape[-1] // 32)
    seed = F.avg_pool2d(seed_image.cpu(), part)
    return torch.cat(
        [
            (F.avg_pool2d(chunk.float() / 255, part) - seed).square().mean((1, 2, 3)).sqrt() < _SAME
            for chunk in images.split(256)
        ]
    )


class Best:
    """The nearest windows found so far.

    Attributes:
        squares: (Q, k) squared distances, increasing; inf if none is found yet.
        patches: (Q, k) int64, indices of the windows.
    """

    def __init__(self, queries: Tensor, neighbours: int) -> None:
        shape, device = (len(queries), neighbours), queries.device
        self.squares = torch.full(shape, torch.inf, device=device)
        self.patches = torch.full(shape, -1, device=device)

    def add(self, query: Tensor, patches: Tensor, squares: Tensor, places: int) -> None:
        """Add pairs (N,) of query and window; only the nearest window of an image counts.

        Args:
            query: row of each pair.
            patches: index of each pair's window; pairs may repeat.
            squares: their squared distances.
            places: windows per image.
        """
        count, known = self.squares.shape
        query = torch.cat(
            [torch.arange(count, device=query.device).repeat_interleave(known), query]
        )
        patches = torch.cat([self.patches.flatten(), patches])
        squares = torch.cat([self.squares.flatten(), squares])
        # Sort by query, image, distance, index; keep the first of each image; sort by distance.
        order = patches.argsort(stable=True)
        order = order[squares[order].argsort(stable=True)]
        image = patches // places
        order = order[(query * (image.max() + 2) + image)[order].argsort(stable=True)]
        query, patches, squares, image = (t[order] for t in (query, patches, squares, image))
        again = (query[1:] == query[:-1]) & (image[1:] == image[:-1]) & (image[1:] >= 0)
        first = torch.cat([again.new_ones(1), ~again])
        query, patches, squares = query[first], patches[first], squares[first]
        order = squares.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]
        counts = query.bincount(minlength=count)
        starts = counts.cumsum(0) - counts
        picks = order[starts[:, None] + torch.arange(known, device=query.device)]
        self.squares, self.patches = squares[picks], patches[picks]

    def matches(self, database: PatchDatabase) -> Matches:
        """The result on the CPU."""
        patches = self.patches.cpu()
        place = patches % database.places**2
        return Matches(
            patches // database.places**2,
            place // database.places * database.stride,
            place % database.places * database.stride,
            self.squares.sqrt().cpu(),
        )


@without_tf32()
def exact_search(
    database: PatchDatabase, queries: Tensor, neighbours: int, left_out: Tensor, progress: bool
) -> Matches:
    """Bound the distance of every query to every window, and measure those below the best so far.

    The basis is computed from the queries: this makes the bound tight, and does not need the
    database.
    """
    descriptions = Descriptions(basis_of(queries, _DIMENSIONS), database.window, database.stride)
    best = Best(queries, neighbours)
    numbers = torch.arange(len(database.images))[~left_out]
    chunks = numbers.split(_CHUNK.get(queries.device.type, _CHUNK["cpu"]))
    for chunk in tqdm(chunks, "Searching patches", mininterval=0.5, disable=not progress):
        _search_chunk(database, queries, descriptions, best, chunk.to(queries.device))
    return best.matches(database)


def _search_chunk(
    database: PatchDatabase,
    queries: Tensor,
    descriptions: Descriptions,
    best: Best,
    numbers: Tensor,
) -> None:
    places, known = database.places**2, best.squares.shape[1]
    few, query_squares = descriptions.of_windows(queries)
    first, last = int(numbers[0]), int(numbers[-1]) + 1
    chunk = database.images[first:last].to(queries.device)[numbers - first]
    many, squares = descriptions.of_images(chunk)
    bounds = torch.addmm(squares, few, many.T, alpha=-2).view(len(queries), -1, places)
    lowest, at = bounds.min(2)
    # 4: rounding errors of |x|^2, |q|^2 and twice their product.
    slack = 4 * ROUNDING * (squares.max() + query_squares)

    def limit() -> Tensor:
        return (best.squares[:, -1] * (1 + ROUNDING) - query_squares + slack)[:, None]

    def measure(query: Tensor, image: Tensor, place: Tensor) -> None:
        patches = numbers[image] * places + place
        found = squared_distances(database, queries, query, patches)
        best.add(query, patches, found, places)

    # Smallest bounds first: they lower the limit most.
    promising = torch.zeros_like(lowest, dtype=torch.bool)
    promising.scatter_(1, lowest.topk(min(known, len(numbers)), 1, largest=False).indices, True)
    query, image = (promising & (lowest <= limit())).nonzero().unbind(1)
    if len(query):
        measure(query, image, at[query, image])
    query, image = (lowest <= limit()).nonzero().unbind(1)
    pair, place = (bounds[query, image] <= limit()[query]).nonzero().unbind(1)
    if len(pair):
        measure(query[pair], image[pair], place)


def index_search(
    database: PatchDatabase, queries: Tensor, neighbours: int, left_out: Tensor, progress: bool
) -> Matches:
    """Rank the index's candidates by exact distance; queries with too few are searched exactly.

    Candidates include windows of excluded images, so more of them are requested.
    """
    from .index import open_index  # faiss is loaded only if it is used

    places = database.places**2
    own = left_out.nonzero().flatten()
    count = min(_CANDIDATES * neighbours + len(own) * places, _MOST, len(database))
    patches = open_index(database, progress).candidates(queries.cpu(), count)
    usable = (patches >= 0) & ~left_out[patches // places]
    usable &= usable.cumsum(1) <= _CANDIDATES * neighbours
    query, rank = usable.nonzero().unbind(1)
    best = Best(queries, neighbours)
    pairs = query.to(queries.device), patches[query, rank].to(queries.device)
    best.add(*pairs, squared_distances(database, queries, *pairs), places)
    found = best.matches(database)
    short = found.distance[:, -1].isinf()
    if short.any():
        rest = exact_search(database, queries[short], neighbours, left_out, progress)
        for whole, part in zip(found, rest, strict=True):
            whole[short] = part
    return found
