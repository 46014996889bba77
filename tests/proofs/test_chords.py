"""How far networks stray from their chords: against dense sampling, whole maps and Jacobians."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions.graph.graph import trace
from feature_collisions.graph.operations import NotPiecewiseLinear
from feature_collisions.proofs.between import chords
from feature_collisions.proofs.between import norms as norms_module
from feature_collisions.proofs.between.chords import Chords
from feature_collisions.proofs.between.norms import Ball, Norms, behind_pool
from feature_collisions.proofs.between.windows import Windows, united
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.steps import Affine, Grid, MaxPool, Step
from feature_collisions.proofs.piecewise import TooManyPieces, traced
from helpers.graphs import traced_for
from helpers.networks import everything


class Residual(nn.Module):
    """Strides, groups, dilation, clipped ReLUs, a shortcut of one cell, differences, pools."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.apart = nn.Conv2d(8, 8, (3, 1), stride=2, padding=(2, 0), dilation=(2, 1), groups=4)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.nothing, self.clip = nn.Identity(), nn.ReLU6()
        self.pool = nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2))
        self.last = nn.Linear(8 * 3 * 5, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.clip(3 * self.first(images) + 1)
        y = F.conv2d(x, self.apart.weight, self.apart.bias, 2, (2, 0), (2, 1), 4)
        x = F.relu(self.nothing(self.norm(self.shortcut(x))) + y)
        x = self.clip(5 * (x - self.norm(x)) + x)
        logits: Tensor = self.last(self.pool(x).flatten(1))
        return logits


class Flat(nn.Module):
    """Linear layers alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * 23 * 27, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU6(),
            nn.Linear(20, 3),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def made(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "everything":
        return everything(seed)
    return (Residual() if name == "residual" else Flat()).eval()


@pytest.mark.parametrize("cover", [0.0, 0.5, 9.0], ids=["norms", "both", "windows"])
@pytest.mark.parametrize("name", ["everything", "residual", "flat"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_between_points_a_network_strays_no_further_than_its_bound(
    name: str, seed: int, cover: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chords, "_COVER", cover)
    start, end = torch.rand(2, 2, 23, 27, dtype=torch.float64)
    network = traced_for(made(name, seed), start)
    bounds = Chords(steps_of(network, start), 2**28)
    dense = torch.arange(2000, dtype=torch.float64) / 2000
    with torch.no_grad():
        logits = network(torch.lerp(start, end, dense.view(-1, 1, 1, 1)))
    largest = []
    for count in (1, 4, 50):
        places = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        at, strays, bends = bounds.bound(torch.lerp(start, end, places.view(-1, 1, 1, 1)))
        interval = (dense * count).floor().long()
        share = dense * count - interval
        chord = torch.lerp(at[interval], at[interval + 1], share[:, None])
        away = (logits - chord).abs()
        assert (away <= strays[interval] + 1e-12).all()
        assert away.max() > 1e-5
        assert bends.sum() > 5
        largest.append(float(strays.max()))
    assert largest[2] < largest[1] < largest[0]
    assert largest[2] < largest[0] / 15


def narrow(seed: int) -> nn.Module:
    """So few units that bounds leave little room."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Hardtanh(0, 0.5), nn.Conv2d(2, 2, 1), nn.MaxPool2d(2, 1),
        nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1), nn.Hardtanh(0, 0.5), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


@pytest.mark.parametrize(("cover", "near"), [(0.0, 0.1), (9.0, 0.5)], ids=["norms", "windows"])
def test_narrow_networks_come_near_their_bounds(
    cover: float, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chords, "_COVER", cover)
    dense = torch.linspace(0, 1, 400, dtype=torch.float64)
    reached = []
    model = narrow(0)
    graph = trace(model, (1, 3, 2))  # one for all: they differ in their weights alone
    for seed in range(150):
        model.load_state_dict(narrow(seed).state_dict())
        network = traced(graph)
        start, end = 2 * torch.rand(2, 1, 3, 2, dtype=torch.float64) - 0.5
        at, (strays,), _ = Chords(steps_of(network, start), 2**20).bound(torch.stack([start, end]))
        with torch.no_grad():
            logits = network(torch.lerp(start, end, dense.view(-1, 1, 1, 1)))
        away = (logits - torch.lerp(at[0], at[1], dense[:, None])).abs().amax(0)
        assert (away <= strays + 1e-12).all(), seed
        reached += (away / strays)[strays > 1e-9].tolist()
    assert len(reached) > 40
    assert max(reached) > near


def test_a_clipped_relu_alone_strays_as_far_as_its_bends() -> None:
    """From -6 to 12 the chord of min(max(z, 0), 6) is 2 above it at 0 and 2 below at 6.

    From 12 to 3 it is 2 below at 6; from 12 to 18 both are 6.
    """
    model = nn.Sequential(nn.ReLU6(), nn.Flatten())
    images = torch.tensor([-6.0, 12, 3, 12, 18], dtype=torch.float64).view(5, 1, 1, 1)
    at, strays, bends = Chords(steps_of(traced_for(model, images), images[0]), 2**20).bound(images)
    assert at.flatten().tolist() == [0, 6, 3, 6, 6]
    assert strays.flatten().tolist() == pytest.approx([2, 2, 2, 0], rel=2e-3)
    assert bends.tolist() == [1, 1, 1, 0]


def test_a_max_pool_alone_strays_as_far_as_its_two_lines_cross() -> None:
    """1 - 3a and 2a - 1 cross at 0.4 in -0.2, where the chord is 1."""
    model = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten())
    images = torch.tensor([[1.0, -1], [-2, 1]], dtype=torch.float64).view(2, 1, 1, 2)
    at, strays, bends = Chords(steps_of(traced_for(model, images), images[0]), 2**20).bound(images)
    assert at.flatten().tolist() == [1, 1]
    assert strays.item() == pytest.approx(1.2, rel=2e-3)
    assert bends.tolist() == [1]


def test_a_cell_that_strays_may_become_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """max(-relu(2a - 1), -0.9a) is 0.45 above its chord at 1/2, though the second wins at 1."""
    monkeypatch.setattr(chords, "_COVER", 9.0)
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.MaxPool2d((1, 2)), nn.Flatten())
    model[1].weight.data.fill_(-1)
    model[1].bias.data.zero_()
    images = torch.tensor([[-1, 0], [1, 0.9]], dtype=torch.float64).view(2, 1, 1, 2)
    at, strays, bends = Chords(steps_of(traced_for(model, images), images[0]), 2**20).bound(images)
    assert at.flatten().tolist() == [0, -0.9]
    assert strays.item() == pytest.approx(0.5, rel=3e-3)  # 0.45, and 0.05 that it cannot know of
    assert bends.tolist() == [2]


def test_windows_that_do_not_fit_say_so() -> None:
    images = torch.rand(3, 2, 23, 27, dtype=torch.float64)
    with pytest.raises(TooManyPieces):
        Chords(steps_of(traced_for(everything(), images), images[0]), 10_000).bound(images)


def test_a_layer_without_a_known_norm_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding="same"), nn.Flatten())
    image = torch.rand(2, 5, 5, dtype=torch.float64)
    steps = steps_of(traced_for(model, image), image)
    with pytest.raises(NotPiecewiseLinear, match="norm"):
        Chords(steps, 2**20)


# Windows, against whole maps.


def windows(shape: tuple[int, int, int], seed: int, size: int = 3, names: range = range(7)):
    """Random windows, some over the border, on maps of a shape; 0 outside."""
    generator = torch.Generator().manual_seed(seed)
    row, column = (
        torch.randint(-size + 1, n, (len(names),), generator=generator) for n in shape[1:]
    )
    interval = torch.randint(2, (len(names),), generator=generator)
    patches = torch.randn(len(names), size, size + 1, shape[0], generator=generator)
    found = Windows(2, torch.Size(shape), interval, torch.tensor(names), row, column, patches)
    found.patches[found.places() == 2 * shape[1] * shape[2]] = 0
    return found


def whole(given: Windows) -> Tensor:
    """(K, C, H, W) one by one; what lies outside of the map must be 0."""
    channels, height, width = given.shape
    maps = torch.zeros(len(given.name), channels, height, width)
    for k, (row, column) in enumerate(zip(given.row.tolist(), given.column.tolist(), strict=True)):
        for y, x in itertools.product(*map(range, given.size)):
            if 0 <= row + y < height and 0 <= column + x < width:
                maps[k, :, row + y, column + x] += given.patches[k, y, x]
            else:
                assert not given.patches[k, y, x].any()
    return maps


GRIDS = [Grid.of(3, 1, 1, 1), Grid.of(1, 1, 0, 1), Grid.of(3, 2, 1, 1), Grid.of(1, 2, 0, 1),
         Grid.of((1, 3), (3, 2), (0, 2), 2), Grid.of(2, 3, 0, 1), Grid.of(5, 2, 2, 1)]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_windows_behind_a_convolution_are_those_of_whole_maps(grid: Grid, groups: int) -> None:
    given = windows((4, 11, 9), seed=groups)
    weight = torch.randn(6, 4 // groups, *grid.kernel)
    maps = F.conv2d(whole(given), weight, None, grid.stride, grid.padding, grid.dilation, groups)
    found = given.convolved(weight, grid, groups, maps.shape[1:])
    torch.testing.assert_close(whole(found), maps, rtol=1e-5, atol=1e-5)
    assert maps.abs().max() > 1


@pytest.mark.parametrize("grid", GRIDS[2:])
def test_windows_behind_a_max_pool_are_those_of_whole_maps(grid: Grid) -> None:
    if any(2 * p > k for p, k in zip(grid.padding, grid.kernel, strict=True)):
        grid = grid._replace(padding=(0, 0))
    given = windows((4, 11, 9), seed=3)
    _, winner = F.max_pool2d(torch.randn(2, 4, 11, 9), *grid, return_indices=True)
    winner = torch.where(torch.rand(winner.shape) < 0.2, -1, winner)
    found = given.pooled(winner, grid, winner.shape[1:])
    of_each = winner[given.interval].flatten(2)
    maps = whole(given).flatten(2).gather(2, of_each.clamp_min(0)) * (of_each >= 0)
    torch.testing.assert_close(whole(found).flatten(2), maps)
    assert maps.any()


def test_windows_of_branches_are_summed_and_joined_by_their_names() -> None:
    first = windows((4, 11, 9), seed=4)
    second = windows((4, 11, 9), seed=5, size=2, names=range(3, 10))
    second.interval[:4] = first.interval[3:]
    second.row[:4], second.column[:4] = first.row[3:] - 1, first.column[3:] + 1
    second.patches[second.places() == 2 * 11 * 9] = 0
    maps = torch.zeros(2, 10, 4, 11, 9)
    maps[0, :7], maps[1, 3:] = whole(first), whole(second)
    summed = united([first, second], first.shape, (1, -1))
    assert summed.name.tolist() == list(range(10))
    torch.testing.assert_close(whole(summed), maps[0] - maps[1])
    joined = united([first, second], torch.Size((8, 11, 9)), None)
    torch.testing.assert_close(whole(joined), torch.cat([maps[0], maps[1]], 1))
    for found in (summed, joined):
        assert (found.interval[:7] == first.interval).all()
        assert (found.interval[3:] == second.interval).all()


def test_the_spread_of_windows_is_the_sum_of_their_sizes() -> None:
    given = windows((4, 11, 9), seed=6, names=range(40))
    expected = torch.zeros(2, 4, 11, 9).index_add_(0, given.interval, whole(given).abs())
    spread = given.spread()
    assert (spread >= expected).all()
    torch.testing.assert_close(spread, expected, rtol=2e-3, atol=0)


# Norms, against Jacobians.


def jacobians(step: Affine) -> list[Tensor]:
    """(units, units of the source), for each source."""
    zeros = tuple(torch.zeros(1, *shape, dtype=torch.float64) for shape in step.taken)
    found = torch.autograd.functional.jacobian(step.call, zeros)
    return [
        each.reshape(step.size, -1) for each in (found if isinstance(found, tuple) else (found,))
    ]


def most_lengthened(matrix: Tensor) -> Tensor:
    """Nearly the unit vector that a matrix lengthens most."""
    vector = torch.randn(matrix.shape[1], dtype=matrix.dtype)
    for _ in range(200):
        vector = F.normalize(matrix.T @ (matrix @ vector), dim=0)
    return vector


class Kinds(nn.Module):
    """Affine layers that the other two networks lack."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(2, 6, 5, padding=2, groups=2), nn.Conv2d(6, 4, (3, 1), dilation=(2, 1)),
            nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 5, 3, stride=3, padding=2, dilation=2),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        x = self.convolutions(images) * torch.tensor([[-2.0], [1.5]])
        x = torch.cat([x, x.mean((2, 3), keepdim=True).flatten(1)[:, :, None, None] - x], 3)
        return F.pad(x, (1, 0, 0, 1)).flatten(1)


def steps_of_all() -> list[Step]:
    image = torch.rand(2, 11, 9, dtype=torch.float64)
    larger = torch.rand(2, 23, 27, dtype=torch.float64)
    torch.manual_seed(0)
    return [
        *steps_of(traced_for(everything(), image), image),
        *steps_of(traced_for(Kinds(), image), image),
        *steps_of(traced_for(Residual().eval(), larger), larger),
    ]


@pytest.mark.parametrize("work", [0, 2**28], ids=["by windows", "by frequencies"])
def test_no_affine_step_lengthens_a_deviation_by_more_than_its_norm(
    work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norms_module, "_WORK", work)
    seen = set()
    for step in steps_of_all():
        if not isinstance(step, Affine):
            continue
        seen.add(type(step).__name__)
        matrices, norms = jacobians(step), Norms()
        longest = [most_lengthened(matrix) for matrix in matrices]
        for _ in range(3):
            strays = [
                stray + 0.1 * F.normalize(torch.randn_like(stray), dim=0) for stray in longest
            ]
            balls = [
                Ball.of_units(stray.abs().view(1, *shape))
                for stray, shape in zip(strays, step.taken, strict=True)
            ]
            moved = sum(m @ stray for m, stray in zip(matrices, strays, strict=True))
            found = norms.behind(step, balls)
            exact = Ball.of_units(moved.abs().view(1, *step.shape))
            assert (exact.total <= found.total * (1 + 1e-9)).all(), step.name
            assert (exact.channels <= found.channels * (1 + 1e-9)).all(), step.name
            assert found.total <= (3 if work else 6) * exact.total, step.name
    assert seen == {"Affine", "Averaged", "Joined", "Reshaped", "Scaled", "Summed", "Weighted"}


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2))]
)
def test_no_max_pool_lengthens_a_deviation_by_more_than_its_norm(pool: nn.Module) -> None:
    image = torch.rand(2, 11, 9, dtype=torch.float64)
    step = steps_of(traced_for(nn.Sequential(pool, nn.Flatten()), image), image)[1]
    assert isinstance(step, MaxPool)
    for _ in range(10):
        radius = torch.rand(1, 2, 11, 9, dtype=torch.float64) ** 9
        exact = Ball.of_units(F.pad(radius.flatten(2), (0, 1))[..., step.cells].amax(-1))
        found = behind_pool(step, Ball.of_units(radius))
        assert (exact.total <= found.total).all()
        assert (exact.channels <= found.channels).all()
        assert found.total <= 2.5 * exact.total
