"""The bundled network and digits, for tutorials and first tries."""

from typing import NamedTuple

from torch import Tensor, nn

from ..data.datasets import load_data
from ..settings.train import ClassifierSettings, DataSettings
from .classifiers import load_classifier


class Example(NamedTuple):
    """A network, two images, and the data set of both."""

    model: nn.Module
    """Digits (B, 1, 28, 28) in [0, 1] to logits (B, 10); layers `hidden1`, `hidden2`, `output`."""
    initial: Tensor
    """(1, 28, 28), a 3."""
    target: Tensor
    """(1, 28, 28), a 7."""
    images: Tensor
    """(1000, 1, 28, 28), digits not used in training."""
    labels: Tensor
    """(1000,) int64."""

    def __repr__(self) -> str:
        """One line, without pixels."""
        shapes = ", ".join(
            f"{k}={tuple(v.shape)}" for k, v in self._asdict().items() if k in _SHOWN
        )
        return f"Example({type(self.model).__name__}, {shapes})"


_SHOWN = ("initial", "target", "images", "labels")


def load_example() -> Example:
    """Load the network and the digits that ship with the package.

    Example:
        model, initial, target, images, labels = load_example()
        hull = find_corners(model, "hidden1", initial, target, range(5))
    """
    digits = load_data(DataSettings("digits"))
    model = load_classifier(ClassifierSettings("mnist_mlp", layer="hidden1"), digits)
    initial, target = (digits.test.find("", digit).image for digit in (3, 7))
    return Example(model, initial, target, digits.test[:], digits.test.labels)
