"""The losses of Eq. 2 to 6, as pure functions of the corners' pre-activations and images.

Shapes: `preactivation` f0(x) is (K, N), one row a corner; each loss is (K,), one value a corner.
Corners share nothing, so the sum over them has each corner's own gradient.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingError
from ..networks.target import TargetFeatures
from ..settings.search import LossSettings


def positive(
    preactivation: Tensor,
    features: Tensor,
    active: Tensor,
    form: str = "norm",
    rectified: bool = False,
) -> Tensor:
    """L_pos of Eq. 2: how far the target's active units are from their values.

    Args:
        preactivation: (K, N) f0(x).
        features: (N,) f(t).
        active: (N,) psgn(f0(t)), 1 for active units and 0 for inactive ones.
        form: `norm`, as the paper prints it, or `half_square`, half its square, as the authors
            optimise it. The norm's gradient at an exact collision is 0.
        rectified: also count what the ReLU lets through of inactive units, which must be nothing:
            f(x) of Eq. 1 in their place.

    Example:
        >>> target = torch.tensor([3.0, 4.0, -1.0])
        >>> positive(torch.tensor([[0.0, 0.0, 9.0]]), target.relu(), target >= 0)
        tensor([5.])
    """
    error = _error(preactivation, features, active, rectified)
    if form == "norm":
        norm: Tensor = torch.linalg.vector_norm(error, dim=1)
        return norm
    return error.square().sum(1) / 2


def _error(preactivation: Tensor, features: Tensor, active: Tensor, rectified: bool) -> Tensor:
    seen = preactivation * active
    return (torch.where(active > 0, seen, preactivation.relu()) if rectified else seen) - features


def negative(preactivation: Tensor, inactive: Tensor, units: Tensor) -> Tensor:
    """L_neg^i of Eq. 2: unit i is pushed down, the other inactive units are held near zero.

    Args:
        preactivation: (K, N) f0(x).
        inactive: (N,) -nsgn(f0(t)), 1 for inactive units and 0 for active ones.
        units: (K,) each corner's unit i, one of the inactive.

    Example:
        >>> inactive = torch.tensor([False, True, True])
        >>> negative(torch.tensor([[7.0, -5.0, 2.0]]), inactive, torch.tensor([1]))
        tensor([-3.])
    """
    unit = preactivation.gather(1, units[:, None])[:, 0]
    return unit - unit.abs() + (preactivation * inactive).abs().sum(1)


def settings_at(settings: LossSettings, step: int) -> LossSettings:
    """The settings with the weights that `stages` has for step `step`."""
    for stage in settings.stages:
        if step >= stage.step:
            names = ("alpha", "beta", "gamma")
            given: dict[str, Any] = {name: getattr(stage, name) for name in names}
            settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    return settings


class Terms(NamedTuple):
    """Each (K,): L_pos in its optimised form, L_neg, and their weighted sum."""

    positive: Tensor
    negative: Tensor
    total: Tensor


_ALL = slice(None)


_POOL = 8  # pixels; what is averaged away over 8x8 pixels, nobody sees


def visible_distances(images: Tensor) -> Tensor:
    """L2 distances between images whose pixels are replaced by the means of 8x8 pixels.

    A border of less than 8 pixels is left out.

    Args:
        images: (K, C, H, W).

    Returns:
        (K (K - 1) / 2,) At equal images, where every search begins, their gradient is 0.

    Raises:
        SettingError: for images under 8 pixels.
    """
    if min(images.shape[2:]) < _POOL:
        raise SettingError(
            f"loss.distance: is taken over squares of {_POOL}x{_POOL} pixels, and the images have "
            f"{images.shape[2]}x{images.shape[3]}; set loss.distance=0"
        )
    means = F.avg_pool2d(images, _POOL).flatten(1) * _POOL  # each mean stands for 8x8 pixels
    distances: Tensor = F.pdist(means)
    return distances


class CollisionLoss(nn.Module):
    """alpha L_pos + beta L_neg^i of Eq. 4, for all corners at once; `of_images` adds Eq. 6's R.

    Args:
        target: the target's features.
        units: (K,) each corner's unit.
        settings: alpha, beta, gamma, the form of L_pos, and what goes beyond the paper.
        target_logits: (classes,), where `loss.output` compares classes.
    """

    features: Tensor
    active: Tensor
    inactive: Tensor
    units: Tensor
    target_logits: Tensor | None

    def __init__(
        self,
        target: TargetFeatures,
        units: Tensor,
        settings: LossSettings,
        target_logits: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.norm = float(target.features.norm())
        self.unit = self.norm if settings.normalise else 1.0
        self.register_buffer("features", target.features)
        self.register_buffer("active", target.active.to(target.features))
        self.register_buffer("inactive", (~target.active).to(target.features))
        self.register_buffer("units", units)
        self.register_buffer("target_logits", target_logits)

    def forward(self, preactivation: Tensor, rows: slice = _ALL) -> Terms:
        """(K, N) pre-activations, of the corners `rows`, to each one's terms."""
        pos = self._positive(preactivation)
        neg = negative(preactivation, self.inactive, self.units[rows])
        return Terms(pos, neg, self.alpha * pos + self.beta * neg)

    @property
    def alpha(self) -> float:
        """The weight of L_pos: of features in units of ||f(t)||, where `normalise` says so."""
        return self.settings.alpha / self.unit**self._power

    @property
    def beta(self) -> float:
        """The weight of L_neg, likewise."""
        return self.settings.beta / self.unit

    def total(self, preactivation: Tensor, rows: slice = _ALL) -> Tensor:
        """The weighted sum (K,) alone, as the search needs it: the same values, sooner."""
        total: Tensor = _Total.apply(preactivation, self, self.units[rows])
        return total

    def interior(self, preactivation: Tensor) -> Tensor:
        """alpha L_pos (M,) of any points' pre-activations (M, N)."""
        return self.alpha * self._positive(preactivation)

    def output(self, logits: Tensor) -> Tensor:
        """output alpha L_pos(0) KL(p(t) || p(x)), (B,), of any points' logits (B, classes).

        L_pos(0), of an image without features, makes the weight one for all networks.
        """
        assert self.target_logits is not None
        weight = self.settings.output * self.alpha * self.norm**self._power / self._power
        target = self.target_logits.log_softmax(0).expand_as(logits)
        found = logits.log_softmax(1)
        return weight * F.kl_div(found, target, reduction="none", log_target=True).sum(1)

    @property
    def concerns_images(self) -> bool:
        """Whether `of_images` is anything but 0."""
        return self.settings.gamma > 0 or self.settings.distance > 0

    def of_images(self, images: Tensor, variation: Tensor) -> Tensor:
        """gamma R(P) - distance * mean visible distance, summed over the corners.

        Args:
            images: (K, C, H, W).
            variation: (K,) R(P) (sec. 4.1).
        """
        total = self.settings.gamma * variation.sum()
        if self.settings.distance and len(images) > 1:
            reward = self.settings.distance * len(images)
            total = total - reward * visible_distances(images).mean()
        return total

    @property
    def _power(self) -> int:
        return 1 if self.settings.positive_form == "norm" else 2

    def _positive(self, preactivation: Tensor) -> Tensor:
        form, rectified = self.settings.positive_form, self.settings.rectified
        return positive(preactivation, self.features, self.active, form, rectified)


class _Total(torch.autograd.Function):
    """alpha L_pos + beta L_neg^i with its gradient: half the operations autograd would run."""

    @staticmethod
    def forward(ctx: Any, preactivation: Tensor, loss: CollisionLoss, units: Tensor) -> Tensor:
        alpha, beta = loss.alpha, loss.beta
        # Its own gradient, up to a factor, with what is rectified or without.
        error = _error(preactivation, loss.features, loss.active, loss.settings.rectified)
        positive = torch.linalg.vector_norm(error, dim=1)
        push = preactivation.sign().mul_(loss.inactive).scatter_(1, units[:, None], 1.0)
        negative = (push * preactivation).sum(1)
        if loss.settings.positive_form == "norm":
            factor = torch.where(positive > 0, alpha / positive, 0.0)
            error.mul_(factor[:, None])
        else:
            positive = positive.square() / 2
            error.mul_(alpha)
        ctx.save_for_backward(error.add_(push, alpha=beta))
        total: Tensor = alpha * positive + beta * negative
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return gradient[:, None] * slope, None, None
