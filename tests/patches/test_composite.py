"""Composites against the paper's dense planes, written a second time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from feature_collisions.patches import composite_kernel
from feature_collisions.patches.composite import Sources, blend, layers
from feature_collisions.search.parameterisations import PatchComposite

GEOMETRIES = [(28, 7, 3, 1), (40, 12, 4, 3), (30, 10, 5, 0)]


def pasted(size: int, patch: int, stride: int, surround: int, channels: int = 3) -> Sources:
    """Random windows at every place, row by row; those at the border stick out."""
    torch.manual_seed(size)
    starts = torch.arange(0, size - patch + 1, stride) - surround
    top, left = starts.repeat_interleave(len(starts)), starts.repeat(len(starts))
    side = patch + 2 * surround
    return Sources(torch.rand(len(top), channels, side, side), top, left, (size, size))


def dense(logits: Tensor, sources: Sources) -> tuple[Tensor, Tensor]:
    """Section 4 as printed: a plane a source, of the composite's size; 0 outside windows."""
    corners, patches, side, _ = logits.shape
    height, width = sources.size
    wide = (height + 2 * side, width + 2 * side)  # windows stick out; cut off below
    planes = logits.new_full((corners, patches, *wide), -torch.inf)
    q = logits.new_zeros(patches, sources.windows.shape[1], *wide)
    for k in range(patches):
        top, left = int(sources.top[k]) + side, int(sources.left[k]) + side
        planes[:, k, top : top + side, left : left + side] = logits[:, k]
        q[k, :, top : top + side, left : left + side] = sources.windows[k].to(logits)
    planes, q = (each[..., side:-side, side:-side] for each in (planes, q))
    p = planes.softmax(1)
    across = (p[..., :, :-1] - p[..., :, 1:]).abs().sum((1, 2, 3))
    down = (p[..., :-1, :] - p[..., 1:, :]).abs().sum((1, 2, 3))
    return (p[:, :, None] * q).sum(1), across + down


def with_gradient(blended: tuple[Tensor, Tensor], logits: Tensor) -> list[Tensor]:
    """Images, R, and the gradient of a sum of both with arbitrary weights."""
    images, variation = blended
    weights = torch.linspace(-1, 1, images.numel()).view_as(images).to(images)
    penalty = torch.tensor([0.3, 0.7]).to(images)
    total = (weights * images).sum() + (penalty * variation).sum()
    gradient = torch.autograd.grad(total, logits)[0]
    return [found.detach().double() for found in (images, variation, gradient)]


def differences(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_kernel_and_planes_agree_with_the_dense_planes(geometry: tuple[int, ...]) -> None:
    sources = pasted(*geometry)
    side = sources.windows.shape[-1]
    values = 2 * torch.randn(2, len(sources.top), side, side)
    exact = values.double().requires_grad_()
    expected = with_gradient(dense(exact, sources), exact)
    in_planes = blend(exact, replace(sources, windows=sources.windows.double()), layers(sources))
    assert max(differences(with_gradient(in_planes, exact), expected)) < 1e-13
    rounded = values.requires_grad_()
    assert composite_kernel.usable(rounded)
    assert max(differences(with_gradient(blend(rounded, sources), rounded), expected)) < 1e-6


def test_kernel_takes_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = pasted(*GEOMETRIES[0])
    side = sources.windows.shape[-1]
    logits = torch.randn(2, len(sources.top), side, side, requires_grad=True)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        found.append(with_gradient(blend(logits, sources), logits))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][2], found[1][2])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=0)


def test_logits_far_apart_choose_one_source() -> None:
    """Beyond exp's range nothing overflows: the pixel is the one source's, R counts its borders."""
    sources = pasted(12, 6, 6, 0)
    logits = torch.zeros(1, 4, 6, 6)
    logits[:, 2] = 300
    images, variation = blend(logits, sources)
    assert torch.equal(images[0, :, 6:, :6], sources.windows[2])
    assert variation.item() == pytest.approx(4 * 12)  # each window's two inner sides, 6 pixels long
    wide = pasted(12, 6, 3, 3)
    logits = torch.zeros(1, len(wide.top), 12, 12)
    logits[:, 4] = 300
    images, _ = blend(logits, wide)
    top, left = int(wide.top[4]), int(wide.left[4])
    assert (top, left) == (0, 0)
    assert torch.equal(images[0], wide.windows[4])


def test_layers_keep_windows_apart() -> None:
    sources = pasted(*GEOMETRIES[1])
    planes = layers(sources)
    side = sources.windows.shape[-1]
    owner = planes // (side * side)
    none = len(sources.top)
    for neighbours in ((owner[:, 1:], owner[:, :-1]), (owner[:, :, 1:], owner[:, :, :-1])):
        first, second = neighbours
        assert ((first == second) | (first == none) | (second == none)).all()
    used = planes[owner != none]
    assert len(used) == len(used.unique())


def eq5(sources: Sources, patch: int, surround: int) -> Tensor:
    """Eq. 5 as printed, pixel by pixel, for the centre c of each window: (M, H, W)."""
    height, width = sources.size
    side = patch + 2 * surround
    weights = torch.zeros(len(sources.top), height, width, dtype=torch.float64)
    for k, (top, left) in enumerate(zip(sources.top.tolist(), sources.left.tolist(), strict=True)):
        row, column = top + (side - 1) / 2, left + (side - 1) / 2
        for i in range(height):
            for j in range(width):
                a, b = side / 2 - abs(i - row), side / 2 - abs(j - column)
                if a >= 0 and b >= 0:
                    weights[k, i, j] = a * b
    return weights / weights.sum(0)


@pytest.mark.parametrize("grid", [None, 4, 9])  # 9: as many numbers as the window has pixels
def test_composite_starts_at_equation_5(grid: int | None) -> None:
    size, patch, stride, surround = GEOMETRIES[0]
    sources = pasted(size, patch, stride, surround)
    side = patch + 2 * surround
    expected = torch.zeros(3, size, size, dtype=torch.float64)
    weights = eq5(sources, patch, surround)
    for k, (top, left) in enumerate(zip(sources.top.tolist(), sources.left.tolist(), strict=True)):
        for i in range(side):
            for j in range(side):
                row, column = top + i, left + j
                if 0 <= row < size and 0 <= column < size:
                    share = weights[k, row, column]
                    expected[:, row, column] += share * sources.windows[k, :, i, j]
    composite = PatchComposite(sources, 2, grid)
    images, variation = composite.penalised()
    assert torch.allclose(images.double(), expected.expand(2, -1, -1, -1), atol=1e-6)
    across, down = weights.diff(dim=1).abs().sum(), weights.diff(dim=2).abs().sum()
    assert variation.tolist() == pytest.approx([float(across + down)] * 2, rel=1e-5)


def test_grid_changes_whole_regions_alike() -> None:
    """A grid of one raised value moves its window's logits everywhere, and bends them smoothly."""
    composite = PatchComposite(pasted(*GEOMETRIES[1]), 1, 4)
    with torch.no_grad():
        composite.control[0, 5] = 2.5
    change = (composite.logits() - composite.start)[0]
    assert torch.allclose(change[5], torch.tensor(2.5))  # interpolation keeps constants
    assert (change[:5] == 0).all()
    assert (change[6:] == 0).all()


@pytest.mark.parametrize("grid", [None, 4])
def test_mixed_precision_leaves_composites_alone(grid: int | None) -> None:
    composite = PatchComposite(pasted(*GEOMETRIES[0]), 2, grid)
    with torch.no_grad():
        composite.control += torch.randn_like(composite.control)
    expected = composite.penalised()
    with torch.autocast("cpu", torch.bfloat16):
        found = composite.penalised()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_only_control_parameters_are_kept() -> None:
    assert list(PatchComposite(pasted(*GEOMETRIES[0]), 2).state_dict()) == ["control"]
    assert list(PatchComposite(pasted(*GEOMETRIES[0]), 2, 4).state_dict()) == ["control"]


def test_without_a_compiler_plain_pytorch_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = pasted(*GEOMETRIES[0])
    composite = PatchComposite(sources, 2)
    with torch.no_grad():
        composite.control += torch.randn_like(composite.control)
    expected = with_gradient(composite.penalised(), composite.control)
    monkeypatch.setattr(composite_kernel, "_library", lambda: None)
    without = PatchComposite(sources, 2)
    without.load_state_dict(composite.state_dict())
    found = with_gradient(without.penalised(), without.control)
    assert isinstance(without.layout, Tensor)
    assert max(differences(found, expected)) < 1e-5


def test_a_compiler_that_fails_leaves_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler in ("/bin/false", "/no/such/compiler"):
        monkeypatch.setenv("CC", compiler)
        with pytest.warns(UserWarning, match=f"plain PyTorch.*{compiler} could not compile"):
            assert composite_kernel._library.__wrapped__() is None
