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
    asked = _Asked(setting, images, models)
    pairs: list[Pair] = []
    draws = list(_draws(labels, _DRAWS * count, seed))
    for start in range(0, len(draws), _TOGETHER):
        some = draws[start : start + _TOGETHER]
        if right:
            asked.about([index for draw in some for index in draw])
        elif least:
            asked.about([target for _, target in some])
        for first, second in some:
            if right and not (asked.all_right(first) and asked.all_right(second)):
                continue
            if least and asked.least_sure(second) <= least:
                continue
            pairs.append(Pair(_name(images, labels, first), _name(images, labels, second)))
            if len(pairs) == count:
                return pairs
    found = f"pairs={setting}: only {len(pairs)} of {_DRAWS * count} draws have"
    if right:
        raise SettingError(f"{found} images that {asked.shares_right()}")
    raise SettingError(f"{found} such a target and images of two classes; lower P")


def _draws(labels: Sequence[int], count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Draws with images of two classes, out of `count`, as pairs of indices."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        first, second = torch.randint(len(labels), (2,), generator=generator).tolist()
        if labels[first] != labels[second]:
            yield first, second


class _Asked:
    """Cached class probabilities of each classifier."""

    def __init__(self, setting: str, images: ImageSet, models: Sequence[nn.Module]) -> None:
        self.setting, self.images, self.models = setting, images, models
        self.known: dict[int, list[Tensor]] = {}  # (classes,) probabilities per model

    def about(self, indices: Sequence[int]) -> None:
        new = [index for index in dict.fromkeys(indices) if index not in self.known]
        if not new:
            return
        pixels = self.images[torch.tensor(new)]
        found = [class_probabilities(model, pixels) for model in self.models]
        for row, index in enumerate(new):
            self.known[index] = [probabilities[row] for probabilities in found]

    def all_right(self, index: int) -> bool:
        return all(self._right(index))

    def _right(self, index: int) -> list[bool]:
        label, names = int(self.images.labels[index]), len(self.images.class_names)
        for each in self.known[index]:
            if len(each) != names:
                raise SettingError(
                    "pairs",
                    self.setting,
                    f"a classifier has {len(each)} classes and the data set {names}",
                    "give random:N for one classifier, or a CSV file of pairs",
                )
        return [int(each.argmax()) == label for each in self.known[index]]

    def least_sure(self, index: int) -> float:
        return min(float(each.max()) for each in self.known[index])

    def shares_right(self) -> str:
        """Share of the drawn images that each classifier gets right, in words."""
        counts = torch.tensor([self._right(index) for index in self.known]).sum(0).tolist()
        drawn, guess = len(self.known), 1 / len(self.images.class_names)
        most = drawn * guess + 3 * (drawn * guess * (1 - guess)) ** 0.5
        said = ", ".join(map(str, counts)) + f" of {drawn}"
        if min(counts) <= most:
            said += f", and {min(counts)} is chance: are weights missing?"
        if len(counts) == 1:
            return f"the classifier is right about (it is about {said})"
        return (
            f"all {len(counts)} classifiers are right about (they are, in their order, about "
            f"{said}); leave the worst out"
        )


def _name(images: ImageSet, labels: Sequence[int], index: int) -> str:
    """Name of an image: `CLASS`, or `CLASS:N` if it is not the first of its class."""
    label = labels[index]
    rank = labels[:index].count(label)
    return images.class_names[label] + (f":{rank}" if rank else "")
