"""ImageNet's 1000 classes: their names and WordNet ids, in the order of their indices.

`imagenet_wnids.txt` lists the ids.
"""

from pathlib import Path

from torchvision.models import SqueezeNet1_1_Weights


def class_names() -> tuple[str, ...]:
    """The classes' names, as torchvision's weights have them."""
    return tuple(SqueezeNet1_1_Weights.DEFAULT.meta["categories"])


def wnids() -> list[str]:
    """The classes' ids, n01440764 first."""
    return (Path(__file__).parent / "imagenet_wnids.txt").read_text().split()
