"""Evaluate a hull's points in batches, on several threads and devices."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from ..data.devices import CPU, explain_out_of_memory, in_half, without_tf32
from ..data.memory import images_at_once
from ..data.threads import Threads, threads_of_cpu
from ..errors import CollisionError, SettingError
from ..graph.graph import copied, evaluating
from ..graph.logits import like_weights, predict
from ..graph.target import TargetFeatures
from ..graph.target_layer import Observed
from ..runs.evaluation import Sample
from ..runs.records import first_problem
from ..settings.rules import one_of
from ..simplex import SAMPLERS, dirichlet, layout_of, mixes
from .outputs import Output, on_device
from .samples import HullStatistics
from .worst_case import GOALS, Goal, Seen, WorstCase, descend, slopes_at

_LARGE = 10_000  # values per image, above which points are drawn in smaller pieces

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Replica:
    """One thread's copy of the network and tensors, on the thread's device.

    Attributes:
        model: the network.
        observed: returns its output and the target layer's pre-activations.
        corners: (K, C, H, W).
        features: the target's features at the layer.
        output: compares the network's outputs with the target's.
    """

    model: nn.Module
    observed: Observed
    corners: Tensor
    features: TargetFeatures
    output: Output

    @property
    def device(self) -> torch.device:
        """Device of its tensors."""
        return self.corners.device

    @property
    def layout(self) -> torch.memory_format:
        """The corners' memory format."""
        return layout_of(self.corners)

    def points(self, weights: Tensor) -> Tensor:
        """Interpolations of the corners: (B, K) weights to (B, C, H, W) images."""
        return mixes(weights, self.corners)

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (B, D) and pre-activations (B, N) of images (B, C, H, W)."""
        images = like_weights(self.model, images).contiguous(memory_format=self.layout)
        logits, preactivation = self.observed(images)
        return logits, preactivation

    def margins(self, goal: Goal, weights: Tensor) -> Tensor:
        """(B,) at points with weights (B, K), small where they are bad; with gradients.

        Their gradient is the graph's: a model with a reentrant checkpoint gives none for chosen
        inputs.
        """
        logits, preactivation = self.observe(self.points(weights))
        if goal == "output":
            return self.output.margin(logits)
        return -self.features.error(preactivation)

    def goodness(self, goal: Goal, weights: Tensor) -> Tensor:
        """(B,), smallest at the worst of the points with weights (B, K)."""
        images = self.points(weights)
        if goal == "output":
            return self.output.goodness(predict(self.model, images))
        return -self.features.error(self.observe(images)[1])

    @torch.inference_mode(False)
    def on(self, device: torch.device) -> "Replica":
        """A copy on `device`; on the same device it shares the weights.

        Raises:
            SettingError: if the model cannot be copied.
        """
        same = device == self.device
        weights = [*self.model.parameters(), *self.model.buffers()] if same else []
        model, observed = copied((self.model, self.observed), weights)
        with explain_out_of_memory(device):
            return Replica(
                model.eval().to(device), observed.to(device), self.corners.to(device),
                copied(self.features).to(device), on_device(self.output, device),
            )  # fmt: skip

    def batch_size(self, threads: int) -> int:
        """Batch size if `threads` threads run at the same time."""
        with evaluating(self.model):
            image = like_weights(self.model, self.corners[:1])
            return images_at_once(self.observed, image, threads)


class Evaluator:
    """Evaluates points of a hull. Figures depend on batch and devices only through rounding.

    Args:
        own: the hull's network and tensors.
        batch: largest batch; None for as many images as keep the device busy and fit in memory.
        others: further devices, each with a copy of the network.
    """

    def __init__(self, own: Replica, batch: int | None, others: Sequence[torch.device]) -> None:
        self.own, self.batch, self.others = own, batch, others
        # weights (1, K) of the worst sampled points
        self._suspects: dict[Goal, list[Tensor]] = {goal: [] for goal in GOALS}

    @cached_property
    def replicas(self) -> list[Replica]:
        """One replica per thread, the hull's first.

        Each device has a thread. A CPU has as many as keep its cores busy, with shared weights: two
        threads with a batch each are faster than one batch on two cores.
        """
        devices = [self.own.device, *self.others]
        if all(device.type == "cpu" for device in devices):
            devices = [CPU] * max(len(devices), threads_of_cpu())
        try:
            return [self.own, *map(self.own.on, devices[1:])]
        except SettingError:  # the model cannot be copied
            if self.others:
                raise
            return [self.own]

    @cached_property
    def batch_size(self) -> int:
        """Batch size of a thread."""
        if self.batch is not None:
            return self.batch
        return min(each.batch_size(len(self.replicas)) for each in self.replicas)

    @cached_property
    def _threads(self) -> Threads:
        return Threads(len(self.replicas), self.own.device.type == "cpu")

    def map(
        self, work: Callable[[Replica, Tensor], Result], parts: Iterable[Tensor]
    ) -> Iterator[Result]:
        """Apply `work` to each part in turn on the threads; results are in order.

        Args:
            work: called with the thread's replica and a part, which is on the hull's device. In
                other threads gradient, inference and autocast modes are PyTorch's defaults.
            parts: parts of the points or of their weights.
        """

        def call(replica: Replica, part: Tensor) -> Result:
            with explain_out_of_memory(replica.device):
                return work(replica, part)

        turns = zip(cycle(self.replicas), parts, strict=False)
        return self._threads.results(partial(call, *turn) for turn in turns)

    def share(self, count: int) -> int:
        """Batch size for `count` points, such that every thread has some."""
        return min(self.batch_size, -(-count // len(self.replicas)))

    def pieces(self, count: int) -> Iterator[int]:
        """Sizes of the pieces in which `count` points are drawn, the same on every device."""
        return batch_sizes(count, 16 if self.own.corners[0].numel() > _LARGE else 256)

    def sample(
        self, count: int, sampler: str, seed: int, uint8: bool, corners: Tensor | None, name: str
    ) -> Sample:
        """Measure `count` random points; see `Hull.sample`."""
        if count < 1:
            raise SettingError("samples", count, "must be at least 1")
        one_of("sampler", sampler, tuple(SAMPLERS))
        generator = torch.Generator().manual_seed(seed)
        corners = self.own.corners if corners is None else corners
        if uint8:
            corners = (corners * 255).round() / 255
        pieces = (SAMPLERS[sampler](n, len(corners), generator) for n in self.pieces(count))
        weights = in_batches(pieces, self.batch_size)
        return self.measure(weights, count, name or sampler + (", 8-bit" if uint8 else ""), corners)

    @torch.inference_mode()
    @without_tf32()
    def measure(
        self, batches: Iterable[Tensor], count: int, name: str, corners: Tensor | None = None
    ) -> Sample:
        """Measure `count` points, with few batches in memory.

        Args:
            batches: (B, C, H, W) any images or, with `corners`, (B, K) weights.
            count: total number of points.
            name: label of the progress bar.
            corners: (K, C, H, W).

        Raises:
            CollisionError: where the network's answers are not finite.
        """
        statistics = {
            id(each): HullStatistics(each.features, each.output) for each in self.replicas
        }
        worst: dict[tuple[Goal, int], Seen] = {}

        @torch.inference_mode()
        def take_in(replica: Replica, batch: Tensor) -> int:
            images = batch if corners is None else mixes(batch, corners.to(replica.device))
            logits, preactivation = replica.observe(images)
            statistics[id(replica)].update(logits, preactivation)
            if corners is self.own.corners:
                goodness: dict[Goal, Tensor] = {
                    "output": replica.output.goodness(logits),
                    "features": -replica.features.error(preactivation),
                }
                for goal, good in goodness.items():
                    least = good.argmin(0, keepdim=True)
                    weights = batch[least.to(batch.device)].to(corners)  # some lack float64
                    found = Seen(good[least], weights.to(good.device))
                    key = goal, id(replica)
                    worst[key] = found.least(worst.get(key))
            return len(batch)

        bar = tqdm(total=count, desc=name, unit="point", mininterval=0.5, delay=1)
        with bar, evaluating(self.own.model):
            for taken in self.map(take_in, batches):
                bar.update(taken)
        first, *rest = statistics.values()
        for each in rest:
            first.merge(each.figures)
        for (goal, _), seen in worst.items():
            self._suspects[goal].append(seen.weights.to(self.own.device))
        try:
            found: Sample = first.compute()
        except ValidationError as error:
            raise CollisionError(
                f"what the network gives is not finite: {first_problem(error)}"
            ) from None
        return found

    @torch.inference_mode(False)
    @torch.enable_grad()
    @without_tf32()
    def worst_case(
        self, starts: int, steps: int, seed: int, precision: torch.dtype | None, goal: Goal
    ) -> WorstCase:
        """The worst point seen; see `Hull.worst_case`."""
        one_of("of", goal, GOALS)
        own, count = self.own, len(self.own.corners)
        corners = torch.eye(count)
        middles = (corners[:, None] + corners)[*torch.triu_indices(count, count, 1)] / 2
        random = dirichlet(starts, count, torch.Generator().manual_seed(seed)).float()
        begun = torch.cat([corners, middles, random]).to(own.corners)

        def slopes(replica: Replica, weights: Tensor) -> tuple[Tensor, Tensor]:
            with in_half(replica.device, precision):
                found = slopes_at(partial(replica.margins, goal), weights.to(replica.device))
            margins, gradient = (each.to(own.device) for each in found)
            return margins, gradient

        def slopes_of(weights: Tensor) -> tuple[Tensor, Tensor]:
            parts = list(self.map(slopes, weights.split(self.share(len(weights)))))
            margins, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
            return margins, gradient

        with evaluating(own.model):
            lowest = descend(slopes_of, begun, steps, f"Worst {goal}")
        with torch.inference_mode(), evaluating(own.model):
            seen = torch.cat([each.to(begun) for each in (lowest, begun, *self._suspects[goal])])
            parts = [own.goodness(goal, part) for part in seen.split(self.batch_size)]
            return self._described(seen[torch.cat(parts).argmin()])

    def _described(self, weights: Tensor) -> WorstCase:
        """What the network says of the point with weights (K,)."""
        own = self.own
        image = own.points(weights[None])
        (said,) = own.output.of_images(predict(own.model, image))
        norm = float(own.features.features.norm())
        error = float(own.features.error(own.observe(image)[1])[0]) / norm if norm else None
        found = WorstCase(weights, image[0], feature_relative=error)
        if own.output.kind == "features":
            return found._replace(cosine=said.cosine, output_relative=said.output_relative)
        return found._replace(
            predicted_class=said.predicted_class, probability=said.probability,
            correct=own.output.takes(said),
        )  # fmt: skip


def in_batches(pieces: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Regroup the rows of all pieces into batches of `size`; the last may be smaller."""
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
    """Sizes of batches for `count` points; the last may be smaller."""
    for start in range(0, count, batch):
        yield min(batch, count - start)
