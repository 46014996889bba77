"""Bounds through products of values that move, softmax and layer norm, and proofs with them."""

import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions.graph.graph import trace
from feature_collisions.graph.operations import NotPiecewiseLinear
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs.bounds.backward import Enclosure
from feature_collisions.proofs.bounds.over_pieces import _widen
from feature_collisions.proofs.bounds.planes import of_product, of_softmax
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.relaxation import Values
from feature_collisions.proofs.bounds.steps import Product, Softmax
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.edges import prove_edges
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.evaluate import EdgeSettings
from feature_collisions.simplex import dirichlet
from helpers.bounds import backward, bounds_of, spread
from helpers.graphs import traced_for
from helpers.hulls import hull_of as hull_behind


def hull_of(model: nn.Module, corners: Tensor) -> Hull:
    """Of corners whose class alone matters."""
    return hull_behind(model, corners, "last", push="apart")


def some_values(shape: tuple[int, ...], corners: int, seed: int) -> Values:
    """Over eight pieces of all sizes: points, thin ones, wide ones, far ones."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([0.0, 0.0, 1e-6, 0.1, 1.0, 3.0, 3.0, 1.0]).double().view(-1, 1, 1)
    widths = torch.tensor([0.0, 0.1, 0.0, 1e-6, 0.3, 1.0, 0.0, 0.1]).double().view(-1, 1, 1)
    centres = torch.tensor([1.0, 1, 1, 1, 1, 1, 100, 800]).double().view(-1, 1, 1)

    def draw(count: int) -> Tensor:
        numbers = torch.randn(8, count, math.prod(shape), generator=generator)
        return numbers.double()

    middle = centres * draw(1) + sizes * draw(corners)
    radius = widths * draw(corners).abs()
    low, high = (middle - radius).amin(1), (middle + radius).amax(1)
    given = middle.unflatten(2, shape), radius.unflatten(2, shape)
    return Values(*given, *(each.unflatten(1, shape) for each in (low, high)))


def points_of(values: Values, seed: int) -> tuple[Tensor, Tensor]:
    """Weights (200, K) and values (8, 200, ...) at points: in the middle, at ends, between."""
    generator = torch.Generator().manual_seed(seed)
    corners = values.middle.shape[1]
    weights = torch.rand(200, corners, generator=generator, dtype=torch.float64) ** 3
    weights = weights / weights.sum(1, keepdim=True)
    at = torch.rand(8, 200, *values.low.shape[1:], generator=generator, dtype=torch.float64) * 2 - 1
    at[:, :80] = at[:, :80].sign()
    at[:, 80:120] = 0
    middle, radius = (
        torch.einsum("sk,pk...->ps...", weights, each) for each in (values.middle, values.radius)
    )
    return weights, middle + at * radius


def holds(weights: Tensor, middle: Tensor, radius: Tensor, values: Tensor) -> bool:
    off = values - torch.einsum("sk,pk...->ps...", weights, middle)
    size = 1e-13 * (1 + values.abs())  # what this check rounds
    return bool((off.abs() <= torch.einsum("sk,pk...->ps...", weights, radius) + size).all())


@pytest.mark.parametrize("corners", [1, 2, 5])
@pytest.mark.parametrize("matrices", [True, False])
def test_a_product_and_its_plane_hold(matrices: bool, corners: int) -> None:
    shapes = [
        torch.Size(each) for each in ([(2, 3, 4), (2, 4, 5)] if matrices else [(3, 4), (3, 1)])
    ]
    step = Product(
        "product", (0, 1), torch.Size((2, 3, 5) if matrices else (3, 4)), shapes, matrices
    )
    x, y = (some_values(shape, corners, seed) for seed, shape in enumerate(shapes))
    (weights, at), (_, other) = points_of(x, 2), points_of(y, 2)
    plane, found = of_product(step, x, y)
    values = step.value(at, other)
    assert holds(weights, found.middle, found.radius, values)
    assert (values >= found.low[:, None] - 1e-9).all()
    assert (values <= found.high[:, None] + 1e-9).all()
    left, right = (each[:, None] for each in plane.at)
    assert holds(weights, plane.middle, plane.radius,
                 values - step.value(left, other) - step.value(at, right))  # fmt: skip
    assert plane.radius[0].abs().max() < 1e-11


@pytest.mark.parametrize("corners", [1, 2, 5])
@pytest.mark.parametrize("axis", [-1, -2])
def test_a_softmax_and_its_plane_hold(axis: int, corners: int) -> None:
    step = Softmax("softmax", (0,), torch.Size((3, 6)), axis)
    x = some_values((3, 6), corners, 3)
    weights, at = points_of(x, 4)
    plane, found = of_softmax(step, x)
    values = step.value(at)
    assert holds(weights, found.middle, found.radius, values)
    assert (values >= found.low[:, None] - 1e-12).all()
    assert (values <= found.high[:, None] + 1e-12).all()
    shares, kept = (each[:, None] for each in plane.at)
    line = kept * shares * (at - (shares * at).sum(axis, keepdim=True))
    assert holds(weights, plane.middle, plane.radius, values - line)
    assert (found.low >= 0).all()
    assert (found.high <= 1).all()
    assert plane.radius[0].abs().max() < 1e-11
    rows = torch.randn(8, 7, 3, 6, dtype=torch.float64)
    (back,) = step.back(plane.at, rows)
    torch.testing.assert_close(
        torch.einsum("pr...,ps...->prs", back, at), torch.einsum("pr...,ps...->prs", rows, line)
    )


class Attention(nn.Module):
    """Two heads over four tokens behind a layer norm, as timm, PyTorch or a paper write them."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.patches, self.norm = form, nn.Conv2d(1, 9, 3, 3), nn.LayerNorm(9)
        self.qkv, self.out, self.last = nn.Linear(9, 24), nn.Linear(8, 9), nn.Linear(9, 3)
        self.cls = nn.Parameter(torch.randn(1, 1, 9))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1)
        y = self.qkv(self.norm(x)).reshape(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k, v = y.unbind(0)
        if self.form == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        elif self.form == "masked":  # by what lets everything through, as Hugging Face does
            mask = (torch.arange(5) >= 0).view(1, 1, 5, 1).expand(x.shape[0], 1, 5, 5)
            mixed = F.scaled_dot_product_attention(q, k, v, mask, 0.0)
        elif self.form == "named":
            scores = torch.softmax(q @ k.transpose(-2, -1) / 2, -1, dtype=torch.float32)
            mixed = scores.to(q.dtype) @ v
        elif self.form == "written":
            scores = (q @ k.transpose(-2, -1) / 2).exp()
            mixed = scores / (scores.sum(-1, keepdim=True) + 1) @ v
        else:
            mixed = torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape[0], 5, 8))
        logits: Tensor = self.last(self.norm(x).mean(1))
        return logits


class Gated(nn.Module):
    """A squeeze-and-excite gate, a root mean square norm, a quotient, channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = x * (x.pow(2).mean(1, keepdim=True) + 0.1).rsqrt()
        x = (x / (1 + x.square())).mean((2, 3))
        logits: Tensor = self.last(x / (x.square().sum(1, keepdim=True) + 0.1).sqrt())
        return logits


MAKE = {form: lambda form=form: Attention(form) for form in ("masked", "written", "plain")}


@pytest.mark.parametrize("make", [*MAKE.values(), Gated], ids=[*MAKE, "gated"])
def test_bounds_of_a_network_hold_and_tighten(make: type[nn.Module]) -> None:
    torch.manual_seed(1)
    model = make().double()
    corners = torch.rand(1, 6, 6, dtype=torch.float64) + (torch.rand(4, 1, 6, 6) - 0.5) / 4
    network = traced_for(model, corners)
    torch.testing.assert_close(network(corners), model(corners))
    widths = []
    for scale in (1.0, 0.1, 0.01, 0.0):
        points = corners.mean(0) + scale * (corners - corners.mean(0))
        weights = torch.rand(200, 4, dtype=torch.float64) ** 3
        weights = torch.cat([torch.eye(4).double(), weights / weights.sum(1, keepdim=True)])
        values = network(torch.tensordot(weights, points, 1))
        for way in (bounds_of, spread, backward):
            low, high = way(network, points)
            assert (weights @ low <= values).all()
            assert (values <= weights @ high).all()
        widths.append(float((high - low).mean()))
    assert widths[2] < 0.03 * widths[1]  # of second order: a hundredth
    assert 0 < widths[3] < 1e-9


class Bump(nn.Module):
    """The margin of class 0 is `least` - p (1 - p), p a share that goes from 0.02 to 0.98."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.last, self.least = nn.Linear(1, 2), least
        self.last.weight.data, self.last.bias.data = torch.tensor([[4.0], [-4.0]]), torch.zeros(2)

    def forward(self, images: Tensor) -> Tensor:
        shares = self.last(images.flatten(1) - 0.5).softmax(1)
        bump = shares[:, :1] * shares[:, 1:]
        return torch.cat([0 * bump, bump - self.least], 1)


def test_a_hole_in_the_middle_is_not_proved_away(tmp_path: Path) -> None:
    corners = torch.tensor([0.0, 1.0, 0.25]).view(3, 1, 1, 1)
    hull = hull_of(Bump(0.2), corners[[0, 1]])
    found = prove_class(hull.problem, 0.3)
    half = math.atanh(math.sqrt(0.2)) / 4  # the bump is above 0.2 within it
    assert found["outcome"] == "refuted"
    assert 0.9 * (1 - 2 * half) < found["share_proved"] <= 1 - 2 * half
    assert found["scale_proved"] == 0
    shallow = prove_class(hull_of(Bump(0.2501), corners).problem, 1)
    assert shallow["outcome"] == "proved"
    assert 0 < shallow["margin_min"] <= 1.01e-4
    edges = prove_edges(hull.problem, EdgeSettings(seconds=0.3), tmp_path)
    assert 0.9 * (1 - 2 * half) < edges["share_proved"] <= 1 - 2 * half
    assert edges["share_held"] == edges["share_proved"]
    again = prove_edges(hull.problem, EdgeSettings(seconds=0.3), tmp_path)
    assert again["edges"][0]["pieces"] > edges["edges"][0]["pieces"]


@pytest.mark.parametrize("form", ["fused", "written"])
def test_an_attention_network_is_proved_or_refuted(form: str) -> None:
    torch.manual_seed(0)
    model, corners = Attention(form), torch.rand(1, 1, 6, 6) + 0.1 * torch.rand(4, 1, 6, 6)
    hull = hull_of(model, corners)
    with torch.no_grad():
        logits = model(hull.points(dirichlet(500, 4, torch.Generator().manual_seed(0))))
        others = torch.arange(3) != hull.target_class
        margins = (logits[:, hull.target_class, None] - logits[:, others]).amin(1)
        model.last.bias[hull.target_class] += 0.1 - margins.min()
    found = prove_class(hull_of(model, corners).problem, 1)
    assert found["outcome"] == "proved"
    assert found["margin_min"] <= 0.1
    with torch.no_grad():
        model.last.bias[hull.target_class] -= 0.1 + (margins - margins.min()).quantile(0.2)
    found = prove_class(hull.problem, 0.3)
    assert found["outcome"] != "proved"
    assert found["share_proved"] <= 0.85


class Differences(nn.Module):
    """(a x)(b x) - (c x)(d x) of large numbers: it is 0 where x reads the same backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(20, 4, bias=False)
        weight = 1e6 * (1 + torch.rand(2, 20))
        self.last.weight.data = torch.stack([weight, weight.flip(1)], 1).flatten(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.last(images.flatten(1))
        y = x[:, :2] * x[:, 2:]
        return torch.cat([y[:, :1] - y[:, 1:], 0 * y[:, :1] + 1e-4], 1)


def test_products_hold_in_exact_arithmetic() -> None:
    torch.manual_seed(0)
    model = Differences()
    half = torch.rand(2, 1, 1, 10).double()
    corners = torch.cat([half, half.flip(3)], 3)
    rows = [[Fraction(weight) for weight in row] for row in model.last.weight.tolist()]
    pixels = [[Fraction(pixel) for pixel in image.flatten().tolist()] for image in corners]
    for way in (bounds_of, backward, spread):
        lower, upper = way(traced_for(model, corners), corners)
        for low, high, image in zip(lower, upper, pixels, strict=True):
            a, c, b, d = (sum(w * p for w, p in zip(row, image, strict=True)) for row in rows)
            assert Fraction(float(low[0])) <= a * b - c * d <= Fraction(float(high[0]))


def test_a_dtype_that_changes_nothing_is_not_kept_in_another_precision() -> None:
    torch.manual_seed(0)
    model, plain = Attention("named"), Attention("fused").double()
    plain.load_state_dict(model.state_dict())
    images = torch.rand(3, 1, 6, 6)
    network = traced_for(model, images)
    torch.testing.assert_close(network(images.double()), plain(images.double()), rtol=1e-12, atol=0)


def test_bounds_that_overflow_settle_nothing() -> None:
    """Scores of thousands, whose exponentials no number holds, and values that nothing bounds."""
    torch.manual_seed(0)
    model, corners = Attention("plain"), torch.rand(4, 1, 6, 6)
    model.qkv.weight.data *= 300
    problem = hull_of(model, corners).problem
    low, high = bounds_of(traced_for(model, corners.double()), corners.double())
    assert not low.isnan().any()
    assert not high.isnan().any()
    with torch.no_grad():
        features = model(problem.corners)
        norm = model(problem.target[None]).norm()
        seen = float((features - model(problem.target[None])).norm(dim=1).max() / norm)
    found = prove_collision(problem, 0.3)
    assert found.get("feature_relative_max", torch.inf) >= seen * (1 - 1e-5)
    unknown = Enclosure(*(torch.full((1, 2, 3), torch.nan),) * 2, *(torch.zeros(1, 3),) * 3)
    _widen(unknown)
    assert unknown.radius.isinf().all()
    assert unknown.middle.isfinite().all()


class Unbounded(nn.Module):
    """The reciprocal of what may be 0."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        return x / x.sum(1, keepdim=True)


def test_a_quotient_whose_denominator_may_be_0_is_refused() -> None:
    images = torch.rand(1, 2, 2)
    with pytest.raises(NotPiecewiseLinear, match="reciprocal"):
        steps_of(traced_for(Unbounded(), images[None]), images.double())
    assert trace(Unbounded(), images.shape).any_batch
