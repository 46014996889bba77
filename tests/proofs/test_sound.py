"""Proofs state no more than was shown: rounding, stale caches, and networks that fx misreads."""

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions.graph.graph import trace
from feature_collisions.graph.operations import NotPiecewiseLinear, kinds
from feature_collisions.graph.target import TargetFeatures
from feature_collisions.proofs.edges import prove_edges
from feature_collisions.proofs.piecewise import Line
from feature_collisions.proofs.problem import Problem
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.evaluate import EdgeSettings
from helpers.bounds import backward, bounds_of, spread
from helpers.graphs import traced_for
from helpers.hulls import valley

WHOLE = EdgeSettings(share=1)


def problem_of(model: nn.Module, corners: Tensor, target_class: int = 0) -> Problem:
    layer = next(name for name, _ in model.named_modules() if name)
    graph, names = trace(model, corners.shape[1:]), tuple(range(len(corners)))
    features = TargetFeatures(torch.zeros(1))  # of no concern to the class
    return Problem(graph, layer, corners, corners[1], features, target_class, 0.3, names)


class Cancelling(nn.Module):
    """Two hidden values near 1e13; the logit of class 0 is their difference, of class 1 `tilt`."""

    def __init__(self, seed: int, tilt: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.hidden, self.out = nn.Linear(40, 2), nn.Linear(2, 2)
        first = 1e12 * (1 + torch.rand(1, 40, generator=generator))
        self.hidden.weight.data = torch.cat([first, first.flip(1)])
        self.hidden.bias.data = torch.zeros(2)
        self.out.weight.data = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
        self.out.bias.data = torch.tensor([0.0, tilt])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(images.flatten(1)).relu())
        return logits


def exact_logits(model: Cancelling, image: Tensor) -> list[Fraction]:
    """The logits in rational numbers."""
    values = [Fraction(v) for v in image.flatten().tolist()]
    for layer, bends in ((model.hidden, True), (model.out, False)):
        rows, biases = layer.weight.tolist(), layer.bias.tolist()
        values = [
            sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(bias))
            for row, bias in zip(rows, biases, strict=True)
        ]
        values = [max(v, Fraction(0)) for v in values] if bends else values
    return values


def palindrome(seed: int) -> Tensor:
    """An image, twice (2, 1, 1, 40), that reads the same backwards: its hidden values are equal."""
    half = torch.rand(1, 1, 1, 20, generator=torch.Generator().manual_seed(seed)) ** 4
    return torch.cat([half, half.flip(3)], 3).repeat(2, 1, 1, 1)


def test_what_rounding_of_large_hidden_values_could_undo_is_not_proved() -> None:
    misled = 0
    for seed in range(60):
        corners, model = palindrome(seed), Cancelling(seed, 1e-5)
        assert exact_logits(model, corners[0])[0] == 0  # less than 1e-5: class 1
        with torch.no_grad():
            misled += int((traced_for(model, corners)(corners.double())[:, 0] > 1e-5).all())
        assert prove_class(problem_of(model, corners), seconds=0.05)["share_proved"] == 0
    assert misled > 0  # float64 takes the corners of these for class 0


@pytest.mark.parametrize("seed", range(5))
def test_bounds_hold_in_exact_arithmetic(seed: int) -> None:
    model = Cancelling(seed, 0.25)
    corners = torch.rand(3, 1, 1, 40, generator=torch.Generator().manual_seed(seed)).double()
    for bound in (bounds_of, backward, spread):
        lower, upper = bound(traced_for(model, corners), corners)
        for low, corner, high in zip(lower, corners, upper, strict=True):
            for a, exact, b in zip(low, exact_logits(model, corner), high, strict=True):
                assert Fraction(float(a)) <= exact <= Fraction(float(b))
        assert (upper - lower).max() < 20  # though hidden values are 1e13


class Thin(nn.Module):
    """Class 0 everywhere, by a margin of 1e-8 on logits of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2, 2), nn.Linear(2, 2)
        self.hidden.weight.data, self.hidden.bias.data = torch.zeros(2, 2), torch.ones(2)
        self.out.weight.data = torch.tensor([[1.0, 1e-8], [1.0, 0.0]])
        self.out.bias.data = torch.zeros(2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.hidden(images.flatten(1)).relu())
        return logits


def test_a_larger_rounding_counts_for_what_was_walked_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(Thin(), torch.tensor([[0.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2))
    walk = Line.walk

    def rough(line: Line, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        places, logits = walk(line, first, last)
        return places, logits + (1e-9 if float(last.max()) > 0.5 else 0)  # beyond the middle

    monkeypatch.setattr(Line, "walk", rough)
    half = prove_edges(problem, EdgeSettings(share=0.5), tmp_path)
    assert half["share_proved"] == 0.5
    whole = prove_edges(problem, WHOLE, tmp_path)
    assert whole["edges"][0]["rounding"] > 1e-8
    assert whole["edges"][0]["walked"] == 1
    assert whole["share_proved"] == 0
    assert whole["share_failed"] == 1


def test_an_edge_far_from_another_class_is_not_walked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Thin()
    model.out.bias.data = torch.tensor([0.5, 0.0])
    problem = problem_of(model, torch.tensor([[0.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2))
    walk, walked = Line.walk, []

    def rough(line: Line, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        places, logits = walk(line, first, last)
        walked.append(1)
        return places, logits + (1e-9 if len(walked) > 1 else 0)

    monkeypatch.setattr(Line, "walk", rough)
    prove_edges(problem, EdgeSettings(share=0.5), tmp_path)
    assert prove_edges(problem, WHOLE, tmp_path)["share_proved"] == 1
    assert len(walked) == 2


def test_what_was_proved_of_one_class_is_not_taken_for_another(tmp_path: Path) -> None:
    problem = valley().problem
    assert prove_edges(problem, WHOLE, tmp_path)["share_proved"] > 0.9
    other = replace(problem, target_class=1)
    assert prove_edges(other, WHOLE, tmp_path)["share_proved"] < 0.1


class Pools(nn.Module):
    """Networks that differ in a layer's options alone: their state dicts are one."""

    def __init__(self, count_include_pad: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=count_include_pad)
        self.last = nn.Linear(4, 2)
        self.last.weight.data = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
        self.last.bias.data = torch.tensor([-1.0, 0])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.pool(images).flatten(1))
        return logits


class Negated(Pools):
    """The same modules and weights, another forward."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(-1 * self.pool(images).flatten(1))
        return logits


@pytest.mark.parametrize("other", [lambda: Pools(True), lambda: Negated(False)])
def test_what_was_proved_of_one_network_is_not_taken_for_another(
    tmp_path: Path, other: Callable[[], nn.Module]
) -> None:
    corners = torch.full((2, 1, 2, 2), 0.4)
    corners[1, 0, 0, 0] = 0.5
    assert prove_edges(problem_of(Pools(False), corners), WHOLE, tmp_path)["share_proved"] == 1
    assert prove_edges(problem_of(other(), corners), WHOLE, tmp_path)["share_proved"] == 0
    assert prove_edges(problem_of(Pools(False), corners), EdgeSettings(seconds=0), tmp_path)[
        "share_proved"
    ] == pytest.approx(1)


def test_corners_of_one_number_keep_their_own_edges(tmp_path: Path) -> None:
    problem = replace(valley().problem, names=(0, 0, 0))
    found = [
        [edge["proved"] for edge in prove_edges(problem, settings, tmp_path)["edges"]]
        for settings in (WHOLE, EdgeSettings(seconds=0))
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "content",
    [
        "", "[", "{}", "[]", "null", "[1, 2, 3]", '[{"walked": 1}]', b"\xff\xfe", "[" * 100_000,
        json.dumps([{"walked": 1.0, "failed": 0.0, "first_failure": None, "margin_min": 1.0,
                     "pieces": 1, "rounding": 1e-15}]),
        json.dumps([{"walked": 2.0, "failed": 0.0, "first_failure": None, "margin_min": 1.0,
                     "pieces": 1, "rounding": 1e-15}] * 3),
        json.dumps([{"walked": 1.0, "failed": 0.0, "first_failure": None, "margin_min": None,
                     "pieces": 1, "rounding": float("nan")}] * 3),
    ],
)  # fmt: skip
def test_a_damaged_cache_is_ignored_with_a_warning(tmp_path: Path, content: str | bytes) -> None:
    prove_edges(valley().problem, WHOLE, tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match="ignored .*; the walk of the edges is made again"):
        found = prove_edges(valley().problem, WHOLE, tmp_path)
    assert found["share_proved"] == pytest.approx(2.975 / 3, abs=1e-6)
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="is not cached") as warned:
        found = prove_edges(valley().problem, WHOLE, tmp_path / "file" / "edges")
    assert found["share_proved"] == pytest.approx(2.975 / 3, abs=1e-6)
    assert len(warned) == 1


class OfTheBatch(Thin):
    """An image's logits depend on those beside it."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.hidden(images.flatten(1)).relu()
        logits: Tensor = self.out(x - x.mean(0))
        return logits


class Random(Thin):
    """Drops units in eval mode too."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(F.dropout(self.hidden(images.flatten(1))))
        return logits


def hooked() -> nn.Module:
    model = valley().model
    model.register_forward_hook(lambda module, inputs, logits: logits.flip(1))
    return model


def hooked_inside() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[2].register_forward_hook(lambda module, inputs, output: 0.5 * output)
    return model


def replaced() -> nn.Module:
    model = valley().model
    calls = model.forward
    model.forward = lambda images: calls(images).flip(1)  # type: ignore[method-assign]
    return model


def of_the_batch() -> nn.Module:
    model = OfTheBatch()
    model.hidden.weight.data = torch.eye(2)
    model.out.weight.data = torch.tensor([[1.0, 0], [0, 1]])
    return model


@pytest.mark.parametrize("make", [of_the_batch, Random])
def test_a_network_that_is_not_its_graph_is_not_proved(
    tmp_path: Path, make: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    problem = problem_of(make(), torch.tensor([[0.0, 0.5], [1.0, 0.25]]).view(2, 1, 1, 2))
    assert "reason" in prove_class(problem, seconds=1)
    assert "reason" in prove_edges(problem, WHOLE, tmp_path)


@pytest.mark.parametrize("make", [hooked, hooked_inside])
def test_hooks_are_part_of_what_is_proved(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    images = torch.rand(3, 1, 1, 2)
    expected = model(images)
    torch.testing.assert_close(traced_for(model, images)(images.double()).float(), expected)


def test_a_replaced_forward_is_walked_as_it_is(tmp_path: Path) -> None:
    problem = replace(valley(), model=replaced()).problem
    other = replace(problem, target_class=1)
    assert prove_edges(other, WHOLE, tmp_path).get("share_proved", 1) > 0.9
    assert prove_edges(problem, WHOLE, tmp_path).get("share_proved", 0) < 0.1


class Floors(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.div(images.flatten(1), 0.25, rounding_mode="floor")


class ThroughAView(nn.Module):
    """The ReLU writes over what is added afterwards, through another tensor."""

    def forward(self, images: Tensor) -> Tensor:
        x = images - 0.5
        y = torch.relu_(x.view(-1, 2))
        return y + x.flatten(1)


@pytest.mark.parametrize("model", [Floors()])
def test_what_is_not_linear_or_not_as_it_reads_is_refused(model: nn.Module) -> None:
    with pytest.raises(NotPiecewiseLinear):
        kinds(traced_for(model, torch.zeros(1, 1, 2)))


def test_a_write_through_a_view_is_computed_as_the_model_does() -> None:
    model, images = ThroughAView(), torch.rand(4, 1, 1, 2, dtype=torch.float64)
    expected = 2 * (images - 0.5).relu().flatten(1)
    torch.testing.assert_close(model(images.clone()), expected)
    torch.testing.assert_close(traced_for(model, images)(images), expected)


def test_a_sum_in_place_is_bounded_as_the_network_computes_it() -> None:
    class Adds(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = 2 * images.flatten(1)
            y = x
            x += 1
            return y.relu() + x

    corners = torch.rand(2, 1, 1, 2, dtype=torch.float64)
    network = traced_for(Adds(), corners)
    lower, upper = bounds_of(network, corners)
    torch.testing.assert_close(lower, network(corners))
    torch.testing.assert_close(upper, network(corners))
