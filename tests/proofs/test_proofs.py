"""Bounds over a hull are sound, tight where nothing bends, and decide what they should."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from feature_collisions.data.files import load_tensors
from feature_collisions.errors import SettingError
from feature_collisions.exact.programs import depth
from feature_collisions.graph.graph import NotPiecewiseLinear
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs import splitting
from feature_collisions.proofs.bounds.local import localise, values_of
from feature_collisions.proofs.bounds.over_pieces import Bounds, Parts
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.relaxation import rounding
from feature_collisions.proofs.bounds.steps import Step
from feature_collisions.proofs.collision import joint_norm, largest_eigenvalue, prove_collision
from feature_collisions.proofs.splitting import Judged, Pieces, Splitting
from feature_collisions.proofs.whole_hull import ClassJudge, prove_class
from feature_collisions.simplex import dirichlet
from helpers.bounds import backward, bounds_of, spread
from helpers.exact import linear_programs
from helpers.graphs import traced_for
from helpers.hulls import collided, hull_of, valley
from helpers.networks import everything


class Signs(nn.Module):
    """Steps that turn the order of bounds round: negative factors, 1-d convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(2, 3, 3), nn.Linear(9, 6), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = (0.5 - self.first(images.flatten(2)[:, :, :5]) * -2).relu()
        x = F.linear(x.view(x.size(0), -1), self.second.weight, self.second.bias).relu_()
        logits: Tensor = self.last(1 - x) - 2 * x[:, :3]
        return logits


class ClippedNet(nn.Module):
    """ReLU6, Hardtanh and clamp, in front of pools and sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.clip, self.last = nn.Hardtanh(0, 0.3, inplace=True), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.clip(self.first(2 * images))
        x = F.relu6(4 * self.second(x) + 6 * x).clamp(0, 1.5) - 0.5 * x
        logits: Tensor = self.last(F.avg_pool2d(x, 2).relu().mean((2, 3)))
        return logits


class Skips(nn.Module):
    """The residual blocks of small ResNets: every other pixel, padded channels, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm, self.pool, self.last = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        y = self.norm(self.second(self.first(images).relu()))
        y += F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        y = self.pool(y.relu())
        logits: Tensor = self.last(torch.flatten(y, 1))
        return logits


NETWORKS = {"everything": everything, "signs": Signs, "clipped": ClippedNet, "skips": Skips}
WAYS = {"forward": bounds_of, "backward": backward, "spread": spread}


def made(name: str, seed: int, size: tuple[int, int, int], scale: float) -> tuple[Any, Tensor]:
    """A random network and four corners, `scale` of their distances from the first."""
    torch.manual_seed(seed)
    model = NETWORKS[name]().eval()  # type: ignore[operator]
    corners = torch.rand(4, *size, dtype=torch.float64) * 2 - 0.5
    return traced_for(model, corners), corners[0] + scale * (corners - corners[0])


SIZES = {"everything": (2, 7, 6), "signs": (2, 3, 2), "clipped": (2, 4, 4), "skips": (2, 4, 4)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.001])
def test_bounds_hold_at_every_point_and_at_the_vertices(name: str, scale: float) -> None:
    """25,000 points for each network: of three seeds, and of hulls of three sizes."""
    for seed in range(3):
        network, corners = made(name, seed, SIZES[name], scale)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.cat([torch.eye(4).double(), dirichlet(2780, 4, generator)])
        logits = network(torch.tensordot(weights, corners, 1))
        widths = {}
        for way, bound in WAYS.items():
            lower, upper = bound(network, corners)
            assert (weights @ lower <= logits).all()
            assert (logits <= weights @ upper).all()
            widths[way] = float((upper - lower).mean())
        assert widths["backward"] <= 1.1 * widths["forward"] + 1e-11
        moved = float((logits.max(0).values - logits.min(0).values).max())
        assert widths["backward"] < 20 * moved + 1e-11


class Values(fx.Interpreter):
    """Runs a network and keeps every node's values."""

    def run_node(self, node: fx.Node) -> Any:
        self.seen = getattr(self, "seen", {})
        result = super().run_node(node)
        self.seen[node.name] = result.clone() if isinstance(result, Tensor) else result
        return result


@pytest.mark.parametrize("work", [0, 2**25])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_lies_within_its_bounds(name: str, work: int) -> None:
    network, corners = made(name, 0, SIZES[name], 0.7)
    weights = torch.cat([torch.eye(4).double(), dirichlet(2000, 4, torch.Generator())])
    steps = steps_of(network, corners[0])
    bounds = Bounds(steps, corners[None], rounding(4, corners)[None], work)
    values = Values(network, garbage_collect_values=False)
    values.run(torch.tensordot(weights, corners, 1))
    for step, here in zip(steps, bounds.at, strict=True):
        seen = values.seen[step.name].flatten(1)
        middle, radius = weights @ here.middle[0].flatten(1), weights @ here.radius[0].flatten(1)
        slack = 1e-12 * (1 + seen.abs().max())  # float64 rounds what is seen, too
        assert ((seen - middle).abs() <= radius + slack).all(), step.name
        assert (here.low[0].flatten() <= seen + slack).all(), step.name
        assert (seen <= here.high[0].flatten() + slack).all(), step.name


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_bend_the_bounds_are_the_network(name: str) -> None:
    network, corners = made(name, 0, SIZES[name], 0.0)
    for bound in WAYS.values():
        for side in bound(network, corners):
            torch.testing.assert_close(side, network(corners))


@pytest.mark.parametrize("name", ["signs", "skips"])
def test_halving_never_loosens_what_is_known(name: str) -> None:
    torch.manual_seed(1)
    model, size = NETWORKS[name]().eval(), SIZES[name]  # type: ignore[operator]
    corners = torch.rand(4, *size)
    hull = hull_of(model, corners, {"signs": "linear", "skips": "first"}[name])
    network = traced_for(model, corners)
    steps, rows = steps_of(network, corners[0].double()), torch.tensor([[1.0, -1, 0]]).double()

    class Margin:
        most, threads, seen, beyond = 64, 1, 0.0, 1.0

        def __call__(self, pieces: Pieces, local: list[Step] | None) -> Judged:
            points = torch.tensordot(pieces.weights, corners.double(), 1)
            bounds = Bounds(steps, points, rounding(4, points))
            if local:
                bounds = Bounds(local, pieces.inside, 0.0)
            found = bounds.lower(len(bounds.steps) - 1, rows).amin(2)
            weigh = {k: each[:, 0].abs() for k, each in bounds.met.items()}
            halvings = torch.arange(len(points)) % 2 + 1
            return Judged(found, torch.zeros(len(points)).bool(), bounds.parts(weigh, halvings))

        def localise(self, piece: Pieces, local: list[Step] | None) -> list[Step] | None:
            points = torch.tensordot(piece.weights[0], corners.double(), 1)
            if local:
                return localise(local, piece.inside[0])
            return localise(steps, points, rounding(4, points))

    judge, known, before = Margin(), Splitting.of(torch.eye(4), 1, -math.inf), -math.inf
    for _ in range(100):
        known.most = 2 * known.most
        known.advance(judge)
        now = float(known.everywhere)
        assert now >= before
        before = now
        assert float(known.open.volume.sum()) == 1
        for number, region in known.regions.items():
            inside = known.open.at(known.open.region == number)
            if region.steps and len(inside.volume):  # both say which points the pieces are
                points = torch.tensordot(inside.weights, corners.double(), 1).flatten(0, 1)
                values = values_of(region.steps, inside.inside.flatten(0, 1))
                torch.testing.assert_close(values, network(points), atol=1e-12, rtol=0)
    assert len(known.regions) > 2
    true = network(hull.points(dirichlet(1000, 4, torch.Generator())).double()) @ rows.T
    assert before <= float(true.min())
    assert float(true.min()) - before < 0.1 * float(true.max() - true.min())


def test_an_identity_network_has_its_exact_answer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(3, 3, bias=False), nn.ReLU())
    model[2].weight.data = torch.eye(3)
    corners = torch.tensor([[0.9, 0.5, 0], [0.75, 0, 0.5], [1, 0.25, 0]]).view(3, 1, 1, 3)
    hull = hull_of(model, corners, "2")
    found = prove_class(hull.problem, 1)
    assert found["outcome"] == "proved"
    assert found["pieces"] == 1
    assert found["margin_min"] == pytest.approx(0.25, abs=1e-6)
    odds = torch.exp(-(corners[:, 0, 0, :1] - corners[:, 0, 0, 1:]).amin(0)).sum()
    assert found["probability_min"] == pytest.approx(float(1 / (1 + odds)), abs=1e-6)
    collision = prove_collision(hull.problem, 1)
    assert collision["by"] == "affine"
    norm = float(corners[-1].norm())
    expected = float((corners - corners[-1]).flatten(1).norm(dim=1).max()) / norm
    assert collision["feature_relative_max"] == pytest.approx(expected, abs=1e-6)
    assert collision["feature_error_max"] == pytest.approx(0.5, abs=1e-6)


SQUARE = torch.tensor([[0.0, 0], [1, 0], [0, 1]]).view(3, 1, 1, 2)  # half of it


class Hole(nn.Module):
    """Class 0 but within |u| + |v| < width of one point of the square, where class 1 is."""

    def __init__(self, at: tuple[float, float], width: float) -> None:
        super().__init__()
        self.bend, self.out = nn.Linear(2, 4), nn.Linear(4, 2)
        self.bend.weight.data = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
        self.bend.bias.data = torch.tensor([-at[0], at[0], -at[1], at[1]])
        self.out.weight.data = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
        self.out.bias.data = torch.tensor([-width, 0])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(self.bend(images.flatten(1)).relu())
        return logits


@pytest.mark.parametrize("at", [(0.3137, 0.2719), (0.123, 0.777)])
def test_a_hole_of_a_millionth_is_never_proved_and_is_refuted(
    at: tuple[float, float], tmp_path: Path
) -> None:
    model = Hole(at, 5e-4)  # an area of 2 width^2, of 1/2
    hull = hull_of(model, SQUARE, "bend")
    for seconds in (0.02, 0.02, 0.05, 0.1, 3):
        found = prove_class(hull.problem, seconds, tmp_path)
        assert found["share_proved"] <= 1 - 1e-6
        (kept,) = tmp_path.iterdir()
        pieces = load_tensors(kept)["weights"]
        centre = torch.tensor([1 - sum(at), *at], dtype=torch.float64)
        inside = torch.linalg.solve(pieces.mT, centre.expand(len(pieces), 3)) >= -1e-6
        assert inside.all(1).any()  # the hole's middle is in a piece that is not proved
    assert found["outcome"] == "refuted"
    assert found["share_proved"] > 0.999
    weights = torch.tensor(found["counter_example"]["weights"])
    assert found["counter_example"]["class"] == 1
    assert int(model(hull.points(weights[None])).argmax()) == 1


def test_a_suspect_refutes_at_once() -> None:
    hull = hull_of(
        Hole((0.25, 0.25), 1e-3), torch.tensor([[0.0, 0], [1, 0], [0, 1]]).view(3, 1, 1, 2), "bend"
    )
    found = prove_class(hull.problem, 0, suspects=[[0.5, 0.25, 0.25]])
    assert found["outcome"] == "refuted"
    example = found.counter_example
    assert example.entries() == {"weights": [0.5, 0.25, 0.25], "class": 1}
    assert found["share_proved"] == 0


def test_what_is_known_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    hull = hull_of(
        Hole((0.3137, 0.2719), 5e-4),
        torch.tensor([[0.0, 0], [1, 0], [0, 1]]).view(3, 1, 1, 2),
        "bend",
    )
    first = prove_class(hull.problem, 0.05, tmp_path)
    second = prove_class(hull.problem, 0.05, tmp_path)
    assert second["pieces"] > first["pieces"] > 0
    assert second["share_proved"] >= first["share_proved"]
    assert second["seconds"] > first["seconds"]
    other = replace(hull.problem, target_class=1 - hull.problem.target_class)
    assert prove_class(other, 0, tmp_path)["pieces"] == 0
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-8])
    with pytest.warns(UserWarning, match="ignored .*; the proof over pieces is made again"):
        assert prove_class(hull.problem, 0.05, tmp_path)["pieces"] > 0


def test_the_worst_that_was_seen_is_kept(tmp_path: Path) -> None:
    hull = collided()
    first = prove_collision(hull.problem, 1, tmp_path)
    second = prove_collision(hull.problem, 1e-9, tmp_path)
    assert second["feature_relative_seen"] >= first["feature_relative_seen"] > 0
    assert second["feature_relative_max"] <= first["feature_relative_max"]


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_threads_find_what_one_does(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    hull = hull_of(Hole((0.3137, 0.2719), 5e-4), SQUARE, "bend")
    found = []
    for count in (1, 3):
        monkeypatch.setattr("feature_collisions.proofs.judge.threads_of_cpu", lambda n=count: n)
        judge = ClassJudge(hull.problem)
        judge.prepare()
        known = Splitting.of(torch.eye(len(hull.corners)), 2)
        known.most = pieces
        for _ in range(10):
            known.advance(judge)
        found.append((known.open, known.settled, known.share, known.count))
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-12)
    assert judge.threads == 3


def test_what_is_too_large_for_a_local_network_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for few bends pieces are cut, unjudged, until these are few."""
    monkeypatch.setattr("feature_collisions.proofs.judge._LITTLE", 0)
    torch.manual_seed(2)
    model, corners = Skips().eval(), torch.rand(4, *SIZES["skips"]) * 2 - 0.5
    hull, found, cut = hull_of(model, corners, "first"), list[dict[str, Any]](), list[Tensor]()
    true = ClassJudge.halve

    def halve(judge: ClassJudge, pieces: Pieces, times: int) -> Parts:
        cut.append(pieces.volume)
        return true(judge, pieces, times)

    monkeypatch.setattr(ClassJudge, "halve", halve)
    for bends in (3000, 6):
        monkeypatch.setattr("feature_collisions.proofs.bounds.local._BENDS", bends)
        assert not cut
        found.append(prove_class(hull.problem, 20))
    assert [each["outcome"] for each in found] == ["proved", "proved"]
    assert found[1]["pieces"] > found[0]["pieces"] > 1
    assert cut
    assert max(cut) < 1  # the whole hull was judged


def test_what_would_not_end_in_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    class Slow:
        most, threads, seen, beyond, until, judged = 64, 1, 0.0, 1.0, 0.0, [0]

        def __call__(self, pieces: Pieces, local: list[Step] | None) -> Judged:
            count = len(pieces.volume)
            clock.now += 0.02 * count
            self.judged.append(count)
            every = torch.arange(count).repeat_interleave(2)
            halves = 0.5 * torch.eye(2).double().expand(2 * count, -1, -1)
            return Judged(-torch.ones(count, 1).double(), torch.zeros(count).bool(),
                          Parts(every, halves))  # fmt: skip

        def localise(self, piece: Pieces, local: list[Step] | None) -> None:
            return None

    clock = Clock()
    monkeypatch.setattr(splitting, "time", clock)
    judge = Slow()
    Splitting.of(torch.eye(2), 1).run(judge, 1.0, None, "Pieces")
    assert max(judge.judged) > 8
    assert 0.9 < clock.now < 1.03


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "a"])
def test_a_time_that_is_none_is_refused(seconds: Any) -> None:
    hull = valley()
    with pytest.raises(SettingError, match="seconds="):
        hull.prove(seconds=seconds)


def test_no_time_claims_nothing() -> None:
    found = valley().prove(seconds=0)
    assert found["class"]["outcome"] == "undecided"
    assert found["class"]["share_proved"] == 0
    assert found["class"]["margin_min"] is None


def test_corners_of_two_classes_are_refuted_at_once() -> None:
    hull = valley()
    fourth = torch.tensor([0.305, 0]).view(1, 1, 1, 2)
    hull = replace(hull, corners=torch.cat([hull.corners, fourth]))
    found = prove_class(hull.problem, 1)
    assert found["outcome"] == "refuted"
    assert found["reason"] == "its corners are of two classes"
    assert found["counter_example"]["weights"] == [0, 0, 0, 1]


def test_a_network_that_is_not_known_is_named() -> None:
    class Smooth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.act, self.last = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)

        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten(1).sin()
            logits: Tensor = self.last(self.act(self.hidden(x)))
            return logits

    torch.manual_seed(0)
    found = hull_of(Smooth(), torch.rand(2, 1, 1, 2), "hidden").prove(seconds=1)
    assert found["class"]["outcome"] in ("undecided", "refuted")
    assert "sin" in found["class"]["reason"] or "two classes" in found["class"]["reason"]
    assert "sin" in found["collision"]["reason"]


def test_images_that_are_mixed_are_refused() -> None:
    class Mixes(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1).relu() + images.size(0)

    image = torch.rand(1, 1, 2, dtype=torch.float64)
    with pytest.raises(NotPiecewiseLinear, match="number of images"):
        steps_of(traced_for(Mixes(), image), image)


@pytest.mark.parametrize("seed", range(5))
def test_the_joint_bound_holds_at_every_sign(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(20, 9, generator=generator, dtype=torch.float64)
    radii = torch.rand(2, 9, generator=generator, dtype=torch.float64) ** 3
    signs = torch.tensor(list(itertools.product([-1.0, 1], repeat=9)), dtype=torch.float64)
    most = ((signs[:, None] * radii) @ columns.T).norm(dim=2).amax(0)
    found = joint_norm(columns[None], radii[None])[0]
    assert (most <= found).all()
    assert (found < (columns.abs() @ radii.T).norm(dim=0)).all()  # than unit by unit
    one = torch.zeros(2, 9, dtype=torch.float64)
    one[:, 3] = torch.tensor([1e-9, 2.0])
    exact = one[:, 3] * columns[:, 3].norm()
    found = joint_norm(columns[None], one[None])[0]
    assert (exact <= found).all()
    assert (found <= 1.01 * exact).all()
    assert (joint_norm(columns[None], 0 * one[None]) < 1e-30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_eigenvalue_is_bounded_from_above(dtype: torch.dtype) -> None:
    for size in (1, 3, 40, 100):
        for rank in (1, 2, 2 * size):
            generator = torch.Generator().manual_seed(size)
            factors = torch.randn(4, size, rank, generator=generator).to(dtype)
            matrices = factors @ factors.mT
            matrices /= matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
            exact = torch.linalg.eigvalsh(matrices.double())[:, -1]
            found = largest_eigenvalue(matrices).double()
            assert (exact <= found).all()
            assert (found <= 1.15 * exact + 0.01).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_collision_is_bounded_from_above_and_ever_closer(seed: int) -> None:
    hull = collided(seed)
    weights = dirichlet(20_000, 4, torch.Generator().manual_seed(seed))
    hull.model.requires_grad_(False)
    off = hull.model[:4](hull.points(weights)).relu()  # type: ignore[index]
    off = off - hull.model[:4](hull.target[None]).relu()  # type: ignore[index]
    norm = float(hull.features.features.norm())
    most = float(off.norm(dim=1).max()) / norm
    bounds = [prove_collision(hull.problem, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting.Splitting, "_left", lambda known, _: not known.count)
        bounds.insert(0, prove_collision(hull.problem, 1))
    for found in bounds:
        assert found["by"] == "bounds"
        assert found["feature_relative_max"] >= most * (1 - 1e-6)
        assert found["feature_error_max"] >= float(off.abs().max()) * (1 - 1e-6)
    assert bounds[0]["pieces"] == 1
    assert bounds[1]["feature_relative_max"] <= bounds[0]["feature_relative_max"]
    assert bounds[1]["feature_relative_max"] <= 1.3 * most


def test_a_hull_with_a_hole_is_not_proved_and_the_rest_of_it_is() -> None:
    hull = valley()  # class 1 where pixel 0 lies between 0.3 and 0.3125
    found = prove_class(hull.problem, seconds=1)
    assert found["outcome"] == "refuted"
    assert 0.9 < found["share_proved"] < 0.9871
    corners = hull.corners * 0.25 + torch.tensor([0.5, 0]).view(1, 1, 1, 2)
    hull = replace(hull, corners=corners)
    assert prove_class(hull.problem)["outcome"] == "proved"


def affine_hull(objective: str = "unit") -> Hull:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    initial, target = torch.rand(2, 1, 6, 6)
    return linear_programs(model, "1", initial, target, range(3), objective).run()


def test_a_hull_of_exact_corners_collides_and_has_one_class_all_over() -> None:
    hull = affine_hull()
    collision, of_class = prove_collision(hull.problem), prove_class(hull.problem)
    assert collision["positive_relative_max"] < 1e-5
    assert collision["inactive_max"] < 1e-5
    assert collision["feature_error_max"] < 1e-5
    assert of_class["share_proved"] == 1
    logits = hull.model(hull.target[None])[0].tolist()
    best, second = sorted(logits)[-1], sorted(logits)[-2]
    assert of_class["margin_min"] == pytest.approx(best - second, abs=1e-3)


def test_the_largest_violation_is_the_slow_one_over_many_points_of_the_hull() -> None:
    hull = affine_hull()
    corners = (hull.corners + 0.05 * torch.randn(hull.corners.shape)).clamp(0, 1)
    hull = replace(hull, corners=corners)
    found = prove_collision(hull.problem)
    layer = hull.model[1]  # type: ignore[index]
    target = layer(hull.target.flatten()).tolist()
    most = 0.0
    for weights in torch.cat([torch.eye(3), dirichlet(200, 3, torch.Generator()).float()]):
        f0 = layer(torch.tensordot(weights, hull.corners, 1).flatten()).tolist()
        most = max(most, *(abs(max(a, 0) - max(b, 0)) for a, b in zip(f0, target, strict=True)))
    assert found["feature_error_max"] == pytest.approx(most, rel=1e-4)
    assert found["inactive_max"] > 0


def test_a_deeper_layer_is_not_stated_as_proved() -> None:
    deeper = replace(affine_hull(), layer="3")
    assert prove_collision(deeper.problem)["by"] == "bounds"
    assert depth(deeper) is None


def test_depth_is_one_at_eq2s_corners_and_less_elsewhere() -> None:
    hull = affine_hull("eq2")
    hull.summary["solver"] = "gradient"
    found = depth(hull)
    assert found["share"] == pytest.approx([1, 1, 1], abs=1e-3)
    hull.corners[1] = (hull.corners[1] + hull.target) / 2
    layer, unit = hull.model[1], int(hull.units[1])  # type: ignore[index]
    target = layer(hull.target.flatten()).tolist()
    f0 = layer(hull.corners[1].flatten()).tolist()
    held = sum(abs(f0[j]) for j in range(12) if target[j] < 0 and j != unit)
    share = (f0[unit] + held) / found["optimum"][1]
    assert share < 0.9
    assert depth(hull)["share"] == pytest.approx([1, share, 1], abs=1e-3)


def test_depth_is_of_the_units_that_the_hull_holds() -> None:
    hull = affine_hull("eq2")
    hull.summary["solver"] = "gradient"
    order = [2, 0, 1]  # the same corners, counted otherwise
    hull = replace(hull, corners=hull.corners[order], units=hull.units[order])
    assert depth(hull)["share"] == pytest.approx([1, 1, 1], abs=1e-3)
