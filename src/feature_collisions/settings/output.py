"""What a network's output is: logits of classes, or the features of an encoder."""

from dataclasses import dataclass
from typing import Annotated

from ..errors import SettingError
from .rules import AtLeast, Group, one_of

OUTPUTS = ("classes", "features")


@dataclass
class OutputSettings(Group):
    """What the user of an encoder does with its features."""

    group = "output"
    threshold: Annotated[float | None, AtLeast(-1, 1)] = None
    """Two images are the same to the user above this cosine of their features: reports then say the
    share of a hull that is the same as its target. null: no rule is known."""


def check_output(output: str, threshold: float | None) -> None:
    """Raise SettingError for an unknown output, or a threshold that it has no use for."""
    one_of("output", output, OUTPUTS)
    if threshold is not None and output == "classes":
        raise SettingError(
            "output.threshold", threshold, "is of cosines between features, and the output is "
            "classes", "leave it out, or set classifier.output=features for an encoder",
        )  # fmt: skip
    OutputSettings(threshold).check()
