"""A proof ends in its time, and before where more of it would not help; it says which."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.hull.hull import Hull
from feature_collisions.proofs.bounds import local, over_pieces
from feature_collisions.proofs.bounds import steps as bound_steps
from feature_collisions.proofs.bounds.local import TooManyBends, check_bends, localise
from feature_collisions.proofs.bounds.over_pieces import Bounds
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.relaxation import rounding
from feature_collisions.proofs.bounds.steps import Rectifier
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.faces import prove_faces
from feature_collisions.proofs.whole_hull import prove_class
from proofs.test_local import piece_of
from proofs.test_proofs import NETWORKS, SIZES, hull_of, made


class Clock:
    """A second passes whenever somebody looks at it between two steps of a network."""

    looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return math.inf if self.looks > 5 else 0.0


def deep(corners: Tensor) -> Hull:
    """A network of thirty steps and more."""
    torch.manual_seed(0)
    layers = [layer for _ in range(15) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return hull_of(nn.Sequential(nn.Flatten(), *layers, nn.Linear(8, 3)), corners, "27")


@pytest.fixture
def hull() -> Hull:
    return deep(torch.rand(4, 1, 2, 4, generator=torch.Generator().manual_seed(0)))


def test_bounds_that_take_longer_than_their_time_are_given_up(
    hull: Hull, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first alone takes more: nothing is claimed, nothing is lost."""
    whole = prove_class(hull.problem, 5)
    assert whole["outcome"] == "proved"
    clock = Clock()
    monkeypatch.setattr(bound_steps, "time", clock)
    found = prove_class(hull.problem, 5, tmp_path)
    assert clock.looks == 6  # nothing went on after its time was over
    assert {name: found[name] for name in ("outcome", "share_proved", "pieces")} == {
        "outcome": "undecided", "share_proved": 0, "pieces": 0,
    }  # fmt: skip
    late = "not reached in proof.seconds=5: the first bounds take longer"
    assert found["reason"] == late
    clock.looks = 0
    assert prove_collision(hull.problem, 5)["reason"] == late
    clock.looks = 0
    assert prove_faces(hull.problem, 5)["share_proved"] == 0
    monkeypatch.undo()
    again = prove_class(hull.problem, 5, tmp_path)
    assert "reason" not in again
    for name in ("outcome", "share_proved", "pieces", "margin_min"):
        assert again[name] == whole[name]


def test_rows_that_are_carried_back_and_cuts_look_at_the_clock(
    hull: Hull, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, corners = made("skips", 0, SIZES["skips"], 1.0)
    steps = steps_of(network, corners[0])
    last = steps[-1].size
    error = rounding(4, corners)[None]
    bounds = Bounds(steps, corners[None], error)
    rows = torch.eye(last, dtype=torch.float64)
    bounds.lower(len(steps) - 1, rows)
    bounds.until = -math.inf
    for late in (
        lambda: bounds.lower(len(steps) - 1, rows),
        lambda: bounds.spread(len(steps) - 1, rows),
        lambda: bounds.parts({}, torch.ones(1)),
        lambda: Bounds(steps, corners[None], error, until=-math.inf),
        lambda: localise(steps, corners, rounding(4, corners), -math.inf),
    ):
        with pytest.raises(bound_steps.OutOfTime):
            late()


def test_a_hull_whose_small_parts_bend_too_much_is_given_up_at_once(
    hull: Hull, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With time for millions of pieces, and bounds that never settle one."""

    class Wavy(nn.Module):
        """Thousands of ridges all over the square."""

        def __init__(self) -> None:
            super().__init__()
            self.ridges, self.last = nn.Linear(2, 6000), nn.Linear(6000, 2, bias=False)
            generator = torch.Generator().manual_seed(0)
            turns = 2 * math.pi * torch.rand(6000, generator=generator)
            self.ridges.weight.data = torch.stack([turns.cos(), turns.sin()], 1)
            middle = torch.rand(6000, 2, generator=generator)
            self.ridges.bias.data = -(self.ridges.weight.data * middle).sum(1)
            sign = torch.arange(6000) % 2 * 2.0 - 1
            self.last.weight.data = torch.stack([sign, 0 * sign])

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.last(self.ridges(images.flatten(1)).relu())
            return logits + torch.tensor([1e3, 0])

    monkeypatch.setattr(local, "_BENDS", 20)  # 6000 / 64 ridges and more run through a part
    corners = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]]).view(3, 1, 1, 2)
    waves = hull_of(Wavy(), corners, "ridges")
    monkeypatch.setattr(over_pieces.Bounds, "lower", _nothing)
    found = prove_class(waves.problem, 600)
    assert found["seconds"] < 60
    assert found["outcome"] == "undecided"
    assert found["reason"] == (
        "even on a 4096th of the hull more units bend than bounds can follow; more time will not "
        "help"
    )
    monkeypatch.setattr(local, "_BENDS", 3000)  # where parts have local networks it goes on
    assert "reason" not in prove_class(waves.problem, 0.5)


def _nothing(bounds: Bounds, number: int, rows: Tensor) -> Tensor:
    """Bounds that decide nothing."""
    bounds.met = {}
    return torch.full((bounds.pieces, len(rows), bounds.corners), -1e9, dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
def test_bends_that_are_counted_first_are_among_those_of_the_local_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen to bend does bend: a piece is never said to be too large that is not."""
    seen = 0
    for seed in range(5):
        network, corners = made(name, seed, SIZES[name], 1.0)
        steps = steps_of(network, corners[0])
        piece = torch.tensordot(piece_of(seed, torch.Generator().manual_seed(seed)), corners, 1)
        inside = localise(steps, piece, rounding(4, piece))
        bends = sum(step.size for step in inside if isinstance(step, Rectifier))
        monkeypatch.setattr(local, "_BENDS", bends)
        check_bends(steps, piece)
        certain = next(n for n in range(bends + 1) if _passes(steps, piece, n, monkeypatch))
        assert certain == sum(_crossing(steps, piece))
        seen += certain
        monkeypatch.undo()
    assert seen


def _passes(steps: Any, piece: Tensor, most: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(local, "_BENDS", most)
    try:
        check_bends(steps, piece)
    except TooManyBends:
        return False
    return True


def _crossing(steps: Any, piece: Tensor) -> Iterator[int]:
    """How many units of each rectifier have values of both signs at the vertices, one by one."""
    values: list[list[Tensor]] = []
    for vertex in piece:
        values.append([])
        for step in steps:
            part = steps[: len(values[-1]) + 1]
            values[-1].append(local.values_of(part, vertex[None])[0].flatten())
            assert part[-1] is step
    for step in steps:
        if isinstance(step, Rectifier):
            each = torch.stack([of_vertex[step.sources[0]] for of_vertex in values])
            yield sum(bool((unit > 0).any() and (unit < 0).any()) for unit in each.T)


def test_a_piece_is_cut_by_the_units_that_can_bend_most(monkeypatch: pytest.MonkeyPatch) -> None:
    network, corners = made("skips", 0, SIZES["skips"], 1.0)
    bounds = Bounds(steps_of(network, corners[0]), corners[None], rounding(4, corners)[None])
    weights = {
        number: torch.rand(1, step.size, generator=torch.Generator().manual_seed(number)).double()
        for number, step in enumerate(bounds.steps)
        if isinstance(step, Rectifier)
    }
    every = {number: _most(bounds, number, weight) for number, weight in weights.items()}
    ranked = torch.cat(list(every.values())).sort(descending=True).values
    few = {k: torch.where(every[k] >= ranked[2], weight, 0) for k, weight in weights.items()}
    times = torch.tensor([5])
    expected, whole = bounds.parts(few, times), bounds.parts(weights, times)
    monkeypatch.setattr(over_pieces, "_UNITS", 3)
    found = bounds.parts(weights, times)
    assert torch.equal(found.inside, expected.inside)
    assert not torch.equal(found.inside, whole.inside)
    assert len(found.piece) == 32


def _most(bounds: Bounds, number: int, weight: Tensor) -> Tensor:
    """How far apart a rectifier's values at the vertices lie, by its units' weight."""
    given = bounds.at[bounds.steps[number].sources[0]]
    value = given.middle[0].flatten(1).relu()
    bends = ((given.low < 0) & (given.high > 0)).flatten()
    spread: Tensor = (value.max(0).values - value.min(0).values) * weight[0] * bends
    return spread
