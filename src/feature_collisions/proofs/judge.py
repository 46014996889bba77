"""Base of the proofs of a hull: subdomains, bounded in the whole and in reduced networks."""

import math
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, fx

from ..data.devices import device_for
from ..data.threads import Threads, threads_of_cpu
from ..graph.operations import NotPiecewiseLinear
from ..simplex import dirichlet
from .bounds.local import TooManyBends, check_bends, localise, numbers_of, pays, values_of
from .bounds.over_pieces import Bounds, Parts
from .bounds.record import steps_of
from .bounds.relaxation import rounding
from .bounds.steps import Smooth, Step
from .cache import PieceCache, proof_key
from .problem import Problem
from .splitting import Judged, Pieces, Splitting

_MEMORY = 2**30  # bytes for the bounds of a batch
_LOOKED_AT = 64  # points at which cached results are tested before they are used
_AT_ONCE = 16
_COPIES = 6  # of every value, at each vertex
_SHORTER = 2  # halvings of each edge of large subdomains at once
_LITTLE = 2**14  # products per image; smaller networks need no reduced ones


class HullJudge(ABC):
    """Bounds the subdomains of a hull, on a CPU in several threads.

    Attributes:
        one_by_one: lock for the caller's model, which must not run in two threads at once.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.place = device_for(problem.corners.device)
        on_cpu = self.place.type == "cpu"
        self.threads = threads_of_cpu() if on_cpu else 1
        self._pool = Threads(self.threads, on_cpu)
        self.one_by_one = Lock()
        self.corners = problem.corners.to(self.place, torch.float64)
        self.checked = False
        self.seen, self.beyond = 0.0, 1.0
        self.until = math.inf

    def follow(self, network: fx.GraphModule) -> None:
        """Make the steps of the network, and determine the batch size."""
        self.network: fx.GraphModule = network
        self.steps: list[Step] = steps_of(network, self.corners[0])
        numbers = sum(step.size for step in self.steps) * (len(self.corners) + 1)
        self.most = int(_MEMORY / (numbers * 8 * _COPIES))
        if not self.most:
            raise NotPiecewiseLinear(
                f"its {sum(step.size for step in self.steps)} values an image are too many for "
                "bounds; the edges are walked"
            )

    def __call__(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        """Judge subdomains of one region in all threads."""
        every = torch.arange(len(pieces.volume))
        shares = every.tensor_split(min(self.threads, len(every)))
        if len(shares) == 1:
            return self.judge(pieces, steps)
        judge = torch.no_grad()(self.judge)  # the mode is per thread
        calls = (partial(judge, pieces.at(share), steps) for share in shares)
        return Judged.joined(list(self._pool.results(calls)))

    @torch.no_grad()
    def contradicts(self, known: Splitting) -> bool:
        """Whether a point of the hull contradicts cached results."""
        weights = dirichlet(_LOOKED_AT, len(self.corners), torch.Generator().manual_seed(0))
        inner = known.inner * weights + (1 - known.inner) / len(self.corners)
        stated = [(weights, known.everywhere[0])]
        if known.inner:
            stated.append((inner, known.there[0]))
        for where, least in stated:
            slack = 1e-9 * abs(least) if least.isfinite() else 0.0
            points = torch.tensordot(where.to(self.place), self.corners, 1)
            found = [self.figure_at(self.network(part)) for part in points.split(_AT_ONCE)]
            if bool((torch.cat(found).cpu() < least - slack).any()):
                return True
        return self.misses(known, weights)

    @abstractmethod
    def figure_at(self, values: Tensor) -> Tensor:
        """(B,) the first figure of `Splitting` at points, by what the network gives there."""

    def misses(self, known: Splitting, weights: Tensor) -> bool:
        """Whether a point (n, K) shows something else to be wrong."""
        return False

    @abstractmethod
    def judge(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        """Judge subdomains of one region."""

    def bounds(self, pieces: Pieces, steps: list[Step] | None) -> tuple[Bounds, Tensor]:
        """The bounds of some pieces, and the values (P, N) of the last step at their middles."""
        if steps:
            points = pieces.inside.to(self.place)
            bounds = Bounds(steps, points, 0.0, until=self.until)
        else:
            points = self._points(pieces)
            steps, error = self.steps, rounding(len(self.corners), points)
            bounds = Bounds(steps, points, error, until=self.until)
        with self.one_by_one:
            if not self.checked:
                self._check(bounds, self._points(pieces))
        return bounds, values_of(steps, points.mean(1))

    def localise(self, piece: Pieces, steps: list[Step] | None) -> list[Step] | None:
        """The reduced network of one subdomain, or None if there is no gain.

        Raises:
            TooManyBends: if too many units are unstable.
        """
        work = numbers_of(steps or self.steps)
        if work < _LITTLE or any(isinstance(step, Smooth) for step in self.steps):
            return None
        if steps and work < numbers_of(self.steps):
            return localise(steps, piece.inside[0].to(self.place), until=self.until)
        points = self._points(piece)[0]
        if not pays(self.steps, points):
            return None
        error = rounding(len(self.corners), points)
        return localise(self.steps, points, error, self.until)

    def may_localise(self, piece: Pieces) -> bool:
        """Whether few enough units are seen to be unstable for a reduced network."""
        try:
            check_bends(self.steps, self._points(piece)[0])
        except TooManyBends:
            return False
        return True

    def halvings(self, pieces: Pieces, ratio: Tensor) -> Tensor:
        """How often to halve each piece at once.

        Large ones are cut as often as it takes to bring the gap between bound and margin below the
        margin (`ratio` of it), if a halving halves the gap to the power of 2/3; not below a size
        that edges of half the length make: there a hole may be near.
        """
        dimensions = pieces.weights.shape[1] - 1
        room = (_SHORTER * dimensions + pieces.volume.to(ratio).log2()).clamp_min(1)
        needed = torch.where(ratio > 1, (1.5 * ratio.log2()).ceil(), 1)
        return needed.clamp_min(1).minimum(room).long()

    def halve(self, pieces: Pieces, times: int) -> Parts:
        """Halve subdomains across their longest edges without judging them."""
        images = Bounds(self.steps[:1], self._points(pieces), 0.0)
        return images.parts({}, torch.full((len(pieces.volume),), times, device=self.place))

    def _points(self, pieces: Pieces) -> Tensor:
        """(P, V, C, H, W) at the vertices."""
        points: Tensor = torch.tensordot(pieces.weights.to(self.place), self.corners, 1)
        return points

    def _check(self, bounds: Bounds, points: Tensor) -> None:
        """Check once that the network's values are within the bounds."""
        values = self.network(points[0])
        last = bounds.at[-1]
        off = (values - last.middle[0]).abs() > last.radius[0]
        if off.any():
            raise NotPiecewiseLinear("the network's values are outside their bounds")
        self.checked = True


def cache_of(
    directory: Path | None,
    network: fx.GraphModule,
    problem: Problem,
    statement: str,
    line: float = 0.0,
) -> PieceCache | None:
    """The cache of this hull and statement, up to a limit."""
    if directory is None:
        return None
    behind = f"{statement} {line} {problem.layer} {problem.features.activation.sides}"
    key = proof_key(network, problem.corners, problem.target_class, problem.target, behind)
    return PieceCache(directory, f"{statement}-{key}")
