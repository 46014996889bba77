"""Computes over a hull's points: in batches, in several threads, on several devices."""

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
from ..graph.logits import ask, like_weights
from ..graph.target import TargetFeatures
from ..graph.target_layer import Observed
from ..runs.evaluation import Sample
from ..runs.records import first_problem
from ..settings.rules import one_of
from ..simplex import SAMPLERS, dirichlet, layout_of, mixes
from .outputs import Output
from .worst_case import Seen, WorstCase, descend, slopes_at

_LARGE = 10_000  # numbers an image, over which points are drawn in smaller pieces

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class Replica:
    """What one thread computes with: a network that no other thread runs, on the thread's device.

    Attributes:
        model: the network.
        observed: gives its output and the target layer's pre-activations.
        corners: (K, C, H, W).
        features: the target's, at the layer.
        output: what the network's outputs are compared with.
    """

    model: nn.Module
    observed: Observed
    corners: Tensor
    features: TargetFeatures
    output: Output

    @property
    def device(self) -> torch.device:
        """Where it computes."""
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

    def margins(self, weights: Tensor) -> Tensor:
        """(B, K) weights to the output's margins (B,) at those points."""
        return self.output.margin(ask(self.model, self.points(weights)))

    @torch.inference_mode(False)
    def on(self, device: torch.device) -> "Replica":
        """Another one with its own modules; on the same device it shares their weights.

        Raises:
            SettingError: for a model that cannot be copied.
        """
        same = device == self.device
        weights = [*self.model.parameters(), *self.model.buffers()] if same else []
        model, observed = copied((self.model, self.observed), weights)
        with explain_out_of_memory(device):
            return Replica(
                model.eval().to(device), observed.to(device), self.corners.to(device),
                copied(self.features).to(device), self.output.to(device),
            )  # fmt: skip

    def batch_size(self, threads: int) -> int:
        """How many images to take at once, if so many threads compute at the same time."""
        with evaluating(self.model):
            image = like_weights(self.model, self.corners[:1])
            return images_at_once(self.observed, image, threads)


class Evaluator:
    """Computes over the points of a hull.

    Args:
        own: the hull's own network and tensors.
        batch: images a forward pass takes at most; None for as many as keep the device busy and
            fit into its memory. No figure depends on it, but for rounding.
        others: further devices to compute on, each with a copy of the network. No figure depends
            on them, but for rounding.
    """

    def __init__(self, own: Replica, batch: int | None, others: Sequence[torch.device]) -> None:
        self.own, self.batch, self.others = own, batch, others
        self._suspects: list[Tensor] = []  # weights (1, K) of the worst points that samples had

    @cached_property
    def replicas(self) -> list[Replica]:
        """One for each thread, the hull's own first.

        A thread for each device; on the CPU as many as keep its cores busy, over the same weights:
        two threads with a batch each are faster than one batch that both work on.
        """
        devices = [self.own.device, *self.others]
        if all(device.type == "cpu" for device in devices):
            devices = [CPU] * max(len(devices), threads_of_cpu())
        try:
            return [self.own, *map(self.own.on, devices[1:])]
        except SettingError:  # a model that cannot be copied
            if self.others:
                raise
            return [self.own]

    @cached_property
    def batch_size(self) -> int:
        """Images that a thread's forward pass takes."""
        if self.batch is not None:
            return self.batch
        return min(each.batch_size(len(self.replicas)) for each in self.replicas)

    @cached_property
    def _threads(self) -> Threads:
        return Threads(len(self.replicas), self.own.device.type == "cpu")

    def map(
        self, work: Callable[[Replica, Tensor], Result], parts: Iterable[Tensor]
    ) -> Iterator[Result]:
        """`work` of each part, in their order; the threads take turns.

        Args:
            work: is given the thread's replica and a part, which is on the hull's device. Gradient,
                inference and autocast modes are PyTorch's defaults in another thread.
            parts: of the points, or of their weights.
        """

        def call(replica: Replica, part: Tensor) -> Result:
            with explain_out_of_memory(replica.device):
                return work(replica, part)

        turns = zip(cycle(self.replicas), parts, strict=False)
        return self._threads.results(partial(call, *turn) for turn in turns)

    def share(self, count: int) -> int:
        """How many of `count` points a thread takes at once, so each has some."""
        return min(self.batch_size, -(-count // len(self.replicas)))

    def pieces(self, count: int) -> Iterator[int]:
        """`count` points in the pieces they are drawn in: on every device the same, by one seed."""
        return batch_sizes(count, 16 if self.own.corners[0].numel() > _LARGE else 256)

    def sample(
        self, count: int, law: str, seed: int, uint8: bool, corners: Tensor | None, name: str
    ) -> Sample:
        """Measure `count` random points, as `Hull.sample` says."""
        if count < 1:
            raise SettingError("samples", count, "must be at least 1")
        one_of("law", law, tuple(SAMPLERS))
        generator = torch.Generator().manual_seed(seed)
        corners = self.own.corners if corners is None else corners
        if uint8:
            corners = (corners * 255).round() / 255
        pieces = (SAMPLERS[law](n, len(corners), generator) for n in self.pieces(count))
        weights = in_batches(pieces, self.batch_size)
        return self.measure(weights, count, name or law + (", 8-bit" if uint8 else ""), corners)

    @torch.inference_mode()
    @without_tf32()
    def measure(
        self, batches: Iterable[Tensor], count: int, name: str, corners: Tensor | None = None
    ) -> Sample:
        """Ask the network about `count` points, holding few batches in memory.

        Args:
            batches: (B, C, H, W) any points or, with `corners`, (B, K) weights of their mixes.
            count: how many these are in all.
            name: what the progress bar says.
            corners: (K, C, H, W).

        Raises:
            CollisionError: where the network's answers are not finite.
        """
        statistics = {id(each): each.output.statistics(each.features) for each in self.replicas}
        worst: dict[int, Seen] = {}

        @torch.inference_mode()
        def take_in(replica: Replica, batch: Tensor) -> int:
            images = batch if corners is None else mixes(batch, corners.to(replica.device))
            logits, preactivation = replica.observe(images)
            statistics[id(replica)].update(logits, preactivation)
            if corners is self.own.corners:
                good = replica.output.goodness(logits)
                least = good.argmin(0, keepdim=True)
                weights = batch[least.to(batch.device)].to(corners)  # some devices lack float64
                found = Seen(good[least], weights.to(good.device))
                worst[id(replica)] = found.least(worst.get(id(replica)))
            return len(batch)

        bar = tqdm(total=count, desc=name, unit="point", mininterval=0.5, delay=1)
        with bar, evaluating(self.own.model):
            for taken in self.map(take_in, batches):
                bar.update(taken)
        first, *rest = statistics.values()
        for each in rest:
            first.merge_state(each.to(first.place))
        self._suspects.extend(seen.weights.to(self.own.device) for seen in worst.values())
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
        self, starts: int, steps: int, seed: int, precision: torch.dtype | None
    ) -> WorstCase:
        """The worst point that was seen, as `Hull.worst_case` says."""
        own, count = self.own, len(self.own.corners)
        corners = torch.eye(count)
        middles = (corners[:, None] + corners)[*torch.triu_indices(count, count, 1)] / 2
        random = dirichlet(starts, count, torch.Generator().manual_seed(seed)).float()
        begun = torch.cat([corners, middles, random]).to(own.corners)

        def slopes(replica: Replica, weights: Tensor) -> tuple[Tensor, Tensor]:
            with in_half(replica.device, precision):
                found = slopes_at(replica.margins, weights.to(replica.device))
            margins, gradient = (each.to(own.device) for each in found)
            return margins, gradient

        def slopes_of(weights: Tensor) -> tuple[Tensor, Tensor]:
            parts = list(self.map(slopes, weights.split(self.share(len(weights)))))
            margins, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
            return margins, gradient

        with evaluating(own.model):
            lowest = descend(slopes_of, begun, steps)
        with torch.inference_mode(), evaluating(own.model):
            seen = torch.cat([each.to(begun) for each in (lowest, begun, *self._suspects)])
            parts = [
                own.output.goodness(ask(own.model, own.points(part)))
                for part in seen.split(self.batch_size)
            ]
            worst = seen[torch.cat(parts).argmin()]
            image = own.points(worst[None])
            (said,) = own.output.of_images(ask(own.model, image))
        return WorstCase(
            worst, image[0], said.predicted_class, said.probability, own.output.takes(said),
            said.cosine, said.output_relative,
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
