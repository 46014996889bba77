"""Random pairs of images, the same for all classifiers that are compared."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.image_set import ImageSet
from ..errors import SettingError
from ..search.summary import class_probabilities

_DRAWS = 100  # draws per pair before giving up
_TOGETHER = 16  # draws classified at once


class Pair(NamedTuple):
    """An initial and a target image, in the form of the settings."""

    initial: str
    target: str


def random_pairs(
    setting: str,
    count: int,
    images: ImageSet,
    seed: int,
    models: Sequence[nn.Module],
    right: bool,
    least: float,
) -> list[Pair]:
    """Draw `count` pairs of images of two classes.

    The draws depend only on the images and the seed. Models only reject draws, whatever their
    order.

    Args:
        setting: `pairs`, for messages.
        count: number of pairs.
        images: the images to choose from.
        seed: of the draws.
        models: the classifiers.
        right: whether each classifier must get both images right.
        least: smallest probability of the target's class in each classifier.

    Raises:
        SettingError: if there are fewer than two classes, or not enough pairs.
    """
    labels = images.labels.tolist()
    if len(set(labels)) < 2:
        raise SettingError("pairs", setting, "needs images of at least two classes")
    known: dict[int, list[Tensor]] = {}  # (classes,) probabilities per model, by image
    pairs: list[Pair] = []
    draws = list(_draws(labels, _DRAWS * count, seed))
    for start in range(0, len(draws), _TOGETHER):
        some = draws[start : start + _TOGETHER]
        asked = [k for draw in some for k in draw[0 if right else 1 :]] if right or least else []
        if new := [k for k in dict.fromkeys(asked) if k not in known]:
            found = [class_probabilities(model, images[torch.tensor(new)]) for model in models]
            known |= {index: [each[row] for each in found] for row, index in enumerate(new)}
        for first, second in some:
            if right and not all(
                _right(setting, images, labels[k], each)
                for k in (first, second)
                for each in known[k]
            ):
                continue
            if least and min(float(each.max()) for each in known[second]) <= least:
                continue
            pairs.append(Pair(_name(images, labels, first), _name(images, labels, second)))
            if len(pairs) == count:
                return pairs
    lacking = f"pairs={setting}: only {len(pairs)} of {_DRAWS * count} draws have"
    if not right:
        raise SettingError(f"{lacking} such a target and images of two classes; lower P")
    counts = [
        sum(_right(setting, images, labels[k], each[number]) for k, each in known.items())
        for number in range(len(models))
    ]
    raise SettingError(f"{lacking} images that {_shares(counts, len(known), images)}")


def _draws(labels: Sequence[int], count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Draws with images of two classes, out of `count`, as pairs of indices."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        first, second = torch.randint(len(labels), (2,), generator=generator).tolist()
        if labels[first] != labels[second]:
            yield first, second


def _right(setting: str, images: ImageSet, label: int, probabilities: Tensor) -> bool:
    """Whether a model gives an image its class."""
    if len(probabilities) != len(images.class_names):
        raise SettingError(
            "pairs",
            setting,
            f"a classifier has {len(probabilities)} classes and the data set "
            f"{len(images.class_names)}",
            "give random:N for one classifier, or a CSV file of pairs",
        )
    return int(probabilities.argmax()) == label


def _shares(counts: Sequence[int], drawn: int, images: ImageSet) -> str:
    """How many of the drawn images each classifier gets right, in words."""
    guess = 1 / len(images.class_names)
    most = drawn * guess + 3 * (drawn * guess * (1 - guess)) ** 0.5
    said = ", ".join(map(str, counts)) + f" of {drawn}"
    if min(counts) <= most:
        said += f", and {min(counts)} is chance: are weights missing?"
    if len(counts) == 1:
        return f"the classifier is right about (it is about {said})"
    return (
        f"all {len(counts)} classifiers are right about (they are, in their order, about {said}); "
        "leave the worst out"
    )


def _name(images: ImageSet, labels: Sequence[int], index: int) -> str:
    """Name of an image: `CLASS`, or `CLASS:N` if it is not the first of its class."""
    label = labels[index]
    rank = labels[:index].count(label)
    return images.class_names[label] + (f":{rank}" if rank else "")
