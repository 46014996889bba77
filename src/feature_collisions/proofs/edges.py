"""Whether whole edges of the hull are of the target's class: walked in chunks, resumable.

If a network is too large to walk an edge exactly at once, chunks are bounded between points, and
walked exactly only if bounds do not decide.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.devices import device_for
from ..graph.operations import NotPiecewiseLinear
from ..runs.evaluation import Edge as EdgeEntry
from ..runs.evaluation import Edges
from ..settings.evaluate import EdgeSettings
from .between.chords import Chords
from .bounds.local import numbers_of
from .bounds.record import steps_of
from .bounds.steps import Step
from .cache import EdgeCache, KeptEdge, proof_key
from .judge import cache_of
from .piecewise import Line, TooManyPieces, traced
from .problem import Problem
from .recheck import unconfirmed
from .splitting import Splitting
from .whole_hull import ClassJudge

_SAVE_EVERY = 10.0  # seconds
_FIRST = 1 / 32  # of an edge, until its pace is known
_FEWEST = 10  # a chunk is not cut to less than this part
_DTYPES = {64: torch.float64, 32: torch.float32}


@dataclass
class Edge:
    """Results for one edge; positions are from 0 at its first corner to 1 at its second.

    Attributes:
        corners: indices of the two corners.
        walked: position up to which it has been walked, or the length that bounds verify.
        failed: length on which the margin is not above `rounding`.
        first_failure: the first such interval, or None.
        margin_min: lower bound on the margin of the target's class over the largest other logit;
            the exact minimum if walked exactly.
        pieces: number of linear pieces, with the ends of chunks, or of bounded intervals.
        rounding: smallest margin that counts: `_SAFETY` times the largest difference between a
            walked logit and the network's at the same point, rounded up to a power of two so that
            it rarely grows.
        unconfirmed: length on which the walk finds the class but interval arithmetic does not; None
            if the network is too large for it.
    """

    corners: tuple[int, int]
    walked: float = 0.0
    failed: float = 0.0
    first_failure: list[float] | None = None
    margin_min: float | None = None
    pieces: int = 0
    rounding: float = 0.0
    unconfirmed: float | None = 0.0

    @property
    def held(self) -> float:
        """Share of the edge on which the walk finds the class."""
        return max(0.0, self.walked - self.failed)

    @property
    def proved(self) -> float:
        """Share of the edge that interval arithmetic confirms: 0 for a large network."""
        return 0.0 if self.unconfirmed is None else max(0.0, self.held - self.unconfirmed)

    def begin_anew(self, rounding: float) -> None:
        """Reset the results, for a larger rounding."""
        self.walked = self.failed = 0.0
        self.first_failure = self.margin_min = None
        self.pieces, self.rounding, self.unconfirmed = 0, rounding, 0.0


_SAFETY = 100  # factor from rounding seen at a few points to that at all
_SMALL = 2**16  # products per image of networks that are rechecked in interval arithmetic
_POINTS = 4  # of a bounded chunk; more are slower per point, because of memory
_FEW = 3  # breakpoints on a piece that are faster walked than bounded


@dataclass
class Walker:
    """Walks edges of one hull.

    Attributes:
        problem: the hull and its target.
        settings: precision and memory.
        width: share of an edge in the next chunk that is walked exactly.
        step: distance of the next points between which the network is bounded.
        waits: number of chunks to walk before the next one is bounded.
    """

    problem: Problem
    settings: EdgeSettings
    width: float = field(default=1.0, init=False)
    step: float = field(default=1.0, init=False)
    waits: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.dtype = _DTYPES[self.settings.precision]
        self.network = traced(self.problem.graph, self.dtype, self.problem.corners)
        self.memory = int(self.settings.memory * 2**30)
        self.line = Line(self.network, self.memory)
        place = device_for(self.problem.corners.device, self.dtype)
        self.corners = self.problem.corners.to(place, self.dtype)
        self.chords: Chords | None = None
        self.is_unbounded = False
        self.failures = 0  # to bound a chunk, one after the other
        self.exact = self._exact_steps()

    def _exact_steps(self) -> list[Step] | None:
        """Steps for rechecking chunks; None if the network is too large."""
        corners = self.problem.corners.to(device_for(self.problem.corners.device), torch.float64)
        network = traced(self.problem.graph) if self.dtype != torch.float64 else self.network
        try:
            steps = steps_of(network, corners[0])
        except NotPiecewiseLinear:
            return None
        return steps if numbers_of(steps) <= _SMALL else None

    def advance(self, edge: Edge, ends: tuple[int, int], share: float, most: float = 1.0) -> None:
        """Walk the next chunk of an edge, at most `most` of it, and at most up to `share`.

        A larger rounding also applies to earlier chunks. If it may change their results, the edge
        is walked again.

        Raises:
            NotPiecewiseLinear: if the walk and the network disagree.
        """
        if self.chords is None or not self._bound(edge, ends, min(share, edge.walked + most)):
            self._walk(edge, ends, share, most)

    def _walk(self, edge: Edge, ends: tuple[int, int], share: float, most: float) -> None:
        """Walk the next chunk exactly."""
        while True:
            start, end = edge.walked, min(edge.walked + min(self.width, most), share)
            if share - end < 1e-9:
                end = share
            first, last = (self._image(ends, place) for place in (start, end))
            try:
                places, logits = self.line.walk(first, last)
            except TooManyPieces as error:
                self.width = (end - start) * max(0.02, 0.5 * error.share)
                if start + self.width == start:
                    raise NotPiecewiseLinear(f"{error}; raise edges.memory") from None
                self._begin_to_bound()
                continue
            margins = _margins(logits, self.problem.target_class)
            places = start + (end - start) * places
            if self._holds_the_rounding(edge, ends, places, logits, margins):
                self._recheck(edge, ends, (start, end), failures(places, margins - edge.rounding))
                _note(edge, places, margins, end)
                if self.line.fullest > 0.5:
                    self._begin_to_bound()
                elif most >= self.width:
                    self.width = min(1.0, 1.5 * max(self.width, end - start))
            return

    def _recheck(
        self,
        edge: Edge,
        ends: tuple[int, int],
        chunk: tuple[float, float],
        failed: Iterable[tuple[float, float]],
    ) -> None:
        """Confirm a chunk in interval arithmetic, outside of the failed intervals."""
        if self.exact is None or edge.unconfirmed is None:
            edge.unconfirmed = None
            return
        bends = [chunk[0], *(place for pair in failed for place in pair), chunk[1]]
        good = list(zip(bends[::2], bends[1::2], strict=True))
        corners = self.problem.corners[list(ends)]
        corners = corners.to(device_for(corners.device), torch.float64)
        edge.unconfirmed += unconfirmed(self.exact, corners, self.problem.target_class, good)

    def _begin_to_bound(self) -> None:
        """Bounds for a network that needs many chunks, if available."""
        if self.chords is None and not self.is_unbounded:
            try:
                self.chords = Chords(steps_of(self.network, self.corners[0]), self.memory)
            except NotPiecewiseLinear:
                self.is_unbounded = True
            self.step = self.width

    def _bound(self, edge: Edge, ends: tuple[int, int], share: float) -> bool:
        """Bound the next intervals, up to the first that is not decided.

        Returns:
            Whether any interval was decided.
        """
        assert self.chords is not None
        if self.waits:
            self.waits -= 1
            return False
        start = edge.walked
        while True:
            count = min(_POINTS - 1, math.ceil((share - start) / self.step))
            end = min(start + count * self.step, share)
            shares = torch.linspace(0, 1, count + 1, dtype=torch.float64)
            places = torch.lerp(shares.new_tensor(start), shares.new_tensor(end), shares)
            first, last = (self._image(ends, place) for place in (start, end))
            images = torch.lerp(first, last, shares.to(first).view(-1, 1, 1, 1))
            try:
                logits, strays, bends = self.chords.bound(images)
            except TooManyPieces as error:
                self.step *= max(0.02, 0.5 * error.share)
                if self.step < self.width / _FEWEST:
                    return self._give_up()
                continue
            margins = _margins(logits, self.problem.target_class)
            if not self._holds_the_rounding(edge, ends, places, logits, margins):
                return True
            least = torch.minimum(margins[:-1], margins[1:]) - edge.rounding
            stray = _sums(strays, self.problem.target_class)
            used = torch.where(least > 0, stray / least, torch.inf).amax(1)
            held = int((used < 1).cumprod(0).sum())
            if held == 0 and (not used[0] < torch.inf or bends[0] <= _FEW):
                return self._give_up()
            # Deviations grow about as the square of the step: use half of the margin.
            self.step *= min(1.5, max(0.5, math.sqrt(0.5 / max(float(used.max()), 0.1))))
            if held:
                break
        self.failures = 0
        worst = int(used[:held].argmax())
        self._check_between(
            ends, places[worst : worst + 2], logits[worst : worst + 2], strays[worst]
        )
        self._recheck(edge, ends, (start, float(places[held])), [])
        _extend(edge, (least - stray)[:held] + edge.rounding, float(places[held]), held)
        return True

    def _give_up(self) -> bool:
        """Walk this chunk; more chunks if bounds failed repeatedly."""
        self.waits, self.failures = 2**self.failures - 1, self.failures + 1
        return False

    def _holds_the_rounding(
        self, edge: Edge, ends: tuple[int, int], places: Tensor, logits: Tensor, margins: Tensor
    ) -> bool:
        """Whether earlier results hold with a chunk's rounding; if not, reset them."""
        rounding = self._rounding(ends, places, logits, margins)
        if rounding > edge.rounding and _reaches(edge, rounding):
            edge.begin_anew(rounding)
            return False
        edge.rounding = max(edge.rounding, rounding)
        return True

    @torch.no_grad()
    def _check_between(
        self, ends: tuple[int, int], places: Tensor, logits: Tensor, strays: Tensor
    ) -> None:
        """Refuse bounds that the network violates halfway between two points."""
        middle = self.network(self._image(ends, float(places.mean()))[None])[0]
        slack = float(logits.abs().max()) * torch.finfo(self.dtype).eps ** 0.5
        if not ((middle - logits.mean(0)).abs() <= strays + slack).all():
            raise NotPiecewiseLinear("the bounds between two points do not hold halfway")

    def _image(self, ends: tuple[int, int], place: float) -> Tensor:
        return torch.lerp(self.corners[ends[0]], self.corners[ends[1]], place)

    @torch.no_grad()
    def _rounding(
        self, ends: tuple[int, int], places: Tensor, logits: Tensor, margins: Tensor
    ) -> float:
        """Smallest margin that counts, from the network at the middle and the worst point."""
        looked = [int(margins.amin(1).argmin()), len(places) // 2]
        images = torch.stack([self._image(ends, float(places[k])) for k in looked])
        difference = float((self.network(images) - logits[looked]).abs().max())
        scale = float(logits.abs().max())
        if not difference <= scale * torch.finfo(self.dtype).eps ** 0.5:
            raise NotPiecewiseLinear(
                f"the walk and the network differ by {difference:.3g} in logits of {scale:.3g}"
            )
        return 2.0 ** math.ceil(math.log2(_SAFETY * difference)) if difference else 0.0


def _reaches(edge: Edge, rounding: float) -> bool:
    """Whether a margin on what has been walked is no larger than `rounding`."""
    return edge.margin_min is not None and edge.margin_min <= rounding


def _margins(logits: Tensor, target_class: int) -> Tensor:
    """The target class's logit over each other one, (n, classes - 1)."""
    others = torch.arange(logits.shape[1], device=logits.device) != target_class
    return logits[:, target_class, None] - logits[:, others]


def _sums(strays: Tensor, target_class: int) -> Tensor:
    """Deviations of margins (n, classes - 1) from those of logits (n, classes)."""
    others = torch.arange(strays.shape[1], device=strays.device) != target_class
    return strays[:, target_class, None] + strays[:, others]


def _note(edge: Edge, places: Tensor, margins: Tensor, end: float) -> None:
    """Add a walked chunk's findings to an edge's."""
    _extend(edge, margins, end, len(places) - 1)
    for low, high in failures(places, margins - edge.rounding):
        edge.failed += high - low
        if edge.first_failure is None:
            edge.first_failure = [low, high]
        elif low == edge.first_failure[1]:
            edge.first_failure[1] = high


def _extend(edge: Edge, margins: Tensor, end: float, pieces: int) -> None:
    """Count a chunk on which no margin is below the least of `margins` to an edge."""
    smallest = float(margins.min())
    edge.margin_min = smallest if edge.margin_min is None else min(smallest, edge.margin_min)
    edge.pieces += pieces
    edge.walked = end


def failures(places: Tensor, margins: Tensor) -> Iterator[tuple[float, float]]:
    """The intervals on which some margin is not positive.

    Args:
        places: (n,) rising.
        margins: (n, classes - 1), linear between neighbouring places.
    """
    bad = ~(margins > 0).all(1)  # NaN is bad
    pieces = (bad[:-1] | bad[1:]).nonzero().flatten().tolist()
    open_low: float | None = None
    high = 0.0
    for k in pieces:
        width = float(places[k + 1] - places[k])
        low, next_high = (float(places[k]) + width * s for s in _bad_share(margins[k : k + 2]))
        if open_low is not None and low > high:
            yield open_low, high
            open_low = None
        open_low, high = low if open_low is None else open_low, next_high
    if open_low is not None:
        yield open_low, high


def _bad_share(margins: Tensor) -> tuple[float, float]:
    """On a linear piece, margins (2, classes - 1): from and to which share one is not positive.

    With one end good the bad part is one interval that holds the other end; with both ends bad the
    piece counts as bad throughout.
    """
    left, right = margins
    if (left <= 0).any() and (right <= 0).any():
        return 0.0, 1.0
    falls, rises = (left > 0) & (right <= 0), (left <= 0) & (right > 0)
    crossing = left / (left - right)
    if falls.any():
        return float(crossing[falls].min()), 1.0
    return 0.0, float(crossing[rises].max())


def prove_edges(problem: Problem, settings: EdgeSettings, directory: Path) -> Edges:
    """Walk the hull's edges, going on from where an earlier evaluation of them stopped.

    Args:
        problem: two corners or more, and their target.
        settings: how much of which edges.
        directory: where what is known is kept between one call and the next. It should be the
            user's own: what a stranger's run directory says would be stated as proved.

    Returns:
        `edges` of `evaluation.json`: the share of all edges on which the walk finds the class, and
        of that the share proved; each edge; or the `reason` why a network cannot be walked. Edges
        of a network that bends everywhere have bounds instead.
    """
    try:
        walker = Walker(problem, settings)
    except NotPiecewiseLinear:
        return _bounded(problem, settings, directory)
    try:
        key = proof_key(walker.network, problem.corners, problem.target_class)
        cache = EdgeCache(directory, key)
        edges = _known(problem, cache if settings.resume else None)
        _walk_all(walker, edges, settings, cache)
    except NotPiecewiseLinear as error:
        return Edges(reason=str(error))
    return _found(list(edges.values()), settings.precision)


@torch.no_grad()
def _bounded(problem: Problem, settings: EdgeSettings, directory: Path) -> Edges:
    """The edges by bounds over parts of them: what is verified counts as walked, and as proved."""
    judge, edges = ClassJudge(problem), list[Edge]()
    pairs = list(itertools.combinations(range(len(problem.names)), 2))
    try:
        judge.prepare()
        for i, j in pairs:
            known = Splitting.of(torch.eye(len(problem.names))[[i, j]], 2)
            cache = cache_of(directory, judge.network, problem, f"edge {i} {j}")
            known.run(judge, settings.seconds / len(pairs), cache if settings.resume else None,
                      "Edges")  # fmt: skip
            least = float(known.settled[0]) if known.share else None
            named = problem.names[i], problem.names[j]
            edges.append(Edge(named, known.share, margin_min=least, pieces=known.count))
    except NotPiecewiseLinear as error:
        return Edges(reason=str(error))
    return _found(edges, 64)


def _found(chosen: list[Edge], precision: int) -> Edges:
    names = EdgeEntry.model_fields
    edges = [
        EdgeEntry.model_validate(
            {name: getattr(edge, name) for name in names} | {"corners": [*edge.corners]}
        )
        for edge in chosen
    ]
    return Edges(
        precision=precision,
        share_proved=sum(edge.proved for edge in chosen) / len(chosen),
        share_held=sum(edge.held for edge in chosen) / len(chosen),
        share_failed=sum(edge.failed for edge in chosen) / len(chosen),
        edges=edges,
    )


def _walk_all(
    walker: Walker, edges: dict[tuple[int, int], Edge], settings: EdgeSettings, cache: EdgeCache
) -> None:
    """Up to the share that is given; without one, each open edge for its part of the time left."""
    timed = settings.share is None
    share = 1.0 if settings.share is None else settings.share
    # The least known first, so each gets its turn in one evaluation or the next.
    left = sorted((e for e in edges.items() if e[1].walked < share), key=lambda e: e[1].walked)
    started = saved = time.monotonic()
    pace = 0.0  # seconds for a whole edge, by the last chunk
    if timed:
        walker.width = _FIRST
    bar = tqdm(total=100.0, desc="Edges", unit="%", mininterval=0.5, delay=1,
               bar_format="{l_bar}{bar}| {n:.2f} % [{elapsed}<{remaining}{postfix}]")  # fmt: skip
    with bar:
        for done, (ends, edge) in enumerate(left):
            now = time.monotonic()
            deadline = now + (started + settings.seconds - now) / (len(left) - done)
            while edge.walked < share:
                before, now = edge.walked, time.monotonic()
                most = (deadline - now) / pace / 2 if pace else 1.0  # edges differ in their pace
                if timed and (now >= deadline or most < walker.width / _FEWEST):
                    break  # what is left of its time goes to the others
                walker.advance(edge, ends, share, most if timed else 1.0)
                if edge.walked > before:
                    pace = (time.monotonic() - now) / (edge.walked - before)
                done_now = 100 * (edge.walked - before) / len(left) / share
                bar.update(min(done_now, max(0.0, 100.0 - bar.n)))  # sums may round above it
                bar.set_postfix_str(f"{edge.pieces} pieces", refresh=False)
                if time.monotonic() > saved + _SAVE_EVERY:
                    saved = time.monotonic()
                    _save(cache, edges)
    _save(cache, edges)


def _save(cache: EdgeCache, edges: dict[tuple[int, int], Edge]) -> None:
    names = KeptEdge.model_fields
    cache.save([
        KeptEdge.model_construct(**{name: getattr(edge, name) for name in names})
        for edge in edges.values()
    ])  # fmt: skip


def _known(problem: Problem, cache: EdgeCache | None) -> dict[tuple[int, int], Edge]:
    """Each edge by its corners' places in the hull, with what an earlier evaluation found."""
    numbers = problem.names
    ends = list(itertools.combinations(range(len(numbers)), 2))
    found = cache.load(len(ends)) if cache else None
    kept = [entry.entries() for entry in found] if found else [{}] * len(ends)
    return {
        (i, j): Edge((numbers[i], numbers[j]), **entry)
        for (i, j), entry in zip(ends, kept, strict=True)
    }
