"""The hull of the corners: its points, what they are classified as, its worst point, its size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import SettingError
from ..networks.agreement import accepted, check_agreement
from ..networks.graph import evaluating
from ..networks.logits import ask, device_of, like_weights
from ..networks.target import TargetFeatures
from ..networks.target_layer import Observed, ceiling_at
from ..settings.rules import one_of
from .run import write_run
from .statistics import HullStatistics, Outcome, limit_of, outcome_of


def dirichlet(count: int, corners: int, generator: torch.Generator) -> Tensor:
    """Weights (count, corners) uniform on the simplex, Dirichlet(1, ..., 1)."""
    draws = torch.empty(count, corners, dtype=torch.float64).exponential_(generator=generator)
    return draws / draws.sum(1, keepdim=True)


def stick_breaking(count: int, corners: int, generator: torch.Generator) -> Tensor:
    """The authors' weights (count, corners): w1 = u1, w2 = u2 (1 - w1), ..., the last the rest.

    Their means are 1/2, 1/4, 1/8, ...: they favour the first corners.

    Example:
        >>> weights = stick_breaking(10_000, 3, torch.Generator().manual_seed(0))
        >>> weights.mean(0).round(decimals=2)
        tensor([0.5000, 0.2500, 0.2500], dtype=torch.float64)
    """
    breaks = torch.rand(count, corners - 1, generator=generator, dtype=torch.float64)
    left = torch.cat([torch.ones(count, 1, dtype=torch.float64), (1 - breaks).cumprod(1)], 1)
    return torch.cat([breaks, torch.ones(count, 1, dtype=torch.float64)], 1) * left


SAMPLERS = {"dirichlet": dirichlet, "stick_breaking": stick_breaking}


def mixes(weights: Tensor, corners: Tensor) -> Tensor:
    """Convex mixes of corners (K, C, H, W): (B, K) weights to (B, C, H, W) images.

    They lie in memory as the corners do: what is found with the channels last is measured so.
    """
    images: Tensor = torch.tensordot(weights.to(corners), corners, 1)
    if corners.is_contiguous(memory_format=torch.channels_last):
        images = images.contiguous(memory_format=torch.channels_last)
    return images


class WorstCase(NamedTuple):
    """The point of a hull where the target class's margin was found smallest: (K,) weights."""

    weights: Tensor
    image: Tensor
    predicted_class: int
    probability: float
    correct: bool


_LARGE = 10_000  # numbers an image, over which a batch must be small


@dataclass
class Hull:
    """Corners that collide with a target, and the classifier they do it to.

    It lies where the classifier lies: tensors are brought there, and what comes out lies there.

    Attributes:
        model: the classifier.
        layer: name of the target layer.
        corners: (K, C, H, W) float32 in [0, 1].
        initial, target: (C, H, W).
        units: (K,) the unit each corner pushed down.
        summary: what `summary.json` holds.
        batch: images a forward pass takes at most.
    """

    model: nn.Module
    layer: str
    corners: Tensor
    initial: Tensor
    target: Tensor
    units: Tensor
    summary: dict[str, Any]
    batch: int = 256
    observed: Observed = field(init=False, repr=False)
    features: TargetFeatures = field(init=False, repr=False)
    target_logits: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.corners[0].numel() > _LARGE:
            self.batch = min(self.batch, 16)  # 256 take gigabytes, and longer each
        self.model = accepted(self.model)
        for name in ("corners", "initial", "target", "units"):
            setattr(self, name, getattr(self, name).to(device_of(self.model)))
        self.observed = Observed(self.model, self.layer)
        pair = torch.stack([self.initial, self.target]).detach()
        check_agreement(self.model, self.layer, pair, self.observed)
        with torch.no_grad(), evaluating(self.model):
            logits, preactivation = self._observe(self.target[None])
        self.features, self.target_logits = (
            TargetFeatures(preactivation[0], ceiling_at(self.model, self.layer)),
            logits[0],
        )

    def _observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and pre-activations, where the classifier lies."""
        logits, preactivation = self.observed(like_weights(self.model, images))
        return logits, preactivation

    @property
    def target_class(self) -> int:
        """The class the classifier gives the target, right or wrong."""
        target_class: int = self.summary["target_class"]
        return target_class

    def outcome(self, sample: dict[str, Any]) -> Outcome:
        """What `sample`, of this hull, says it is: see Outcome."""
        return outcome_of(sample, self.summary["target_probability"], limit_of(self.summary))

    def points(self, weights: Tensor) -> Tensor:
        """Convex mixes of the corners: (B, K) weights to (B, C, H, W) images."""
        return mixes(weights, self.corners)

    def sample(
        self,
        count: int,
        law: str = "dirichlet",
        seed: int = 0,
        uint8: bool = False,
        corners: Tensor | None = None,
        name: str = "",
    ) -> dict[str, Any]:
        """Classify `count` random points of the hull.

        Args:
            count: how many.
            law: `dirichlet` (uniform) or `stick_breaking` (the authors').
            seed: decides the weights.
            uint8: mix the corners as their 8-bit PNGs hold them, as the authors do.
            corners: (K, C, H, W) other corners, to compare with.
            name: what the progress bar says, instead of the law.

        Returns:
            The entries `evaluation.json` has for a sampler. What they claim is sampled, not proved.
        """
        if count < 1:
            raise SettingError(f"samples={count}: must be at least 1")
        one_of("law", law, tuple(SAMPLERS))
        generator = torch.Generator().manual_seed(seed)
        corners = self.corners if corners is None else corners
        if uint8:
            corners = (corners * 255).round() / 255
        draw, sizes = SAMPLERS[law], batch_sizes(count, self.batch)
        weights = (draw(size, len(corners), generator) for size in sizes)
        images = (mixes(part, corners) for part in weights)
        return self.measure(images, count, name or law + (", 8-bit" if uint8 else ""))

    @torch.inference_mode()
    def measure(self, batches: Iterable[Tensor], count: int, name: str) -> dict[str, Any]:
        """Classify `count` points, any batches (B, C, H, W), holding one batch in memory."""
        statistics = HullStatistics(self.features, self.target_class, self.target_logits)
        bar = tqdm(total=count, desc=name, unit="point", mininterval=0.5, delay=1)
        with bar, evaluating(self.model):
            for images in batches:
                statistics.update(*self._observe(images))
                bar.update(len(images))
        found: dict[str, Any] = statistics.compute()
        return found

    def initial_distances(self) -> Tensor:
        """L2 distances (K,) of the corners from the initial image, in the same units."""
        scale: float = self.summary["distance_scale"]
        distances: Tensor = (self.corners - self.initial).flatten(1).norm(dim=1)
        return distances * scale

    def corner_distances(self) -> Tensor:
        """L2 distances (K (K - 1) / 2,) between corners, in pixels of [0, `distance_scale`]."""
        scale: float = self.summary["distance_scale"]
        return torch.pdist(self.corners.flatten(1)) * scale

    @torch.inference_mode(False)
    @torch.enable_grad()
    def worst_case(self, starts: int = 32, steps: int = 50, seed: int = 0) -> WorstCase:
        """Search the hull for the point where the target class's margin is smallest.

        Projected gradient over the simplex, from all corners, all edge midpoints and `starts`
        random points at once. What it finds is an upper bound on the true worst case.
        """
        count = len(self.corners)
        corners = torch.eye(count)
        middles = (corners[:, None] + corners)[*torch.triu_indices(count, count, 1)] / 2
        random = dirichlet(starts, count, torch.Generator().manual_seed(seed)).float()
        weights = torch.cat([corners, middles, random]).to(self.corners)
        with evaluating(self.model):
            found = [self._descend(part, steps) for part in weights.split(self.batch)]
        margins = torch.cat([margin for margin, _ in found])
        worst = torch.cat([weight for _, weight in found])[margins.argmin()]
        image = self.points(worst[None])
        with torch.inference_mode(), evaluating(self.model):
            probabilities = ask(self.model, image)[0].softmax(0)
        predicted = int(probabilities.argmax())
        return WorstCase(
            worst, image[0], predicted, float(probabilities[self.target_class]),
            predicted == self.target_class,
        )  # fmt: skip

    def _descend(self, weights: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Each start's smallest margin and the weights that have it."""
        best, best_weights = weights.new_full((len(weights),), torch.inf), weights
        for step in tqdm(range(steps + 1), "Worst case", unit="step", mininterval=0.5, delay=1):
            weights = weights.detach().requires_grad_()
            margins = _margin(ask(self.model, self.points(weights)), self.target_class)
            (gradient,) = torch.autograd.grad(margins.sum(), weights)
            better = margins.detach() < best
            best = torch.where(better, margins.detach(), best)
            best_weights = torch.where(better[:, None], weights.detach(), best_weights)
            gradient = gradient - gradient.mean(1, keepdim=True)
            length = 0.25 * (1 - step / steps) / gradient.norm(dim=1, keepdim=True).clamp_min(1e-12)
            weights = project_to_simplex(weights.detach() - length * gradient)
        return best, best_weights

    def save(self, directory: str | Path) -> None:
        """Write the run directory's corners, summary and images."""
        write_run(
            Path(directory), self.corners, self.initial, self.target, self.units, self.summary
        )


def batch_sizes(count: int, batch: int) -> Iterator[int]:
    """`count` cut into pieces of `batch`, the last one smaller."""
    for start in range(0, count, batch):
        yield min(batch, count - start)


def _margin(logits: Tensor, target_class: int) -> Tensor:
    """The target class's logit over the largest other one, (B,)."""
    others = logits.clone()
    others[:, target_class] = -torch.inf
    return logits[:, target_class] - others.amax(1)


def project_to_simplex(points: Tensor) -> Tensor:
    """The nearest weights (B, K) that are at least 0 and add up to 1.

    Example:
        >>> project_to_simplex(torch.tensor([[0.5, 0.5], [2.0, 0.0]]))
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """
    ranked = points.sort(1, descending=True).values
    excess = ranked.cumsum(1) - 1
    index = torch.arange(1, points.shape[1] + 1, device=points.device)
    last = (ranked - excess / index > 0).sum(1, keepdim=True)
    return (points - excess.gather(1, last - 1) / last).clamp_min(0)
