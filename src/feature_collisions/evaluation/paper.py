"""The rows of the paper's Tables 1 to 5, to compare a run with."""

from typing import NamedTuple


class Case(NamedTuple):
    """One row of the paper's tables; distances are L2, on the paper's pixel scale."""

    name: str
    images_distance: float | None
    corners_distance: float | None
    accuracy: float | None
    target_probability: float
    sampled_probability: float | None
    ball_accuracy: float | None = None


_IMAGENET = 37_538.22
_MNIST = (Case("paper, Table 1 (Figure 2): 3 to 7", 10.21, 1.28, 1.0, 1.0, 1.0),)
_PIXELS = (
    Case("paper, Table 2 (Figure 3a): home theater to jeep", _IMAGENET, 4906.56, 1, 0.993, 0.995),
    Case("paper, Table 2 (Figure 3b): spaniel to goldfish", _IMAGENET, 8959.69, 1, 0.999, 0.999),
)
_MACRO = (
    Case("paper, Table 3 (Figure 7a): trimaran to obelisk",
         _IMAGENET, 5909.37, 1, 0.997, 0.992, 0.248),
    Case("paper, Table 3 (Figure 7b): eggnog to eraser",
         _IMAGENET, 6074.86, 1, 0.579, 0.585, 0.035),
    Case("paper, Table 4 (Figure 8): church", _IMAGENET, 8597.34, 1, 0.952, 0.877, 0.092),
    Case("paper, Table 4 (Figure 9): cleaver", _IMAGENET, 9587.92, 1, 0.999, 0.8, 0.0),
)  # fmt: skip

CASES = {
    "mnist": _MNIST,
    "vgg_pixel": _PIXELS,
    "squeezenet_pixel": _PIXELS,
    "vgg_macro": _MACRO,
    "squeezenet_macro": _MACRO,
}
"""The paper's rows by experiment; other experiments have none."""
