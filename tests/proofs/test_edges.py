"""The exact walk of a segment against closed forms, dense sampling, and planted class changes."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.graph.operations import NotPiecewiseLinear, kinds
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs.between.chords import Chords
from feature_collisions.proofs.edges import failures, prove_edges
from feature_collisions.proofs.piecewise import Line, TooManyPieces
from feature_collisions.settings.evaluate import EdgeSettings
from helpers.graphs import traced_for
from helpers.hulls import valley
from helpers.networks import everything


def direct(network: nn.Module, start: Tensor, end: Tensor, places: Tensor) -> Tensor:
    """The network's own logits at places of the segment."""
    with torch.no_grad():
        logits: Tensor = network(start + (end - start) * places.view(-1, 1, 1, 1))
    return logits


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_walk_is_exact_at_and_between_its_breakpoints(seed: int) -> None:
    start, end = torch.rand(2, 2, 11, 9, dtype=torch.float64)
    network = traced_for(everything(seed), start)
    places, logits = Line(network).walk(start, end)
    assert places[0] == 0
    assert places[-1] == 1
    assert (places.diff() >= 0).all()
    assert len(places) > 100
    torch.testing.assert_close(logits, direct(network, start, end, places), rtol=0, atol=1e-11)
    # Linear between neighbours: at points strictly inside, interpolation is the network's value.
    dense = torch.linspace(0, 1, 5001, dtype=torch.float64)
    at = torch.searchsorted(places, dense, right=True).clamp(1, len(places) - 1)
    low, high = places[at - 1], places[at]
    share = ((dense - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    between = torch.lerp(logits[at - 1], logits[at], share[:, None])
    torch.testing.assert_close(between, direct(network, start, end, dense), rtol=0, atol=1e-10)


def test_a_tiny_network_in_closed_form() -> None:
    """relu(2a - 1) + relu(1 - 4a) bends at 1/2 and 1/4 and nowhere else."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    model[1].weight.data, model[1].bias.data = (
        torch.tensor([[2.0], [-4.0]]),
        torch.tensor([-1.0, 1]),
    )
    model[3].weight.data, model[3].bias.data = torch.ones(1, 2), torch.zeros(1)
    start, end = torch.zeros(1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64)
    places, logits = Line(traced_for(model, start)).walk(start, end)
    assert places.tolist() == [0, 0.25, 0.5, 1]
    assert logits.flatten().tolist() == [1, 0, 0, 1]


def test_a_max_pool_bends_where_its_largest_line_changes() -> None:
    """Three lines, each on top once: 1 - 3a, 0.6 - a / 2, 2a - 1 cross at 0.16 and 0.64."""
    model = nn.Sequential(nn.MaxPool2d((1, 3)), nn.Flatten())
    start = torch.tensor([1, 0.6, -1], dtype=torch.float64).view(1, 1, 3)
    end = torch.tensor([-2, 0.1, 1], dtype=torch.float64).view(1, 1, 3)
    places, logits = Line(traced_for(model, start)).walk(start, end)
    expected = torch.tensor([0, 0.16, 0.64, 1], dtype=torch.float64)
    torch.testing.assert_close(places, expected)
    torch.testing.assert_close(logits[:, 0], torch.tensor([1, 0.52, 0.28, 1], dtype=torch.float64))


def test_a_planted_class_change_is_found_with_its_interval(tmp_path: Path) -> None:
    found = prove_edges(valley().problem, EdgeSettings(), tmp_path)
    first, second, third = found["edges"]
    assert first["corners"] == [4, 5]
    assert first["walked"] == 1
    assert first["first_failure"] == pytest.approx([0.3, 0.3125], abs=1e-6)
    assert first["failed"] == pytest.approx(0.0125, abs=1e-6)
    assert first["proved"] == pytest.approx(0.9875, abs=1e-6)
    assert second["corners"] == [4, 9]  # pixel 0 stays 0: the class holds
    assert second["proved"] == 1
    assert second["first_failure"] is None
    assert second["margin_min"] == pytest.approx(0.3, abs=1e-6)
    assert third["first_failure"] == pytest.approx([0.6875, 0.7], abs=1e-6)
    assert found["share_proved"] == pytest.approx(2.975 / 3, abs=1e-6)


def test_an_edge_whose_rounding_was_sampled_is_walked_and_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feature_collisions.proofs.edges._SMALL", 1)
    found = prove_edges(valley().problem, EdgeSettings(), tmp_path)
    assert found["share_proved"] == 0
    assert found["share_held"] == pytest.approx(2.975 / 3, abs=1e-6)
    assert [edge["unconfirmed"] for edge in found["edges"]] == [None] * 3


def test_chunks_find_what_one_walk_finds_and_a_share_goes_on_where_it_stopped(
    tmp_path: Path,
) -> None:
    whole = prove_edges(valley().problem, EdgeSettings(share=1), tmp_path / "whole")
    for share in (0.1, 0.305, 0.31, 1.0):
        parts = prove_edges(valley().problem, EdgeSettings(share=share), tmp_path / "parts")
        assert [edge["walked"] for edge in parts["edges"]] == [share] * 3
    for one, other in zip(whole["edges"], parts["edges"], strict=True):
        assert one["first_failure"] == pytest.approx(other["first_failure"], abs=1e-9)
        assert one["failed"] == pytest.approx(other["failed"], abs=1e-9)
        assert one["margin_min"] == pytest.approx(other["margin_min"], abs=1e-9)


def of_everything(lost: float) -> Hull:
    """Two random corners; on about so much of the edge between them the target's class is lost."""
    model = everything()
    corners = torch.rand(2, 2, 11, 9)
    summary: dict[str, Any] = {"target_class": 0, "corners": [{"corner": 0}, {"corner": 1}]}
    with torch.no_grad():
        logits = model(torch.lerp(*corners, torch.linspace(0, 1, 1000).view(-1, 1, 1, 1)))
        margins = logits[:, 0] - logits[:, 1:].amax(1)
        lowest = margins.quantile(lost) if lost else margins.min() - 0.2
        model.last.bias[0] -= lowest
    return Hull(model, "left", corners, corners[0], corners[1], torch.arange(2), summary)


SMALL = 0.001  # GiB: 22 points of `everything` in float64


@pytest.mark.parametrize("lost", [0.5, 0.02, 0.0])
def test_little_memory_cuts_an_edge_into_chunks_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: float
) -> None:
    monkeypatch.setattr(Chords, "__init__", refuse)
    problem = of_everything(lost).problem
    found = [
        prove_edges(problem, EdgeSettings(share=1, memory=memory, resume=False), tmp_path)["edges"][
            0
        ]
        for memory in (0.25, SMALL)
    ]
    row = 6 * 11 * 9 * 8
    assert found[0]["pieces"] * row > SMALL * 2**30  # it did not fit in one piece
    assert found[1]["pieces"] > found[0]["pieces"]
    assert found[1]["margin_min"] == pytest.approx(found[0]["margin_min"], abs=1e-10)
    assert found[1]["failed"] == pytest.approx(found[0]["failed"], abs=1e-10)


def refuse(*given: Any) -> None:
    raise NotPiecewiseLinear("no bounds")


@pytest.mark.parametrize("lost", [0.5, 0.02, 0.0])
@pytest.mark.parametrize("precision", [64, 32])
def test_bounds_between_points_find_what_the_walk_finds(
    tmp_path: Path, lost: float, precision: int
) -> None:
    hull = of_everything(lost)
    walked, bounded = (
        prove_edges(
            hull.problem,
            EdgeSettings(share=1, memory=memory, precision=precision, resume=False),
            tmp_path,
        )["edges"][0]
        for memory in (0.25, SMALL / 8)
    )
    near = 1e-9 if precision == 64 else 1e-2
    assert bounded["walked"] == 1
    assert bounded["failed"] == pytest.approx(walked["failed"], abs=near)
    if lost < 0.1:  # what fails is walked
        assert bounded["pieces"] < walked["pieces"] / 2
    assert bounded["margin_min"] <= walked["margin_min"] + near
    if lost == 0:
        assert walked["failed"] == 0
        assert 0 < bounded["margin_min"] < walked["margin_min"]
    else:
        assert walked["failed"] == pytest.approx(lost, abs=0.01)
        if precision == 64:
            assert bounded["first_failure"] == pytest.approx(walked["first_failure"], abs=near)
        for found in (walked, bounded):  # in float32 rounding decides which failure is the first
            first = torch.tensor(found["first_failure"][0], dtype=torch.float64)
            with torch.no_grad():
                logits = hull.model.double()(torch.lerp(*hull.corners.double(), first)[None])[0]
            assert float(logits[0] - logits[1:].max()) <= near


def test_bounds_that_the_network_leaves_claim_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = Chords.bound

    def smaller(chords: Chords, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, strays, bends = bound(chords, images)
        return logits, 1e-3 * strays, bends

    monkeypatch.setattr(Chords, "bound", smaller)
    found = prove_edges(of_everything(0.0).problem, EdgeSettings(share=1, memory=SMALL), tmp_path)
    assert "do not hold halfway" in found["reason"]


class Clock:
    """Stands still but for walking: 30 seconds for each unit of length."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, walk = 0.0, Line.walk

        def slow(line: Line, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
            self.now += 30 * float((last - first).norm())
            return walk(line, first, last)

        monkeypatch.setattr(Line, "walk", slow)
        monkeypatch.setattr("feature_collisions.proofs.edges.time.monotonic", lambda: self.now)


def test_seconds_are_shared_out_among_the_edges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hull = valley()
    ends = itertools.combinations(range(3), 2)
    lengths = [float((hull.corners[i] - hull.corners[j]).norm()) for i, j in ends]
    clock = Clock(monkeypatch)
    whole = 30 * sum(lengths)
    found = prove_edges(hull.problem, EdgeSettings(seconds=whole / 10), tmp_path)["edges"]
    assert clock.now <= whole / 10 * 1.2
    spent = [edge["walked"] * 30 * length for edge, length in zip(found, lengths, strict=True)]
    for seconds in spent:
        assert seconds == pytest.approx(whole / 30, rel=0.3)
    for _ in range(30):  # an edge that is done leaves its part to the others
        found = prove_edges(hull.problem, EdgeSettings(seconds=whole / 20), tmp_path)["edges"]
    assert [edge["walked"] for edge in found] == [1.0, 1.0, 1.0]


def test_an_edge_without_its_turn_comes_first_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    monkeypatch.setattr(
        "feature_collisions.proofs.edges._FIRST", 1.0
    )  # each chunk overruns everything
    shares = []
    for _ in range(3):
        found = prove_edges(valley().problem, EdgeSettings(seconds=1e-3), tmp_path)["edges"]
        shares.append([edge["walked"] for edge in found])
    assert shares == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_without_time_nothing_is_walked_and_nothing_is_claimed(tmp_path: Path) -> None:
    found = prove_edges(valley().problem, EdgeSettings(seconds=0), tmp_path)
    assert found["share_proved"] == 0
    assert found["edges"][0]["margin_min"] is None


def test_what_an_earlier_evaluation_of_other_corners_found_is_not_taken_over(
    tmp_path: Path,
) -> None:
    prove_edges(valley().problem, EdgeSettings(share=1), tmp_path)
    other = replace(valley(), corners=valley().corners / 2)
    found = prove_edges(other.problem, EdgeSettings(seconds=0), tmp_path)
    assert found["edges"][0]["walked"] == 0


def test_a_chunk_that_does_not_fit_says_so() -> None:
    start, end = torch.rand(2, 2, 11, 9, dtype=torch.float64)
    with pytest.raises(TooManyPieces, match="breakpoints"):
        Line(traced_for(everything(), start), memory=30_000).walk(start, end)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.GELU()), "2 .gelu. bends everywhere"),
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), "1 .softmax. bends everywhere"),
        (nn.Sequential(nn.Flatten(), nn.Softshrink()), "1 .softshrink. is not known"),
    ],
)
def test_what_is_not_piecewise_linear_is_refused_by_name(model: nn.Module, reason: str) -> None:
    with pytest.raises(NotPiecewiseLinear, match=reason):
        Line(traced_for(model, torch.zeros(1, 2, 2)))


def test_products_and_quotients_of_the_pixels_are_refused() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * x).flatten(1)

    class Inverse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (1 / x).flatten(1)

    for model in (Square(), Inverse()):
        with pytest.raises(NotPiecewiseLinear, match="not known to be linear"):
            kinds(traced_for(model, torch.zeros(1, 2, 2)))


def test_failures_are_joined_over_pieces() -> None:
    places = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    margins = torch.tensor([[1.0, 1], [-1, 1], [-1, -1], [1, 1], [1, 1]])
    assert list(failures(places, margins)) == [(0.125, 0.625)]
    assert list(failures(places, -margins)) == [(0.0, 0.375), (0.625, 1.0)]
