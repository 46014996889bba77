"""The hull of the corners: its points, what they are classified as, its worst point, its size."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.devices import CPU, in_half, sparing, without_tf32
from ..data.images import SQUARES, pooled_distance
from ..data.memory import images_at_once
from ..data.threads import Threads, threads_of_cpu
from ..errors import SettingError
from ..graph.activations import IDENTITY
from ..graph.agreement import accepted, check_agreement
from ..graph.flow import Following, check_hiding, following
from ..graph.graph import Graph, copied, evaluating, trace
from ..graph.logits import ask, device_of, like_weights
from ..graph.probabilities import giving_logits
from ..graph.target import TOLERANCE, TargetFeatures, with_edges
from ..graph.target_layer import Observed
from ..networks.unwrap import unwrap
from ..networks.weights import weights_hash
from ..proofs.problem import Problem
from ..proofs.whole_hull import prove
from ..runs.records import Summary
from ..runs.run import Corners, load_run
from ..settings.rules import at_least, one_of
from ..simplex import SAMPLERS, dirichlet, mixes
from .statistics import HullStatistics, Outcome, limit_of, outcome_of
from .worst_case import Seen, WorstCase, descend, goodness, margin, slopes_at

_LARGE = 10_000  # numbers an image, over which points are drawn in smaller pieces

Result = TypeVar("Result")


_CACHED = ("everywhere", "_threads", "at_once", "_suspects")  # follow from the fields


@dataclass(repr=False)
class Hull(Corners):
    """Corners that collide with a target, and the classifier they do it to.

    It lies where the classifier lies: tensors are brought there, and what comes out lies there.

    Attributes:
        model: the classifier.
        layer: name of the target layer.
        corners: (K, C, H, W) float32 in [0, 1].
        initial, target: (C, H, W).
        units: (K,) the unit each corner pushed down.
        summary: what `summary.json` holds; a dict of what is known of it will do.
        batch: images a forward pass takes at most; None for as many as keep the device busy and
            fit into its memory. No figure depends on it, but for rounding.
        others: devices that share its points with the one it lies on, by a copy of the model on
            each. No figure depends on them, but for rounding.
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
    graph: Graph = field(default=cast(Graph, None), repr=False)  # traced where none is given
    following: Following = field(init=False, repr=False)
    observed: Observed = field(init=False, repr=False)
    features: TargetFeatures = field(init=False, repr=False)
    target_logits: Tensor = field(init=False, repr=False)

    @without_tf32()
    def __post_init__(self) -> None:
        self.model = accepted(unwrap(self.model))
        for name in ("corners", "initial", "target", "units"):
            setattr(self, name, getattr(self, name).to(device_of(self.model)))
        if not self.corners.isfinite().all():
            raise SettingError(
                "corners: have pixels that are not finite numbers; leave out the corners that do"
            )
        pair = torch.stack([self.initial, self.target]).detach()
        self.model = giving_logits(self.model, pair)
        if self.graph is None or self.graph.model is not self.model:
            self.graph = trace(self.model, self.target.shape)
        if isinstance(self.summary, dict):
            self.summary = Summary.of(self.summary)
        if self.summary.push == "unit":
            check_hiding(self.graph, self.layer)
        self.observed = Observed(self.graph, self.layer)
        looked_at = torch.cat([pair, self._between()])
        past = check_agreement(self.graph, self.layer, looked_at, self.observed)
        self.following = following(self.graph, self.layer)._replace(past=past)
        if self.summary.solver == "exact" and not (self.following.activation.is_exact and not past):
            self.following = self.following._replace(activation=IDENTITY)  # as its corners have it
        self.summary = self.summary | {
            "activation": self.following.activation.name,
            "push": self.summary.push,
            "bypassed": bool(past),
        }
        with torch.no_grad(), evaluating(self.model):
            logits, preactivation = self.observe(self.target[None])
        said = self.summary.tolerance or TOLERANCE
        activation = with_edges(self.following.activation, preactivation[0], said)
        self.features, self.target_logits = TargetFeatures(preactivation[0], activation), logits[0]
        tolerance = 0.0 if self.following.activation.is_exact else said
        self.summary = self.summary | {"tolerance": tolerance}

    @classmethod
    def load(cls, directory: str | Path, model: nn.Module) -> "Hull":
        """Read what `save` or train.py wrote; nothing in the directory is executed.

        Args:
            directory: a run's, or a sweep's, whose corners are put together.
            model: the network that the corners were found with.

        Raises:
            SettingError: for a directory without a whole run, or a model with other weights.
        """
        run = load_run(directory)
        model = unwrap(model)
        if run.summary.classifier_hash not in (None, found := weights_hash(model)):
            raise SettingError(
                "model", type(model).__name__,
                f"the corners were found with weights of hash {run.summary.classifier_hash}, its "
                f"own have {found}", "give the network that they were found with",
            )  # fmt: skip
        held = run.corners, run.initial, run.target, run.units, run.summary
        return cls(model, run.summary.layer, *held)

    def _between(self) -> Tensor:
        """Points between the corners, (3, C, H, W), at which the graph is compared with the model.

        Corners alone would not do: what holds at them need not hold between them.
        """
        generator = torch.Generator().manual_seed(0)
        random = dirichlet(2, len(self.corners), generator)
        weights = torch.cat([torch.full_like(random[:1], 1 / len(self.corners)), random])
        return mixes(weights.to(self.corners), self.corners.detach())

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; what was made from the old value is made anew on its next use."""
        super().__setattr__(name, value)
        for cached in () if name in _CACHED else _CACHED:
            self.__dict__.pop(cached, None)

    def __copy__(self) -> "Hull":
        """The same fields and model, with threads and twins of its own once it needs them."""
        copied_hull = object.__new__(type(self))
        kept = {name: value for name, value in self.__dict__.items() if name not in _CACHED}
        copied_hull.__dict__.update(kept)
        return copied_hull

    def __getstate__(self) -> dict[str, Any]:
        """What is deep-copied and pickled: no threads, and no graph, which cannot be."""
        left = (*_CACHED, "graph", "observed", "following")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Trace the model anew."""
        self.__dict__.update(state, graph=None)
        self.__post_init__()

    def __repr__(self) -> str:
        """One line."""
        count, *shape = self.corners.shape
        return (
            f"Hull({count} corners {tuple(shape)}, {type(self.model).__name__}, "
            f"layer {self.layer!r}, target class {self.summary.get('target_class')})"
        )

    @property
    def place(self) -> torch.device:
        """Where it lies."""
        return self.corners.device

    @cached_property
    def everywhere(self) -> list["Hull"]:
        """The same hull for every thread that shares its points, itself the first.

        One for each device; on the CPU as many as keep its cores busy, over the same weights: two
        threads with a batch each are faster than one batch that both work on.
        """
        places = [self.place, *self.others]
        if all(place.type == "cpu" for place in places):
            places = [CPU] * max(len(places), threads_of_cpu())
        try:
            return [self, *map(self._twin, places[1:])]
        except SettingError:  # a model that cannot be copied
            if self.others:
                raise
            return [self]

    @cached_property
    def _suspects(self) -> list[Tensor]:
        """Weights (1, K) of the worst points that samples of the hull had."""
        return []

    @cached_property
    def _threads(self) -> Threads:
        return Threads(len(self.everywhere), self.place.type == "cpu")

    @torch.inference_mode(False)
    def _twin(self, place: torch.device) -> "Hull":
        """The same, for another thread: with modules of its own, so that none is run by two."""
        twin = copy.copy(self)
        weights = [*self.model.parameters(), *self.model.buffers()] if place == self.place else []
        twin.model, twin.observed = copied((self.model, self.observed), weights)
        with sparing(place):
            for module in (twin.model.eval(), twin.observed):
                module.to(place)
            for name in ("corners", "initial", "target", "units", "target_logits"):
                setattr(twin, name, getattr(self, name).to(place))
            twin.features = copied(self.features).to(place)
        return twin

    def shared(
        self, work: Callable[["Hull", Tensor], Result], parts: Iterable[Tensor]
    ) -> Iterator[Result]:
        """`work` of each part, in their order, in turn by every thread that shares the points.

        Args:
            work: is given the thread's own hull and a part, which lies where this one does.
                Gradient, inference and autocast modes are PyTorch's defaults in another thread.
            parts: of the points, or of their weights.
        """

        def call(hull: Hull, part: Tensor) -> Result:
            with sparing(hull.place):
                return work(hull, part)

        turns = zip(cycle(self.everywhere), parts, strict=False)
        return self._threads.results(partial(call, *turn) for turn in turns)

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) and pre-activations (B, N) of images (B, C, H, W)."""
        images = like_weights(self.model, images).contiguous(memory_format=self.layout)
        logits, preactivation = self.observed(images)
        return logits, preactivation

    @property
    def layout(self) -> torch.memory_format:
        """How the corners lie in memory: what is found with the channels last is measured so."""
        last = self.corners.is_contiguous(memory_format=torch.channels_last)
        return torch.channels_last if last else torch.contiguous_format

    @cached_property
    def at_once(self) -> int:
        """Images that a thread's forward pass takes."""
        if self.batch is not None:
            return self.batch
        return min(hull._fitting(len(self.everywhere)) for hull in self.everywhere)

    def _fitting(self, threads: int) -> int:
        with evaluating(self.model):
            given = like_weights(self.model, self.target[None])
            return images_at_once(self.observed, given, threads)

    @property
    def target_class(self) -> int:
        """The class the classifier gives the target, right or wrong."""
        return self.summary.target_class

    def outcome(self, sample: dict[str, Any]) -> Outcome:
        """What `sample`, of this hull, says it is: see Outcome."""
        at_corners = self.summary.corner_feature_relative_max
        limit = limit_of(self.summary)
        return outcome_of(sample, self.summary.target_probability, limit, at_corners)

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
        pieces = (SAMPLERS[law](n, len(corners), generator) for n in self.pieces(count))
        weights = in_batches(pieces, self.at_once)
        return self.measure(weights, count, name or law + (", 8-bit" if uint8 else ""), corners)

    def pieces(self, count: int) -> Iterator[int]:
        """`count` points in the pieces they are drawn in: on every device the same, by one seed."""
        return batch_sizes(count, 16 if self.corners[0].numel() > _LARGE else 256)

    @torch.inference_mode()
    @without_tf32()
    def measure(
        self, batches: Iterable[Tensor], count: int, name: str, corners: Tensor | None = None
    ) -> dict[str, Any]:
        """Classify `count` points, holding few batches in memory.

        Args:
            batches: (B, C, H, W) any points or, with `corners`, (B, K) weights of their mixes.
            count: how many these are in all.
            name: what the progress bar says.
            corners: (K, C, H, W).
        """
        statistics = {
            id(hull): HullStatistics(hull.features, hull.target_class, hull.target_logits)
            for hull in self.everywhere
        }

        worst: dict[int, Seen] = {}

        @torch.inference_mode()
        def take_in(hull: Hull, batch: Tensor) -> int:
            images = batch if corners is None else mixes(batch, corners.to(hull.place))
            logits, preactivation = hull.observe(images)
            statistics[id(hull)].update(logits, preactivation)
            if corners is self.corners:
                good = goodness(logits, self.target_class)
                least = good.argmin(0, keepdim=True)
                weights = batch[least.to(batch.device)].to(corners)  # some devices lack float64
                found = Seen(good[least], weights.to(good.device))
                worst[id(hull)] = found.least(worst.get(id(hull)))
            return len(batch)

        bar = tqdm(total=count, desc=name, unit="point", mininterval=0.5, delay=1)
        with bar, evaluating(self.model):
            for taken in self.shared(take_in, batches):
                bar.update(taken)
        first, *rest = statistics.values()
        for each in rest:
            first.merge_state(each.to(first.place))
        self._suspects.extend(seen.weights.to(self.place) for seen in worst.values())
        found: dict[str, Any] = first.compute()
        return found

    def relative_size(self, images: Tensor | Sequence[Tensor]) -> float:
        """The mean distance between corners over that between two of the given images.

        Args:
            images: two or more of the data set, each (C, H, W) as the corners are: floating in
                [0, 1], or uint8 in [0, 255].

        Raises:
            SettingError: for fewer than two corners or images, another shape or range, or images
                that are all equal.
        """
        return self.pooled_sizes(images)[1]

    def pooled_sizes(self, images: Tensor | Sequence[Tensor]) -> dict[int, float]:
        """The relative size after averaging over squares of 1, 2, 4 and 8 pixels, by their side.

        A large size at 8 pixels is one that a person sees; what shrinks is fine detail. A border
        narrower than a square is left out, and so are squares larger than the images.

        Args:
            images: as for `relative_size`.

        Raises:
            SettingError: as `relative_size`.
        """
        if len(self.corners) < 2:
            raise SettingError("relative_size: needs a hull of two corners or more; this has one")
        given = [image / 255 if image.dtype == torch.uint8 else image for image in images]
        if len(given) < 2:
            raise SettingError(f"images: must be two or more; these are {len(given)}")
        if other := [each.shape for each in given if each.shape != self.target.shape]:
            raise SettingError(
                f"images: must have the corners' shape {tuple(self.target.shape)}; one has "
                f"{tuple(other[0])}; resize them as the classifier's images are"
            )
        stacked = torch.stack(given).to(self.corners)
        if not (stacked.amin() >= 0 and stacked.amax() <= 1):
            raise SettingError("images: must be in [0, 1], as the corners are; divide them by 255")
        if not pooled_distance(stacked, 1):
            raise SettingError("images: are all equal; give two that differ")
        fitting = [square for square in SQUARES if square <= min(self.target.shape[1:])]
        distances = {square: pooled_distance(stacked, square) for square in fitting}
        return {
            square: pooled_distance(self.corners, square) / distance
            for square, distance in distances.items()
            if distance
        }

    def initial_distances(self) -> Tensor:
        """L2 distances (K,) of the corners from the initial image, in the same units."""
        distances: Tensor = (self.corners - self.initial).flatten(1).norm(dim=1)
        return distances * self.summary.distance_scale

    def corner_distances(self) -> Tensor:
        """L2 distances (K (K - 1) / 2,) between corners, in pixels of [0, `distance_scale`]."""
        return torch.pdist(self.corners.flatten(1)) * self.summary.distance_scale

    @torch.inference_mode(False)
    @torch.enable_grad()
    @without_tf32()
    def worst_case(
        self, starts: int = 32, steps: int = 50, seed: int = 0, precision: torch.dtype | None = None
    ) -> WorstCase:
        """The worst point that was seen: by a search, at the corners, and in the hull's samples.

        One of another class where there is any; of these, or else of all, the least probable.

        Projected gradient over the simplex, from all corners, all edge midpoints and `starts`
        random points at once; after some steps only the best go on. What it finds is an upper bound
        on the true worst case.

        Args:
            starts: random points to start from.
            steps: of each path.
            seed: decides the random points.
            precision: half precision for the search; what it finds is measured in the model's own.
        """
        count = len(self.corners)
        corners = torch.eye(count)
        middles = (corners[:, None] + corners)[*torch.triu_indices(count, count, 1)] / 2
        random = dirichlet(starts, count, torch.Generator().manual_seed(seed)).float()
        begun = torch.cat([corners, middles, random]).to(self.corners)

        def slopes(hull: Hull, weights: Tensor) -> tuple[Tensor, Tensor]:
            with in_half(hull.place, precision):
                found = slopes_at(hull._margins, weights.to(hull.place))
            margins, gradient = (each.to(self.place) for each in found)
            return margins, gradient

        def slopes_of(weights: Tensor) -> tuple[Tensor, Tensor]:
            parts = list(self.shared(slopes, weights.split(self.part(len(weights)))))
            margins, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
            return margins, gradient

        with evaluating(self.model):
            lowest = descend(slopes_of, begun, steps)
        with torch.inference_mode(), evaluating(self.model):
            seen = torch.cat([each.to(begun) for each in (lowest, begun, *self._suspects)])
            parts = [self._goodness(part) for part in seen.split(self.at_once)]
            worst = seen[torch.cat(parts).argmin()]
            image = self.points(worst[None])
            probabilities = ask(self.model, image)[0].softmax(0)
        predicted = int(probabilities.argmax())
        return WorstCase(
            worst, image[0], predicted, float(probabilities[self.target_class]),
            predicted == self.target_class,
        )  # fmt: skip

    def part(self, count: int) -> int:
        """How many of `count` points a thread takes at once, so that each has some."""
        return min(self.at_once, -(-count // len(self.everywhere)))

    def _margins(self, weights: Tensor) -> Tensor:
        """(B, K) weights to the target class's margins (B,) at those points, in float32 or more."""
        logits = ask(self.model, self.points(weights))
        wide = torch.promote_types(logits.dtype, torch.float32)
        return margin(logits.to(wide), self.target_class)

    def _goodness(self, weights: Tensor) -> Tensor:
        return goodness(ask(self.model, self.points(weights)), self.target_class)

    def prove(self, seconds: float = 60.0) -> dict[str, Any]:
        """Prove that every point is the target's class, and how near all are to colliding.

        Bounds over pieces of the hull, halved until they decide or time is up; see
        `proofs.whole_hull`, and docs/explanation/method.md for the argument.

        Args:
            seconds: for each of the two statements.

        Returns:
            `class`: its `outcome` is `proved`, `refuted` or `undecided`, with `share_proved` of the
            hull's volume (of its weights, where corners coincide), `margin_min`,
            `probability_min`, `pieces` and `seconds`. `collision`:
            `feature_relative_max`, which ||f(x) - f(t)|| / ||f(t)|| exceeds nowhere. Each has a
            `reason` where nothing can be stated.

        Raises:
            SettingError: for a time that is negative or no number.
        """
        at_least("seconds", seconds, 0)
        worst = self.worst_case().weights if seconds > 0 and len(self.corners) > 1 else None
        return prove(self.problem, seconds, [] if worst is None else [worst.tolist()])

    @property
    def problem(self) -> Problem:
        """What proofs are about."""
        return Problem(
            self.graph, self.layer, self.corners, self.target, self.features, self.target_class,
            limit_of(self.summary), tuple(self.summary.numbers), self.summary.solver == "exact",
        )  # fmt: skip


def in_batches(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The rows of all pieces in their order, `size` at a time, the last time fewer."""
    held: list[Tensor] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= size:
            *whole, rest = torch.cat(held).split(size)
            if len(rest) == size:
                whole, rest = [*whole, rest], rest[:0]
            yield from whole
            held = [rest]
    if sum(map(len, held)):
        yield torch.cat(held)


def batch_sizes(count: int, batch: int) -> Iterator[int]:
    """`count` cut into pieces of `batch`, the last one smaller."""
    for start in range(0, count, batch):
        yield min(batch, count - start)
