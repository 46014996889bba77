"""Branch and bound: a hull is cut into subdomains until each is verified or time is up.

A subdomain is a simplex of V points of the hull, given by their weights. Halving an edge gives two
of half its volume. Weights are multiples of 2^-53, exact in float64;
smaller subdomains are not cut. After a few halvings a subdomain gets a reduced network, in which
its parts are judged (see `local`). If the bounds of the hull are loose, the hull shrunk about its
centroid is tried first (`run_outwards`): a few bounds verify an inner part.
"""

import copy
import itertools
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ..simplex import begins_at, scale_without
from .bounds.local import TooManyBends, numbers_of
from .bounds.over_pieces import Parts
from .bounds.steps import OutOfTime, Step
from .cache import PieceCache
from .problem import Cover

_MOST = 64  # subdomains per batch
_SHELLS = 32  # of the hull, the inner ones first
_INSIDE = 0.95  # relative to the share with a known failure; subdomains beyond come last
_LEVEL = 0.7  # relative to the worst: subdomains that are halved in the same turn
_HALVINGS = 6  # of a subdomain, until its parts get reduced networks
_APART = 2  # halvings of a subdomain that is too large for a reduced network
_ROOM = 2**26  # numbers in all reduced networks
_SECONDS = 0.5  # longest batch
_GRACE = 1.1  # factor of the time limit for batches that have begun
_SAVE_EVERY = 10.0  # seconds
_FEW = 4096  # parts of a hull; if even these are too large, the proof is intractable
_PROBED = 8  # of them
_SMALLEST = 2.0**-36  # share of the hull's volume
_SLACK = 1e-12  # for rounding, in shares of at most 1
_GRAIN = 2**10  # denominator of the weights of the centre of shrunk hulls
_SHRUNK = [share * 2.0**-k for k in range(5) for share in (0.75, 0.5)]  # sizes that are tried


class Pieces(NamedTuple):
    """Subdomains of a hull of K corners.

    Attributes:
        weights: (n, V, K) of the V vertices of each.
        volume: (n,) their shares of the hull.
        figures: (n, F) lower bounds on each; larger is better.
        begins: (n,) smallest share of the shrunk hull that contains a part of each.
        region: (n,) index of the region in which each is judged.
        inside: (n, V, V) the vertices' weights in that region.
    """

    weights: Tensor
    volume: Tensor
    figures: Tensor
    begins: Tensor
    region: Tensor
    inside: Tensor

    def at(self, index: Tensor) -> "Pieces":
        """Some of them."""
        return Pieces(*(each[index] for each in self))

    def and_also(self, others: "Pieces") -> "Pieces":
        """These and others."""
        return Pieces(*(torch.cat(both) for both in zip(self, others, strict=True)))

    def cut(self, parts: Parts) -> "Pieces":
        """Their parts; parts of one subdomain have equal volume."""
        whole = self.at(parts.piece)
        volume = whole.volume / parts.piece.bincount()[parts.piece]
        weights, inside = (parts.inside @ each for each in (whole.weights, whole.inside))
        return whole._replace(
            weights=weights, volume=volume, inside=inside, begins=begins_at(weights)
        )


class Region(NamedTuple):
    """A subdomain with a reduced network.

    Attributes:
        steps: of the network; None for the whole network, with weights of the hull's corners.
        volume: of the subdomain.
    """

    steps: list[Step] | None
    volume: float


class Judged(NamedTuple):
    """Results for P subdomains.

    Attributes:
        figures: (P, F) lower bounds on a subdomain; larger is better.
        settled: (P,) whether it is verified.
        parts: the parts to cut it into.
    """

    figures: Tensor
    settled: Tensor
    parts: Parts

    @classmethod
    def joined(cls, shares: Sequence["Judged"]) -> "Judged":
        """What is found of pieces, share by share."""
        figures, settled, parts = zip(*shares, strict=True)
        before = itertools.accumulate((len(each) for each in settled[:-1]), initial=0)
        piece = [each.piece + count for each, count in zip(parts, before, strict=True)]
        inside = torch.cat([each.inside for each in parts])
        return cls(torch.cat(figures), torch.cat(settled), Parts(torch.cat(piece), inside))


class Judge(Protocol):
    """Judges subdomains.

    Attributes:
        most: number of subdomains that fit in memory in the whole network.
        seen: worst figure seen at a point.
        beyond: smallest share of the shrunk hull with a point where the statement fails.
        until: deadline by the monotonic clock; later bounds raise OutOfTime.
        threads: among which subdomains are divided.
    """

    most: int
    threads: int
    seen: float
    beyond: float
    until: float

    def __call__(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        """Judge pieces of one region."""

    def localise(self, piece: Pieces, steps: list[Step] | None) -> list[Step] | None:
        """The reduced network of one subdomain, from its region's; None if there is no gain.

        Raises:
            TooManyBends: if it would be too large.
        """

    def contradicts(self, known: "Splitting") -> bool:
        """Whether a point of the hull contradicts cached results."""

    def may_localise(self, piece: Pieces) -> bool:
        """Whether not too many units are seen to bend on a piece for a local network."""

    def halve(self, pieces: Pieces, times: int) -> Parts:
        """Cut pieces across their longest edges, unjudged."""


@dataclass
class Splitting:
    """State of branch and bound over a hull.

    Attributes:
        open: the unverified subdomains.
        settled: (F,) lower bounds on all verified ones.
        line: limit of the first figure, above which the statement holds on a subdomain.
        reached: share of the shrunk hull at which a verified subdomain begins where the statement
            does not hold.
        inner: share to which the hull is shrunk on which the statement is known to hold otherwise.
        there: (F,) lower bounds on that shrunk hull.
        part: the subdomains that show this; none unless `keeps`.
        tight: whether to improve figures where the statement already holds.
        share: verified share of the hull's volume.
        count: number of judged subdomains.
        seconds: time for them.
        hopeless: whether even small parts are too large for reduced networks; None if not tested.
        keeps: whether to keep the weights (n, V, K) of verified subdomains in `done`, and in `held`
            whether the statement holds on each.
    """

    open: Pieces
    settled: Tensor
    line: float = 0.0
    reached: float = 1.0
    inner: float = 0.0
    there: Tensor = field(init=False)
    part: Cover = field(init=False)
    tight: bool = True
    share: float = 0.0
    count: int = 0
    seconds: float = 0.0
    hopeless: bool | None = field(default=None, init=False)
    keeps: bool = False
    done: list[Tensor] = field(default_factory=list, init=False)
    held: list[Tensor] = field(default_factory=list, init=False)
    regions: dict[int, Region] = field(default_factory=dict, init=False)
    region: int = field(default=0, init=False)
    # Volumes of the last pieces, two at most, that were too large for a local network.
    large: deque[float] = field(default_factory=lambda: deque(maxlen=2), init=False)
    most: int = field(default=1, init=False)

    @classmethod
    def of(
        cls, vertices: Tensor, figures: int, line: float = 0.0, tight: bool = True
    ) -> "Splitting":
        """Initial state: the simplex of points with weights (V, K)."""
        like = torch.zeros(1, figures, dtype=torch.float64)
        whole = _unplaced(vertices.double()[None], like[:, 0] + 1, like - torch.inf)
        return cls(whole, like[0] + torch.inf, line, tight=tight)

    def __post_init__(self) -> None:
        self.regions[0], self.there = Region(None, math.inf), self.settled.clone()
        none = self.open.at(torch.zeros(0, dtype=torch.int64)).weights
        self.part = Cover(none.new_zeros(none.shape[2]), none, none[:, 0, 0] > 0)

    @property
    def everywhere(self) -> Tensor:
        """(F,) lower bounds on the whole hull."""
        return torch.cat([self.open.figures, self.settled[None]]).amin(0)

    @property
    def scale(self) -> float:
        """Share to which the hull can be shrunk so that the statement holds everywhere."""
        return max(self.inner, scale_without(self._unverified(self.open), self.reached))

    @property
    def verified(self) -> tuple[float, Tensor]:
        """Share of the hull's volume that is verified, and lower bounds (F,) on that part."""
        inner = self.inner ** (self.open.weights.shape[2] - 1)
        return max(self.share, inner), torch.minimum(self.settled, self.there)

    @property
    def is_verified(self) -> bool:
        """Whether the statement is known to hold everywhere."""
        return not len(self._unverified(self.open)) and self.reached == 1

    def subdomains(self, least: Tensor) -> Cover:
        """All subdomains, where they are kept, of the part of weights of at least `least` (K,)."""
        open_ = self._holds(self.open)
        weights, holds = [*self.done, self.open.weights], [*self.held, open_]
        return Cover(least, torch.cat(weights), torch.cat(holds))

    def covers(self, scale: float) -> list[Cover]:
        """The hull's subdomains, and those of its part if `scale` rests on them."""
        whole = self.subdomains(torch.zeros_like(self.part.least))
        return [whole, self.part] if scale == self.inner > 0 else [whole]

    def _unverified(self, pieces: Pieces) -> Tensor:
        """Weights (n, V, K) of the unverified subdomains."""
        return pieces.weights[~self._holds(pieces)]

    def _holds(self, pieces: Pieces) -> Tensor:
        """(n,) whether the statement is known to hold on subdomains."""
        return pieces.figures[:, 0] > self.line

    def reason_after(self, seconds: float) -> str | None:
        """Reason why nothing is verified after `seconds`, if known."""
        if self.share or self.inner:
            return None
        if self.hopeless:
            return (
                f"even on a {_FEW}th of the hull more units bend than bounds can follow; more time "
                "will not help"
            )
        first = f"not reached in proof.seconds={seconds:g}: the first bounds take longer"
        return None if self.count else first

    def run(
        self,
        judge: Judge,
        seconds: float,
        cache: PieceCache | None,
        name: str,
        limit: float = math.inf,
    ) -> None:
        """Judge subdomains, and halve unverified ones, until all are verified or time is up.

        Args:
            judge: judges subdomains.
            seconds: time; started batches may take a tenth longer.
            cache: of results; earlier ones are continued by the first call.
            name: label of the progress bar.
            limit: approximate largest number of subdomains to judge.
        """
        corners, figures = self.open.weights.shape[2], len(self.settled)
        if cache and not self.count and (kept := cache.load(corners, figures)):
            fresh = copy.copy(self)
            self._take(kept, judge)
            if judge.contradicts(self):
                self.__dict__.update(fresh.__dict__)
                judge.seen = 0.0
                cache.ignore("points of the hull contradict it")
        started = saved = time.monotonic()
        before, pace = self.seconds, 0.0
        end, judge.until = started + seconds, started + _GRACE * seconds
        bar = tqdm(total=1.0, initial=self.share, desc=name, mininterval=0.5, delay=1,
                   bar_format="{l_bar}{bar}| [{elapsed}{postfix}]")  # fmt: skip
        with bar:
            while self._left(limit) and time.monotonic() < end:
                began, count = time.monotonic(), self.count
                if pace:  # do not start what cannot end in time
                    self.most = max(1, min(self.most, int((end - began) / pace)))
                try:
                    self.advance(judge)
                except OutOfTime:
                    break
                took = time.monotonic() - began
                pace = took / max(1, self.count - count)
                if took < _SECONDS / 2:
                    self.most = min(2 * self.most, _MOST)
                elif took > _SECONDS:
                    self.most = max(judge.threads, self.most // 2)
                bar.update(self.share - bar.n)
                bar.set_postfix_str(f"{self.count} pieces", refresh=False)
                if cache and time.monotonic() > saved + _SAVE_EVERY:
                    saved = time.monotonic()
                    self.seconds = before + saved - started
                    cache.save(self._kept(judge))
        self.seconds = before + time.monotonic() - started
        if cache:
            cache.save(self._kept(judge))

    def _left(self, limit: float) -> bool:
        """Whether a subdomain is left to judge, within the limit."""
        left = self.open.volume > _SMALLEST
        if not self.tight:
            left &= ~self._holds(self.open)
        return bool(left.any()) and self.count < limit and not self.hopeless

    def _order(self, judge: Judge) -> Tensor:
        """Subdomains in the order of their turns.

        First those on which the statement is not known to hold, the innermost first, and last
        those beyond a point where it fails; of these the largest first. Once it is known
        everywhere, those with the worst figures.
        """
        volume, figures = self.open.volume, self.open.figures[:, 0]
        order = (-volume).argsort(stable=True)
        order = order[volume[order] > _SMALLEST]
        unknown = order[~self._holds(self.open)[order]]
        if not len(unknown):
            order = order[figures[order].argsort(stable=True)]
            worst = float(figures[order[0]])
            return order[figures[order] <= max(worst, _LEVEL * worst)]
        key = (self.open.begins * _SHELLS).floor()
        key[self.open.begins >= _INSIDE * judge.beyond] = _SHELLS
        return unknown[key[unknown].argsort(stable=True)]

    def advance(self, judge: Judge) -> None:
        """Judge up to `most` subdomains of one region, and halve unverified ones."""
        order = self._order(judge)
        now = self._of_region(order)
        if not len(now):
            if not self._place(judge, order[:1]):
                self._cut_unjudged(judge, order[:1])
                return
            now = self._of_region(order)
        steps = self.regions[self.region].steps
        now = now[: self.most if steps else min(self.most, judge.most)]
        found = judge(self.open.at(now), steps)
        self.count += len(now)
        self._take_in(now, found)

    def _take_in(self, now: Tensor, found: Judged) -> None:
        """Record results for subdomains, and cut unverified ones."""
        pieces = self.open.at(now)
        settled, parts = found.settled.cpu(), Parts(*(each.cpu() for each in found.parts))
        figures = torch.maximum(found.figures.cpu(), pieces.figures)  # they also hold on its halves
        pieces = pieces._replace(figures=figures)
        self.share += float(pieces.volume[settled].sum())
        if self.keeps:
            self.done.append(pieces.weights[settled])
            self.held.append(self._holds(pieces)[settled])
        self.reached = scale_without(self._unverified(pieces.at(settled)), self.reached)
        self.settled = torch.cat([figures[settled], self.settled[None]]).amin(0)
        later = torch.ones(len(self.open.volume), dtype=torch.bool).index_fill(0, now, False)
        parts = Parts(*(each[~settled[parts.piece]] for each in parts))
        self.open = self.open.at(later).and_also(pieces.cut(parts))

    def _of_region(self, order: Tensor) -> Tensor:
        """Subdomains of the current region, except those that need their own region."""
        least = self.regions[self.region].volume / 2**_HALVINGS
        return order[(self.open.region[order] == self.region) & (self.open.volume[order] > least)]

    def _place(self, judge: Judge, index: Tensor) -> bool:
        """Switch to the region of a subdomain, or, if it is small there, to its own region.

        Returns:
            Whether there is a region: not if the subdomain, or the last two of its size, are too
            large for a reduced network. The whole hull is bounded anyway, to see how loose its
            bounds are.
        """
        piece = self.open.at(index)
        self.region, volume = int(piece.region), float(piece.volume)
        old = self.regions[self.region]
        if volume > old.volume / 2**_HALVINGS:
            return True
        if len(self.large) == 2 and volume >= self.large[0]:
            return False
        try:
            local = judge.localise(piece, old.steps)
        except TooManyBends:
            self.large.append(volume)
            if volume < 1:
                return False
            local = None
        else:
            self.large.clear()
        if not local:  # not before its parts are as small again
            self.regions[self.region] = old._replace(volume=volume)
            return True
        number = self.region = max(self.regions) + 1
        self.open.region[index] = number
        self.open.inside[index] = torch.eye(piece.inside.shape[1], dtype=torch.float64)
        self._keep_region(number, Region(local, volume))
        return True

    def _keep_region(self, number: int, new: Region) -> None:
        """Keep a region in memory, if there is room."""
        alive = set(self.open.region.tolist())
        kept = {k: region for k, region in self.regions.items() if k in alive or k == 0}
        kept[number] = new
        room = _ROOM
        for k in sorted(kept, reverse=True):
            room -= numbers_of(kept[k].steps or [])
            if room < 0 and k != number:  # the oldest are made again when they are needed
                kept[k] = Region(None, math.inf)
        self.regions = kept

    def _cut_unjudged(self, judge: Judge, index: Tensor) -> None:
        """Cut a subdomain that is too large for a reduced network.

        The whole network's bounds would be as loose on it as on the whole hull.
        """
        undecided = torch.zeros(1, dtype=torch.bool)
        piece = self.open.at(index)
        if self.hopeless is None:
            self.hopeless = self._is_hopeless(judge, piece)
        self._take_in(index, Judged(piece.figures, undecided, judge.halve(piece, _APART)))

    def _is_hopeless(self, judge: Judge, piece: Pieces) -> bool:
        """Whether parts of a subdomain, a `_FEW`th of the hull each, have no reduced network."""
        times = int(math.log2(float(piece.volume) * _FEW))
        if times < 1:
            return False
        parts = piece.cut(judge.halve(piece, times))
        some = torch.linspace(0, len(parts.volume) - 1, _PROBED).long()
        return not any(judge.may_localise(parts.at(each)) for each in some.split(1))

    def _kept(self, judge: Judge) -> dict[str, Tensor]:
        known = [self.share, float(self.count), self.seconds, judge.seen, self.reached, self.inner]
        numbers = torch.tensor(known, dtype=torch.float64)
        weights, volume, figures, *_ = self.open
        return {"weights": weights, "volume": volume, "figures": figures,
                "settled": self.settled, "there": self.there, "numbers": numbers,
                "done": torch.cat([*self.done, weights[:0]]),
                "held": torch.cat([*self.held, volume[:0] > 0]).double(), "least": self.part.least,
                "inner": self.part.weights, "inner_held": self.part.holds.double()}  # fmt: skip

    def _take(self, kept: dict[str, Tensor], judge: Judge) -> None:
        self.open = _unplaced(kept["weights"], kept["volume"], kept["figures"])
        self.settled, self.there, numbers = kept["settled"], kept["there"], kept["numbers"].tolist()
        self.share, count, self.seconds, judge.seen, self.reached, self.inner = numbers
        self.count = int(count)
        self.done, self.held = [kept["done"]], [kept["held"] > 0]
        self.part = Cover(kept["least"], kept["inner"], kept["inner_held"] > 0)

    def take_inner(self, hull: "Splitting", corners: Tensor) -> None:
        """Take over what is known of this hull shrunk to some corners (K, K)."""
        self.count, self.seconds = self.count + hull.count, self.seconds + hull.seconds
        least = corners.amin(0)
        holds = 1 - len(corners) * float(least.max()) - _SLACK
        inner = min(holds, hull.scale)
        good = hull.open.figures[hull._holds(hull.open)]
        there = torch.cat([good, hull.settled[None]]).amin(0)
        if inner > self.inner and there[0] < torch.inf:
            self.inner, self.there, self.part = inner, there, hull.subdomains(least)


def run_outwards(
    known: Splitting, judge: Judge, seconds: float, cache: PieceCache | None, name: str
) -> None:
    """Judge a hull in at most `seconds`, of which its inner part may take half.

    If its own bounds are too loose for one halving of each edge, it is shrunk until one bound
    verifies it. Then the shrunk hulls are verified, each larger than the one before.
    """
    end = time.monotonic() + seconds
    known.run(judge, seconds, cache, name, limit=1)
    if not known.count:
        return
    inner, count = list[tuple[Splitting, Tensor]](), known.open.weights.shape[2]
    far = len(known.open.volume) > 2 ** (count - 1)

    def left() -> float:
        return max(0.0, end - seconds / 2 - time.monotonic())

    for share in _SHRUNK if far else []:
        if share <= known.inner or (inner and inner[-1][0].is_verified):
            break
        corners = shrunk(count, share)
        hull = Splitting.of(corners, len(known.settled), known.line, tight=False)
        hull.keeps = known.keeps
        hull.run(judge, left(), None, name, limit=1)
        inner.append((hull, corners))
    if inner and inner[-1][0].is_verified:  # or else there is no part to begin with
        for hull, corners in reversed(inner):
            hull.run(judge, left(), None, name)
            known.take_inner(hull, corners)
    known.run(judge, max(0.0, end - time.monotonic()), cache, name)


def shrunk(corners: int, share: float) -> Tensor:
    """The corners (K, K) of a hull of K corners that is shrunk to a share, by exact weights.

    The weights of its centre are multiples of 1 / `_GRAIN`, and as equal as can be.
    """
    centre = torch.full((corners,), _GRAIN // corners, dtype=torch.float64)
    centre[: _GRAIN % corners] += 1
    return share * torch.eye(corners, dtype=torch.float64) + (1 - share) * centre / _GRAIN


def _unplaced(weights: Tensor, volume: Tensor, figures: Tensor) -> Pieces:
    """Subdomains judged in the whole network."""
    corners = weights.shape[1]
    inside = weights.new_zeros(len(weights), corners, corners)
    region = torch.zeros(len(weights), dtype=torch.int64)
    return Pieces(weights, volume, figures, begins_at(weights), region, inside)
