"""The network's output: logits of classes, or features of an encoder."""

from dataclasses import dataclass
from typing import Annotated

from ..errors import SettingError
from .rules import AtLeast, Group, one_of

OUTPUTS = ("classes", "features")


@dataclass
class OutputSettings(Group):
    """Use of an encoder's features."""

    group = "output"
    threshold: Annotated[float | None, AtLeast(-1, 1)] = None
    """Cosine of features above which the encoder's user takes two images for the same. Reports then
    give the share of a hull that counts as its target. null: unknown."""


def check_output(output: str, threshold: float | None) -> None:
    """Raise SettingError for an unknown output, or a threshold without an encoder."""
    one_of("output", output, OUTPUTS)
    if threshold is not None and output == "classes":
        raise SettingError(
            "output.threshold", threshold, "is a cosine of features, but the output is "
            "classes", "leave it out, or set classifier.output=features for an encoder",
        )  # fmt: skip
    OutputSettings(threshold).validate()
