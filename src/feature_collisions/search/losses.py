"""The losses of Eq. 2 to 6: a pure function per term, and their weighted sum.

Shapes: `preactivation` f0(x) is (K, N), one row per corner; a term of the features is (K,), one
value per corner. Corners are independent there, so the gradient of the sum has one part per corner.

A new term of the features or logits is a function here, and a line in the method of `CollisionLoss`
that has its inputs. A term of the images is one entry of `of_images`. The functions take
pre-activations from `TargetFeatures.oriented`: units that are hidden above a ceiling are mirrored,
so hidden values are negative.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import pooled_distances
from ..errors import SettingError
from ..graph.target import TargetFeatures, positive
from ..hull.distances import SIGMA, smooth_distances
from ..settings.search import LossSettings

_ALL = slice(None)


def negative(preactivation: Tensor, inactive: Tensor, units: Tensor) -> Tensor:
    """L_neg^i of Eq. 2, (K,): unit i is pushed down, the other inactive units are held near zero.

    It is one product with the signs of |.|, 1 for unit i. The gradient is that of the paper's two
    terms, and a step on MNIST takes 7 % less time.

    Args:
        preactivation: (K, N) f0(x).
        inactive: (N,) -nsgn(f0(t)), 1 for inactive units and 0 for active ones.
        units: (K,) each corner's unit i, an inactive unit.

    Example:
        >>> inactive = torch.tensor([False, True, True])
        >>> negative(torch.tensor([[7.0, -5.0, 2.0]]), inactive, torch.tensor([1]))
        tensor([-3.])
    """
    signs = (preactivation.detach().sign() * inactive).scatter_(1, units[:, None], 1.0)
    return (signs * preactivation).sum(1)


def settings_at(settings: LossSettings, step: int) -> LossSettings:
    """The settings with the weights of `stages` at `step`."""
    for stage in settings.stages:
        if step >= stage.step:
            names = ("alpha", "beta", "gamma")
            given: dict[str, Any] = {name: getattr(stage, name) for name in names}
            settings = replace(settings, **{k: v for k, v in given.items() if v is not None})
    return settings


def divergence(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL(p(t) || p(x)) of class probabilities, in nats: logits (B, classes) to (B,).

    Args:
        logits: (B, classes) of any images.
        target_logits: (classes,) of the target.
    """
    target = target_logits.log_softmax(0).expand_as(logits)
    return F.kl_div(logits.log_softmax(1), target, reduction="none", log_target=True).sum(1)


def directions(corners: Sequence[int], like: Tensor) -> Tensor:
    """Smooth random directions (K, C, H, W) of norm 1; each depends only on its corner's index.

    They are noise at every eighth pixel, enlarged by bilinear interpolation.

    Args:
        corners: indices of the K corners.
        like: (C, H, W) of the images' shape, dtype and device.
    """
    channels, *size = like.shape
    coarse = [-(-side // 8) + 1 for side in size]
    found = []
    for corner in corners:
        generator = torch.Generator().manual_seed(corner)
        noise = torch.randn(1, channels, *coarse, generator=generator, dtype=torch.float64)
        smooth = F.interpolate(noise, size, mode="bilinear", align_corners=True)[0]
        found.append(smooth / smooth.norm())
    return torch.stack(found).to(like)


def mean_distance(images: Tensor) -> Tensor:
    """Mean RMS distance between two of the images (K, C, H, W).

    Its gradient at equal images is 0.
    """
    mean: Tensor = F.pdist(images.flatten(1)).mean() / math.sqrt(images[0].numel())
    return mean


def distance_weight(settings: LossSettings, size: Sequence[int]) -> float:
    """The weight `loss.distance` for images of `size` (C, H, W), also where it is null."""
    if settings.distance is not None:
        return settings.distance
    if settings.push != "apart" or min(size[1:]) < 2 * SIGMA:  # nothing is left of small images
        return 0.0
    return settings.reach / 3 / math.sqrt(math.prod(size))


_PAIRS = 10**10  # pixels of all pairs; as many take a core half a minute, without a look at signals


def check_pairs(count: int, size: Sequence[int]) -> None:
    """Raise SettingError if `count` corners of `size` (C, H, W) are too many to be pushed apart.

    Each step compares all pairs in one operation, which no signal ends.
    """
    pixels = math.prod(size)
    compared = count * (count - 1) // 2 * pixels
    if compared <= _PAIRS:
        return
    most = int((1 + math.sqrt(1 + 8 * _PAIRS / pixels)) / 2)
    raise SettingError(
        "corner",
        f"{count} corners",
        f"are pushed apart in pairs: a step compares {compared:.1e} pixels, over {_PAIRS:.0e}",
        f"search at most {most:,} at once, or one by one with loss.push=direction",
    )


class CollisionLoss(nn.Module):
    """alpha L_pos + beta L_neg^i of Eq. 4 for all corners; `of_images` adds Eq. 6's R.

    If no unit is pushed, L_neg is left out, L_pos counts all that later layers see, and `of_images`
    rewards the distance between corners, or along directions.

    Args:
        target: the target's features.
        units: (K,) each corner's unit; -1 for none.
        settings: weights and form of the terms; `push` is `unit`, `direction` or `apart`.
        target_logits: (classes,), needed for `loss.output`.
        initial: (C, H, W), needed for `loss.nearness` and for directions.
        along: (K, C, H, W) each corner's direction, for `push=direction`.
    """

    features: Tensor
    active: Tensor
    inactive: Tensor
    units: Tensor
    target_logits: Tensor | None
    initial: Tensor | None
    along: Tensor | None

    def __init__(
        self,
        target: TargetFeatures,
        units: Tensor,
        settings: LossSettings,
        target_logits: Tensor | None = None,
        initial: Tensor | None = None,
        along: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.target = TargetFeatures(target.preactivation, target.activation)  # to be moved
        self.norm = float(target.features.norm())
        self.scale = self.norm if settings.normalise and self.norm else 1.0  # f(t) may be 0
        self.register_buffer("features", target.values)
        self.register_buffer("active", target.active.to(target.features))
        self.register_buffer("inactive", (~target.active).to(target.features))
        self.register_buffer("units", units)
        self.register_buffer("target_logits", target_logits)
        self.register_buffer("initial", initial)
        self.register_buffer("along", along)

    @property
    def alpha(self) -> float:
        """Weight of L_pos, divided by ||f(t)|| (squared for `half_square`) if `normalise`."""
        return self.settings.alpha / self.scale**self._power

    @property
    def beta(self) -> float:
        """Weight of L_neg, divided by ||f(t)|| if `normalise`."""
        return self.settings.beta / self.scale

    def forward(self, preactivation: Tensor, rows: slice = _ALL) -> Tensor:
        """Eq. 4 (K,) of the corners `rows` with pre-activations (K, N)."""
        oriented = self.target.oriented(preactivation)
        if not self.pushes_units:
            return self._interior(oriented)
        pushed = negative(oriented, self.inactive, self.units[rows])
        return self._interior(oriented) + self.beta * pushed

    @property
    def pushes_units(self) -> bool:
        """Whether each corner pushes a unit down, as in the paper."""
        return self.settings.push not in ("direction", "apart")

    @property
    def ties_corners(self) -> bool:
        """Whether a term of the images depends on several corners."""
        return bool(self.settings.distance) or self.settings.push == "apart"

    def interior(self, preactivation: Tensor) -> Tensor:
        """alpha L_pos (M,) of interior points with pre-activations (M, N)."""
        return self._interior(self.target.oriented(preactivation))

    def _interior(self, oriented: Tensor) -> Tensor:
        form = self.settings.positive_form
        rectified = self.settings.rectified or not self.pushes_units
        return self.alpha * positive(oriented, self.features, self.active, form, rectified)

    def output(self, logits: Tensor) -> Tensor:
        """output alpha L_pos(0) KL(p(t) || p(x)), (B,), from logits (B, classes).

        L_pos(0), the loss of zero features, makes the weight independent of the network.
        """
        assert self.target_logits is not None
        weight = self.settings.output * self.alpha * self.norm**self._power / self._power
        return weight * divergence(logits, self.target_logits)

    def of_images(self, images: Tensor, variation: Tensor, every: Tensor) -> list[Tensor]:
        """The terms of the images with a weight other than 0, each summed over the corners.

        A term of several corners is computed from all, and multiplied by this rank's share of
        them, so it counts once over all ranks.

        Args:
            images: (K, C, H, W) of this rank.
            variation: (K,) R(P) (sec. 4.1).
            every: the images of all corners, with these.
        """
        settings, terms = self.settings, []
        if settings.gamma:
            terms.append(settings.gamma * variation.sum())
        # Minus the first: otherwise rounding separates equal images, with a gradient of full
        # length.
        parted = every - every[:1] if self.ties_corners and len(every) > 1 else None
        weight = distance_weight(settings, every.shape[1:])
        if weight and parted is not None:
            square = settings.distance_pooling
            apart = pooled_distances(parted, square) if square else smooth_distances(parted)
            terms.append(-weight * len(images) * apart.mean())
        if settings.push == "apart" and parted is not None:
            terms.append(-settings.reach * len(images) * mean_distance(parted))
        if settings.push == "direction":
            assert self.initial is not None
            assert self.along is not None
            moved = ((images - self.initial) * self.along).sum()
            terms.append(-settings.reach * moved / math.sqrt(images[0].numel()))
        if settings.nearness:
            assert self.initial is not None
            terms.append(settings.nearness / 2 * (images - self.initial).square().sum())
        return terms

    def curves(self, preactivation: Tensor, variation: Tensor) -> dict[str, Tensor]:
        """Curves of each corner, (K,) each: L_pos (the norm), the sum, R(P).

        If units are pushed, also L_neg and f0 of unit i.

        Args:
            preactivation: (K, N) f0 of all corners.
            variation: (K,) R(P).
        """
        total = self(preactivation)
        if self.settings.gamma:  # 0 times NaN is NaN
            total = total + self.settings.gamma * variation
        oriented = self.target.oriented(preactivation)
        found = {"positive": positive(oriented, self.features, self.active)}
        if self.pushes_units:
            found["negative"] = negative(oriented, self.inactive, self.units)
            found["unit_preactivation"] = preactivation.gather(1, self.units[:, None])[:, 0]
        return found | {"total": total, "total_variation": variation}

    @property
    def _power(self) -> int:
        return 1 if self.settings.positive_form == "norm" else 2
