"""From a seed image to the sources of its composites (section 4, Figures 4 and 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data.image_set import ImageSet
from ..errors import SettingError
from ..settings.patches import PatchSettings
from .composite import Sources
from .database import PatchDatabase, open_database, source
from .nearest_patches import Matches, query_patches, reduced_seed, search_patches


def find_neighbours(
    seed: Tensor,
    images: ImageSet,
    settings: PatchSettings,
    random_seed: int = 0,
    device: torch.device | None = None,
) -> tuple[PatchDatabase, Matches]:
    """Find the nearest neighbours of the seed's patches (section 4), with their database.

    Args:
        seed: (C, S, S) in [0, 1].
        images: source of the patches.
        settings: the database, the search and the geometry.
        random_seed: of the fraction of the images.
        device: for the search; None for a GPU if there is one.

    Raises:
        SettingError: if the geometry does not fit, or the database cannot be built.
    """
    if seed.shape[1] != seed.shape[2]:
        raise SettingError(
            "data.size",
            f"[{seed.shape[1]},{seed.shape[2]}]",
            "composites are square",
            "give one side",
        )
    check_geometry(settings, seed.shape[-1])
    database = open_database(settings, images, random_seed)
    queries, reduced = query_patches(seed, settings), reduced_seed(seed, settings)
    return database, search_patches(database, queries, settings, reduced, device)


def find_sources(
    seed: Tensor, images: ImageSet, settings: PatchSettings, random_seed: int = 0
) -> Sources:
    """Find and paste the nearest neighbours of the seed's patches: the `sources` of `find_corners`.

    Arguments and errors are those of `find_neighbours`; a GPU is used if there is one.
    """
    database, matches = find_neighbours(seed, images, settings, random_seed)
    return paste(database, matches, settings, seed.shape[-1])


def check_geometry(settings: PatchSettings, size: int) -> None:
    """Raise SettingError unless the patches fit into and cover a composite of `size` pixels."""
    n, stride, s = settings.patch, settings.stride, settings.surround
    if n > size:
        raise SettingError(
            "patches.patch",
            n,
            f"a patch must fit into the images of {size} pixels (data.size)",
            "lower it",
        )
    if s >= size:
        raise SettingError(
            "patches.surround", s, f"must be less than the images' {size} pixels", "lower it"
        )
    if stride > n + 2 * s or (size - n) % stride > s:
        raise SettingError(
            "patches.stride",
            stride,
            f"leaves pixels uncovered by patches of {n} + 2 * {s} pixels in images of {size}",
            f"choose a divisor of {size - n}",
        )


def paste(database: PatchDatabase, matches: Matches, settings: PatchSettings, size: int) -> Sources:
    """Paste each match, with its surround, at the position of the seed's patch.

    Args:
        database: source of the matches.
        matches: (Q, k) of the seed's patches, row by row.
        settings: n, stride and s.
        size: S, of the composite.

    Returns:
        Q k sources.
    """
    starts = torch.arange(0, size - settings.patch + 1, settings.stride) - settings.surround
    top, left = (place.flatten() for place in torch.meshgrid(starts, starts, indexing="ij"))
    neighbours = matches.image.shape[1]
    return Sources(
        cut_out(database, matches, settings, size),
        top.repeat_interleave(neighbours),
        left.repeat_interleave(neighbours),
        (size, size),
    )


def cut_out(
    database: PatchDatabase, matches: Matches, settings: PatchSettings, size: int
) -> Tensor:
    """Cut each match with its surround from its image, mirrored at the image's border.

    Args:
        database: source of the matches.
        matches: (Q, k) of any of the seed's patches.
        settings: the windows' geometry.
        size: S, the composite's side in pixels.

    Returns:
        (Q k, C, w, w) in [0, 1]; positions, scaled to S, are rounded to integers.
    """
    s, side = settings.surround, settings.patch + 2 * settings.surround
    scale = size / database.images.shape[-1]
    rows, columns = (
        (place.flatten() * scale).round().long().tolist() for place in (matches.row, matches.column)
    )
    windows, mirrored = [], {}
    places = zip(matches.image.flatten().tolist(), rows, columns, strict=True)
    for image, row, column in tqdm(list(places), "Pasting patches", unit="patch", mininterval=0.5):
        if image not in mirrored:
            mirrored[image] = F.pad(source(database, image, size), (s, s, s, s), mode="reflect")
        windows.append(mirrored[image][:, row : row + side, column : column + side])
    return torch.stack(windows)
