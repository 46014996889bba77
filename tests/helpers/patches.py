"""A small database of patches, and section 4's search of it written again."""

from dataclasses import replace

import torch

from feature_collisions.data.datasets import Images
from feature_collisions.settings.patches import PatchSettings

SETTINGS = PatchSettings(None, 1.0, 28, 1, 3, 7, 7, 0)
FAISS = replace(SETTINGS, search="faiss")


def images_of(pixels):
    count = len(pixels)
    return Images(pixels, torch.arange(count) % 2, ("even", "odd"))


def slow_search(database, queries, neighbours, left_out=()):
    """Section 4's nearest neighbours, window by window and without any bound."""
    images = database.images.float() / 255
    side, window, stride = images.shape[-1], database.window, database.stride
    windows, places = [], []
    for number, image in enumerate(images):
        for row in range(0, side - window + 1, stride):
            for column in range(0, side - window + 1, stride):
                if number not in left_out:
                    windows.append(image[:, row : row + window, column : column + window])
                    places.append((number, row, column))
    windows = torch.stack(windows).double()
    answers = []
    for query in queries:
        distances = (windows - query.double()).square().sum((1, 2, 3)).sqrt().tolist()
        nearest = {}
        for distance, place in sorted(zip(distances, places, strict=True)):
            nearest.setdefault(place[0], (distance, *place))  # of equal ones the first
        answers.append(list(nearest.values())[:neighbours])
    return answers


def assert_same(matches, slow):
    distance = torch.tensor([[entry[0] for entry in row] for row in slow])
    assert matches.distance.dtype == torch.float32
    torch.testing.assert_close(matches.distance, distance, rtol=1e-5, atol=1e-6)
    for name, position in (("image", 1), ("row", 2), ("column", 3)):
        expected = torch.tensor([[entry[position] for entry in row] for row in slow])
        assert torch.equal(getattr(matches, name), expected), name
