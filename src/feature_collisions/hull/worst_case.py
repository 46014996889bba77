"""The worst point of a hull: by the network's output, or by the feature error."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from ..simplex import project_to_simplex

Goal = Literal["output", "features"]
"""What a point is the worst of."""
GOALS: tuple[Goal, ...] = get_args(Goal)
_FEWEST = 4  # paths that continue to the end
_LONGEST = 0.25  # first step, in weights; it decreases to 0


class WorstCase(NamedTuple):
    """The worst point seen in a hull, and its weights (K,); see `Hull.worst_case`.

    For an encoder the fields of the class are None, for a classifier those of its output.
    `feature_relative` is the point's ||f(x) - f(t)|| / ||f(t)||; None if ||f(t)|| is 0.
    """

    weights: Tensor
    image: Tensor
    predicted_class: int | None = None
    probability: float | None = None
    correct: bool | None = None
    cosine: float | None = None
    output_relative: float | None = None
    feature_relative: float | None = None

    def __repr__(self) -> str:
        """One line, without pixels."""
        figures = {name: value for name, value in self._asdict().items() if value is not None}
        weights = ", ".join(f"{weight:.3g}" for weight in self.weights.tolist())
        shown = {"image": tuple(figures.pop("image").shape), "weights": f"[{weights}]"}
        return f"WorstCase({', '.join(f'{k}={v}' for k, v in (figures | shown).items())})"


class _Paths(NamedTuple):
    """Weights (S, K) of S paths, their smallest margins (S,), and the weights (S, K) of these."""

    weights: Tensor
    margins: Tensor
    lowest: Tensor

    def best_third(self) -> "_Paths":
        count = min(len(self.margins), max(_FEWEST, len(self.margins) // 3))
        chosen = self.margins.topk(count, largest=False).indices
        return _Paths(*(each[chosen] for each in self))


Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights (B, K) to margins (B,) there, and their gradients (B, K)."""


def descend(slopes_of: Slopes, starts: Tensor, steps: int, name: str = "Worst case") -> Tensor:
    """Projected gradient over the simplex from all starts at once.

    The best third of the paths continues after a tenth of the steps, and the best third of those
    after three tenths: a quarter of the work.

    Args:
        slopes_of: margins and their gradients.
        starts: (S, K) weights.
        steps: of a path that continues to the end.
        name: label of the progress bar.

    Returns:
        (few, K) the lowest point of each path that continued to the end.
    """
    paths = _Paths(starts, starts.new_full((len(starts),), torch.inf), starts)
    bar = tqdm(total=steps + 1, desc=name, unit="step", mininterval=0.5, delay=1)
    with bar:
        for start, end in pairwise([0, steps // 10, 3 * steps // 10, steps + 1]):
            paths = paths.best_third() if start else paths
            for step in range(start, end):
                paths = _step(slopes_of, paths, _LONGEST * (1 - step / steps))
                bar.update()
    return paths.lowest


def _step(slopes_of: Slopes, paths: _Paths, length: float) -> _Paths:
    """Record the margins of the paths, and move each by `length` along its negative gradient."""
    margins, gradient = slopes_of(paths.weights)
    weights = paths.weights
    better = margins < paths.margins
    gradient = gradient - gradient.mean(1, keepdim=True)
    slope = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return _Paths(
        project_to_simplex(weights - length * slope),
        torch.where(better, margins, paths.margins),
        torch.where(better[:, None], weights, paths.lowest),
    )


def slopes_at(margins_of: Callable[[Tensor], Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Margins (B,) at weights (B, K), and their gradients (B, K)."""
    weights = weights.detach().requires_grad_()
    margins = margins_of(weights)
    (gradient,) = torch.autograd.grad(margins.sum(), weights)
    return margins.detach(), gradient


class Seen(NamedTuple):
    """The worst point seen: its goodness (1,) and its weights (1, K)."""

    goodness: Tensor
    weights: Tensor

    def least(self, other: "Seen | None") -> "Seen":
        """The worse of two points, without synchronising devices."""
        if other is None:
            return self
        better = self.goodness < other.goodness
        return Seen(*(torch.where(better, *pair) for pair in zip(self, other, strict=True)))
