"""The worst point of a hull: where it is least taken for the target (`Output.margin`)."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..simplex import project_to_simplex

_FEWEST = 4  # paths that go on to the end
_LONGEST = 0.25  # a step, in weights; it falls to 0 on the way


class WorstCase(NamedTuple):
    """The worst point of a hull that was seen, and its weights (K,).

    One of another class where there is any; of these, or else of all, the least probable. Of an
    encoder the one of the least cosine, and no class.
    """

    weights: Tensor
    image: Tensor
    predicted_class: int = -1
    probability: float = 0.0
    correct: bool | None = None
    cosine: float | None = None
    output_relative: float | None = None


class _Paths(NamedTuple):
    """Where S descents are (S, K), their smallest margins (S,), and where these were (S, K)."""

    weights: Tensor
    margins: Tensor
    lowest: Tensor

    def best_third(self) -> "_Paths":
        count = min(len(self.margins), max(_FEWEST, len(self.margins) // 3))
        chosen = self.margins.topk(count, largest=False).indices
        return _Paths(*(each[chosen] for each in self))


Slopes = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Weights (B, K) to margins (B,) there, and their gradients (B, K)."""


def descend(slopes_of: Slopes, starts: Tensor, steps: int) -> Tensor:
    """Projected gradient over the simplex from all starts at once.

    The best third of the paths goes on after a tenth of the steps, and the best third of those
    after three tenths, which leaves a quarter of the work.

    Args:
        slopes_of: the margins and how they rise.
        starts: (S, K) weights.
        steps: of each path that goes on.

    Returns:
        (few, K) the lowest point of each path that went on to the end.
    """
    paths = _Paths(starts, starts.new_full((len(starts),), torch.inf), starts)
    bar = tqdm(total=steps + 1, desc="Worst case", unit="step", mininterval=0.5, delay=1)
    with bar:
        for start, end in pairwise([0, steps // 10, 3 * steps // 10, steps + 1]):
            paths = paths.best_third() if start else paths
            for step in range(start, end):
                paths = _step(slopes_of, paths, _LONGEST * (1 - step / steps))
                bar.update()
    return paths.lowest


def _step(slopes_of: Slopes, paths: _Paths, length: float) -> _Paths:
    """Note the margins where the paths are, and go on by `length` down each one's gradient."""
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
    """The margins (B,) that `margins_of` gives at weights (B, K), and their gradients (B, K)."""
    weights = weights.detach().requires_grad_()
    margins = margins_of(weights)
    (gradient,) = torch.autograd.grad(margins.sum(), weights)
    return margins.detach(), gradient


class Seen(NamedTuple):
    """The worst of the points that were seen: its goodness (1,) and its weights (1, K)."""

    goodness: Tensor
    weights: Tensor

    def least(self, other: "Seen | None") -> "Seen":
        """The worse of the two, without waiting for a device."""
        if other is None:
            return self
        better = self.goodness < other.goodness
        return Seen(*(torch.where(better, *pair) for pair in zip(self, other, strict=True)))
