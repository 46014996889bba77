"""The hull of the corners: a record of corners, network and target, with its measurements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.devices import without_tf32
from ..data.images import SQUARES, pooled_distance
from ..errors import SettingError
from ..graph.activations import IDENTITY
from ..graph.agreement import check_agreement, validate_model
from ..graph.flow import Following, check_hiding, following
from ..graph.graph import Graph, evaluating, trace
from ..graph.logits import device_of, like_weights
from ..graph.probabilities import giving
from ..graph.target import TOLERANCE, TargetFeatures, with_edges
from ..graph.target_layer import Observed
from ..networks.unwrap import unwrap
from ..networks.weights import weights_hash
from ..proofs.problem import Problem
from ..runs.evaluation import Proofs, Sample
from ..runs.records import Summary
from ..runs.run import Corners, load_run
from ..settings.rules import at_least
from ..simplex import dirichlet, layout_of, mixes
from .evaluator import Evaluator, Replica
from .outputs import Classes, Output, outcome_of, output_of
from .statistics import Outcome, limit_of
from .worst_case import Goal, WorstCase


@dataclass(frozen=True, repr=False, eq=False)
class Hull(Corners):
    """Corners that collide with a target in a network.

    The record is immutable; `dataclasses.replace` makes a changed copy. Tensors are moved to the
    model's device. Figures depend on `batch` and `others` only through rounding.

    Attributes:
        model: the network.
        layer: name of the target layer.
        corners: (K, C, H, W) float32 in [0, 1].
        initial, target: (C, H, W).
        units: (K,) the unit that each corner pushes down.
        summary: content of `summary.json`; a dict with some of its entries suffices.
        batch: largest batch; None for as many images as keep the device busy and fit in memory.
        others: further devices for its points, each with a copy of the model.
        graph: graph of the model; traced if None.
        following: activation and bypasses of the layer.
        features: the target's features at the layer.
        target_logits: (classes,) the target's logits.
        evaluator: evaluates points.

    Raises:
        SettingError: if the model or layer cannot be used, or corners are not finite.
    """

    model: nn.Module
    layer: str
    corners: Tensor
    initial: Tensor
    target: Tensor
    units: Tensor
    summary: Summary
    batch: int | None = None
    others: Sequence[torch.device] = ()
    graph: Graph = field(default=cast(Graph, None))
    following: Following = field(init=False)
    features: TargetFeatures = field(init=False)
    output: Output = field(init=False)
    evaluator: Evaluator = field(init=False)

    @without_tf32()
    def __post_init__(self) -> None:
        model, found = (
            validate_model(unwrap(self.model)),
            vars(self),
        )  # the only assignment to it
        for name in ("corners", "initial", "target", "units"):
            found[name] = found[name].to(device_of(model))
        if not self.corners.isfinite().all():
            raise SettingError(
                "corners", None, "have pixels that are not finite numbers",
                "remove these corners",
            )  # fmt: skip
        pair = torch.stack([self.initial, self.target]).detach()
        summary = Summary.of(self.summary) if isinstance(self.summary, dict) else self.summary
        found["model"] = giving(model, pair, summary.output)
        if self.graph is None or self.graph.model is not self.model:
            found["graph"] = trace(self.model, self.target.shape)
        if summary.push == "unit":
            check_hiding(self.graph, self.layer)
        observed = Observed(self.graph, self.layer)
        looked_at = torch.cat([pair, self._between()])
        past = check_agreement(self.graph, self.layer, looked_at, observed)
        then = following(self.graph, self.layer)._replace(past=past)
        if summary.solver == "exact" and not (then.activation.is_exact and not past):
            then = then._replace(activation=IDENTITY)  # as in the search of its corners
        with torch.no_grad(), evaluating(self.model):
            image = like_weights(self.model, self.target[None])
            logits, preactivation = observed(
                image.contiguous(memory_format=layout_of(self.corners))
            )
        tolerance = summary.tolerance or TOLERANCE
        activation = with_edges(then.activation, preactivation[0], tolerance)
        found["following"], found["output"] = then, output_of(
            summary.output, logits[0], summary.threshold, summary.get("target_class"),
            summary.get("target_probability"),
        )  # fmt: skip
        found["features"] = features = TargetFeatures(preactivation[0], activation)
        found["summary"] = summary | {
            "activation": then.activation.name,
            "tolerance": 0.0 if then.activation.is_exact else tolerance,
            "push": summary.push,
            "bypassed": bool(past),
        }
        own = Replica(self.model, observed, self.corners, features, self.output)
        found["evaluator"] = Evaluator(own, self.batch, self.others)

    @classmethod
    def load(cls, directory: str | Path, model: nn.Module) -> "Hull":
        """Read the hull of `save` or train.py; no code in the directory is executed.

        Args:
            directory: of a run, or of a sweep, whose corners are combined.
            model: the network that the corners were found with.

        Raises:
            SettingError: if the run is incomplete, or the model has other weights.
        """
        run = load_run(directory)
        model = unwrap(model)
        if run.summary.classifier_hash not in (None, found := weights_hash(model)):
            raise SettingError(
                "model", type(model).__name__,
                f"the corners were found with weights of hash {run.summary.classifier_hash}, the "
                f"model's have {found}", "give the network they were found with",
            )  # fmt: skip
        held = run.corners, run.initial, run.target, run.units, run.summary
        return cls(model, run.summary.layer, *held)

    def _between(self) -> Tensor:
        """Interior points (3, C, H, W) at which the graph is compared with the model.

        Agreement at the corners does not imply agreement between them.
        """
        random = dirichlet(2, len(self.corners), torch.Generator().manual_seed(0))
        weights = torch.cat([torch.full_like(random[:1], 1 / len(self.corners)), random])
        return mixes(weights.to(self.corners), self.corners.detach())

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the constructor's arguments; the graph is traced again."""
        return Hull, (
            self.model, self.layer, self.corners, self.initial, self.target, self.units,
            self.summary, self.batch, self.others,
        )  # fmt: skip

    def __repr__(self) -> str:
        """One line."""
        count, *shape = self.corners.shape
        return (
            f"Hull({count} corners {tuple(shape)}, {type(self.model).__name__}, "
            f"layer {self.layer!r}, output {self.output.kind})"
        )

    @property
    def target_class(self) -> int:
        """The class that the network gives the target, right or wrong.

        Raises:
            SettingError: if the network is an encoder, which has no classes.
        """
        if not isinstance(self.output, Classes):
            raise SettingError("output", "features", "has no classes", "ask for its features")
        return self.output.target_class

    @property
    def target_logits(self) -> Tensor:
        """(D,) output of the network for the target."""
        return self.output.target

    def outcome(self, sample: Sample, searched: float | None = None) -> Outcome:
        """The outcome that a `sample` of this hull shows; see Outcome.

        Args:
            sample: of this hull.
            searched: largest feature error that a search found, `feature_relative` of
                `worst_case(of="features")`; None if there was no search.
        """
        at_corners, limit = self.summary.corner_feature_relative_max, limit_of(self.summary)
        return outcome_of(self.output, sample, limit, at_corners, searched)

    def points(self, weights: Tensor) -> Tensor:
        """Interpolations (B, C, H, W) of the corners with weights (B, K)."""
        return mixes(weights, self.corners)

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) and pre-activations (B, N) of images (B, C, H, W)."""
        return self.evaluator.own.observe(images)

    def sample(
        self,
        count: int,
        sampler: str = "dirichlet",
        seed: int = 0,
        uint8: bool = False,
        corners: Tensor | None = None,
        name: str = "",
    ) -> Sample:
        """Measure `count` random points of the hull.

        Args:
            count: number of points.
            sampler: the sampler, `dirichlet` (uniform) or `stick_breaking` (the authors').
            seed: of the weights.
            uint8: use the corners of the 8-bit PNGs, as the authors do.
            corners: (K, C, H, W) other corners, for comparison.
            name: label of the progress bar; by default the sampler.

        Returns:
            The entries of a sampler in `evaluation.json`. They are sampled, not proved.

        Raises:
            CollisionError: where the network's answers are not finite.
        """
        return self.evaluator.sample(count, sampler, seed, uint8, corners, name)

    def worst_case(
        self,
        starts: int = 32,
        steps: int = 50,
        seed: int = 0,
        precision: torch.dtype | None = None,
        of: Goal = "output",
    ) -> WorstCase:
        """The worst point seen by a search, at the corners, and in the hull's samples.

        Of the output: points of another class come first, then the smallest probability of the
        target's class; for an encoder the smallest cosine. Of the features: the largest feature
        error ||f(x) - f(t)||.

        The search is projected gradient descent over the simplex from all corners, all edge
        midpoints and `starts` random points; after some steps only the best paths continue. There
        may be a worse point.

        Args:
            starts: number of random starting points.
            steps: of each path.
            seed: of the random points.
            precision: half precision for the search; the result is measured in the model's.
            of: what the point is the worst of, `output` or `features`.

        Raises:
            SettingError: if `of` is neither.
        """
        return self.evaluator.worst_case(starts, steps, seed, precision, of)

    def relative_size(self, images: Tensor | Sequence[Tensor]) -> float:
        """Mean distance between corners, divided by that between two of the given images.

        Args:
            images: at least two images of the data set, each (C, H, W) like the corners, floating
                in [0, 1] or uint8 in [0, 255].

        Raises:
            SettingError: if there are fewer than two corners or images, the images have another
                shape or range, or all are equal.
        """
        return self.pooled_sizes(images)[1]

    def pooled_sizes(self, images: Tensor | Sequence[Tensor]) -> dict[int, float]:
        """Relative size after averaging over squares of 1, 2, 4 and 8 pixels, by side.

        What remains at 8 pixels is coarse; the rest differs within squares of that side. Borders
        narrower than a square are left out, as are squares larger than the images.

        Args:
            images: as for `relative_size`.

        Raises:
            SettingError: as for `relative_size`.
        """
        if len(self.corners) < 2:
            raise SettingError(
                "relative_size", None, "needs a hull of two corners or more", "this has one"
            )
        given = [image / 255 if image.dtype == torch.uint8 else image for image in images]
        if len(given) < 2:
            raise SettingError("images", None, "must be two or more", f"these are {len(given)}")
        if other := [each.shape for each in given if each.shape != self.target.shape]:
            raise SettingError(
                "images",
                None,
                f"must have the corners' shape {tuple(self.target.shape)}",
                f"one has {tuple(other[0])}; resize them as the classifier's images are",
            )
        stacked = torch.stack(given).to(self.corners)
        if not (stacked.amin() >= 0 and stacked.amax() <= 1):
            raise SettingError(
                "images", None, "must be in [0, 1], as the corners are", "divide them by 255"
            )
        if not pooled_distance(stacked, 1):
            raise SettingError("images", None, "are all equal", "give two that differ")
        fitting = [square for square in SQUARES if square <= min(self.target.shape[1:])]
        distances = {square: pooled_distance(stacked, square) for square in fitting}
        return {
            square: pooled_distance(self.corners, square) / distance
            for square, distance in distances.items()
            if distance
        }

    def initial_distances(self) -> Tensor:
        """L2 distances (K,) of the corners from the initial image, pixels in [0, scale]."""
        distances: Tensor = (self.corners - self.initial).flatten(1).norm(dim=1)
        return distances * self.summary.distance_scale

    def corner_distances(self) -> Tensor:
        """L2 distances (K (K - 1) / 2,) between corners, in pixels of [0, `distance_scale`]."""
        return torch.pdist(self.corners.flatten(1)) * self.summary.distance_scale

    def prove(self, seconds: float = 60.0) -> Proofs:
        """Prove the class of every point, and bound the feature error over the hull.

        Subdomains of the hull are bounded, and halved until the bounds decide or time is up. See
        `proofs.whole_hull`, and docs/explanation/method.md for the argument.

        Args:
            seconds: time for each of the two statements.

        Returns:
            `class`: `outcome` is `proved`, `refuted`, `undecided` or, for an encoder, `no class`;
            with `share_proved` of the hull's volume (of its weights, if corners coincide),
            `margin_min`, `probability_min`, `pieces` and `seconds`. `collision`:
            `feature_relative_max` is an upper bound on
            ||f(x) - f(t)|| / ||f(t)||. Either has a `reason` if nothing is proved.

        Raises:
            SettingError: if the time is negative or not a number.
        """
        from ..proofs.whole_hull import prove  # not needed by searches

        at_least("seconds", seconds, 0)
        worst = self.worst_case().weights if seconds > 0 and len(self.corners) > 1 else None
        return prove(self.problem, seconds, [] if worst is None else [worst.tolist()])

    @property
    def problem(self) -> Problem:
        """The problem that proofs solve."""
        return Problem(
            self.graph, self.layer, self.corners, self.target, self.features,
            self.output.target_class, limit_of(self.summary), tuple(self.summary.numbers),
            self.summary.solver == "exact",
        )  # fmt: skip
