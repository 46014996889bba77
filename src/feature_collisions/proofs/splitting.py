"""A hull cut into pieces until each is settled: halved where it helps, until time is up.

A piece is a simplex of K points of the hull, by their weights; halving an edge gives two of half
its volume. After at most 50 halvings weights are multiples of 2^-50, which float64 holds exactly;
smaller pieces are not halved.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .cache import PieceCache

_MOST = 64  # pieces at once
_SECONDS = 0.5  # a batch should take at most
_SAVE_EVERY = 10.0  # seconds
_SMALLEST = 2.0**-50  # share of the hull's volume


class Judged(NamedTuple):
    """What is found of P pieces.

    Attributes:
        figures: (P, F) what holds on all of a piece: the larger, the better.
        settled: (P,) whether that is good enough.
        edge: the two vertices (P,) each, between which to halve.
    """

    figures: Tensor
    settled: Tensor
    edge: tuple[Tensor, Tensor]


@dataclass
class Splitting:
    """What is known of all pieces of a hull.

    Attributes:
        weights: (n, V, K) of the V vertices of each piece that is not settled.
        volume: (n,) their shares of the hull.
        figures: (n, F) what holds on each.
        settled: (F,) what holds on all that are settled.
        share: of the hull's volume that is settled.
        pieces: how many have been judged.
        done: (n, V, K) of the pieces that are settled, where `keeps` asks for them.
        seconds: how long that took.
    """

    weights: Tensor
    volume: Tensor
    figures: Tensor
    settled: Tensor
    share: float = 0.0
    pieces: int = 0
    seconds: float = 0.0
    keeps: bool = False
    most: int = field(default=1, init=False)
    done: list[Tensor] = field(default_factory=list, init=False)

    @classmethod
    def of(cls, vertices: Tensor, figures: int) -> "Splitting":
        """The simplex of some points, by their weights (V, K), of which nothing is known."""
        like = torch.zeros(1, figures, dtype=torch.float64)
        return cls(
            vertices.double()[None],
            torch.ones(1, dtype=torch.float64),
            like - torch.inf,
            like[0] + torch.inf,
        )

    @property
    def everywhere(self) -> Tensor:
        """(F,) what holds on the whole hull."""
        return torch.cat([self.figures, self.settled[None]]).amin(0)

    def run(
        self,
        judge: Callable[[Tensor], Judged],
        seconds: float,
        cache: PieceCache | None,
        name: str,
        best_first: bool,
        memory: int = _MOST,
        limit: float = torch.inf,
    ) -> None:
        """Judge pieces, and halve those that are not settled, until all are or time is up.

        Args:
            judge: judges pieces by their weights (P, K, K).
            seconds: to spend.
            cache: keeps what is known; what it has of an earlier call is gone on with.
            name: what the progress bar says.
            best_first: begin with what is nearest to settled, or with what is farthest.
            memory: pieces that fit into memory at once.
            limit: how many pieces to judge at most, about.
        """
        if cache and (kept := cache.load(self.weights.shape[2], len(self.settled))):
            self._take(kept)
        started = saved = time.monotonic()
        before = self.seconds
        bar = tqdm(total=1.0, initial=self.share, desc=name, mininterval=0.5, delay=1,
                   bar_format="{l_bar}{bar}| [{elapsed}{postfix}]")  # fmt: skip
        with bar:
            first = seconds > 0
            while self._left(limit) and (first or time.monotonic() < started + seconds):
                first = False
                began = time.monotonic()
                self.advance(judge, best_first)
                took = time.monotonic() - began
                if took < _SECONDS / 2:
                    self.most = min(2 * self.most, _MOST, memory)
                elif took > _SECONDS:
                    self.most = max(1, self.most // 2)
                self.seconds = before + time.monotonic() - started
                bar.update(self.share - bar.n)
                bar.set_postfix_str(f"{self.pieces} pieces", refresh=False)
                if cache and time.monotonic() > saved + _SAVE_EVERY:
                    saved = time.monotonic()
                    cache.save(self._kept())
        if cache:
            cache.save(self._kept())

    def _left(self, limit: float) -> bool:
        """Whether there is a piece to judge, and not too many have been."""
        return self.pieces < limit and bool((self.volume > _SMALLEST).any())

    def advance(self, judge: Callable[[Tensor], Judged], best_first: bool) -> None:
        """Judge `most` pieces, and halve those that are not settled."""
        order = self.figures[:, 0].argsort(descending=best_first, stable=True)
        small = self.volume[order] <= _SMALLEST
        order = torch.cat([order[~small], order[small]])
        most = min(self.most, int((~small).sum()))
        now, later = order[:most], order[most:]
        weights, volume, known = self.weights[now], self.volume[now], self.figures[now]
        found = judge(weights)
        settled, edge = found.settled.cpu(), [each.cpu() for each in found.edge]
        figures = torch.maximum(found.figures.cpu(), known)  # a piece's hold on its halves
        self.pieces += len(now)
        self.share += float(volume[settled].sum())
        if self.keeps:
            self.done.append(weights[settled])
        self.settled = torch.cat([figures[settled], self.settled[None]]).amin(0)
        halved = _halves(weights[~settled], *(each[~settled] for each in edge))
        self.weights = torch.cat([self.weights[later], halved])
        self.volume = torch.cat([self.volume[later], volume[~settled].repeat_interleave(2) / 2])
        self.figures = torch.cat([self.figures[later], figures[~settled].repeat_interleave(2, 0)])

    def _kept(self) -> dict[str, Tensor]:
        numbers = [self.share, float(self.pieces), self.seconds]
        return {"weights": self.weights, "volume": self.volume, "figures": self.figures,
                "settled": self.settled, "numbers": torch.tensor(numbers).double()}  # fmt: skip

    def _take(self, kept: dict[str, Tensor]) -> None:
        self.weights, self.volume = kept["weights"], kept["volume"]
        self.figures, self.settled = kept["figures"], kept["settled"]
        self.share, pieces, self.seconds = kept["numbers"].tolist()
        self.pieces = int(pieces)


def _halves(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Pieces (n, V, K) halved across an edge each, (2n, V, K): halves are neighbours."""
    each = torch.arange(len(weights))
    middle = (weights[each, first] + weights[each, second]) / 2
    halves = torch.stack([weights, weights], 1)
    halves[each, 0, first] = middle
    halves[each, 1, second] = middle
    return halves.flatten(0, 1)
