"""A clock for proofs that moves by what is done, so that no result depends on the machine."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from feature_collisions.proofs import splitting
from feature_collisions.proofs.bounds import steps as bound_steps
from feature_collisions.proofs.judge import HullJudge
from feature_collisions.proofs.splitting import Judged, Pieces

PIECES = 1000  # are judged in a second


@dataclass
class PieceClock:
    """Moves as pieces are judged, and a little at each look, so that every loop ends."""

    now: float = 0.0

    def monotonic(self) -> float:
        self.now += 1e-5
        return self.now


def count_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give proofs a clock by which PIECES pieces take a second."""
    clock, judge = PieceClock(), HullJudge.__call__

    def judged(self: HullJudge, pieces: Pieces, steps: object) -> Judged:
        found: Judged = judge(self, pieces, steps)  # type: ignore[arg-type]
        clock.now += len(pieces.volume) / PIECES
        return found

    monkeypatch.setattr(HullJudge, "__call__", judged)
    monkeypatch.setattr(splitting, "time", clock)
    monkeypatch.setattr(bound_steps, "time", SimpleNamespace(monotonic=lambda: clock.now))
