"""What is not a number ends a search, wherever it arises, by kernel and plain PyTorch alike."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.patches import composite_kernel
from feature_collisions.patches.composite import Sources, blend, layers
from feature_collisions.search.find_corners import Search, find_corners
from feature_collisions.search.lightning_module import check_scale
from feature_collisions.settings.search import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    StopSettings,
)
from helpers.defaults import plain_optimizer

BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.fixture(params=["kernel", "plain PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain PyTorch":
        monkeypatch.setattr(composite_kernel, "_library", lambda: None)
    return str(request.param)


def pasted() -> Sources:
    """Nine windows of 10x10 pixels in 16x16; those at the border stick out."""
    torch.manual_seed(3)
    starts = torch.arange(0, 9, 4) - 1
    top, left = starts.repeat_interleave(3), starts.repeat(3)
    return Sources(torch.rand(9, 1, 10, 10), top, left, (16, 16))


def blended(logits: Tensor, sources: Sources, way: str) -> tuple[Tensor, Tensor]:
    return blend(logits, sources, None if way == "kernel" else layers(sources))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("window", [0, 4])
def test_a_logit_makes_what_softmax_makes_of_it(way: str, bad: float, window: int) -> None:
    """NaN and +inf: NaN in the one pixel. -inf: no weight."""
    sources = pasted()
    logits = torch.randn(2, 9, 10, 10)
    clean = blended(logits, sources, way)[0]
    logits[1, window, 5, 3] = bad
    images, variation = blended(logits.requires_grad_(), sources, way)
    row, column = int(sources.top[window]) + 5, int(sources.left[window]) + 3
    assert torch.equal(images[0], clean[0])
    elsewhere = torch.ones(16, 16, dtype=torch.bool)
    elsewhere[row, column] = False
    assert torch.equal(images[1, :, elsewhere], clean[1, :, elsewhere])
    if bad < 0:
        assert images.isfinite().all()
        return
    assert images[1, :, row, column].isnan().all()
    assert variation.isnan().tolist() == [False, True]
    (gradient,) = torch.autograd.grad(images.sum(), logits)
    covering = [
        (int(row - top), int(column - left))
        for top, left in zip(sources.top, sources.left, strict=True)
    ]
    for number, (i, j) in enumerate(covering):
        if 0 <= i < 10 and 0 <= j < 10:
            assert gradient[1, number, i, j].isnan()
    assert gradient[0].isfinite().all()


def test_a_pixel_whose_logits_all_are_minus_infinity_is_not_a_number(way: str) -> None:
    sources = pasted()
    logits = torch.randn(1, 9, 10, 10)
    logits[0, 0, 1, 1] = -float("inf")  # pixel (0, 0), which one window alone covers
    images, _ = blended(logits, sources, way)
    assert images[0, 0, 0, 0].isnan()
    assert images.isnan().sum() == 1


@pytest.mark.parametrize("bad", BAD)
def test_a_source_and_an_images_gradient_pass_it_on(way: str, bad: float) -> None:
    sources = pasted()
    logits = torch.randn(1, 9, 10, 10, requires_grad=True)
    images, _ = blended(logits, sources, way)
    slope = torch.zeros_like(images)
    slope[0, 0, 7, 6] = bad
    (gradient,) = torch.autograd.grad(images, logits, slope)
    covering = sum(
        0 <= 7 - top < 10 and 0 <= 6 - left < 10
        for top, left in zip(sources.top.tolist(), sources.left.tolist(), strict=True)
    )
    assert int((~gradient.isfinite()).sum()) == covering
    sources.windows[4, 0, 2, 2] = bad  # behind the back of its own check
    images, _ = blended(logits, sources, way)
    assert not images[0, 0, 5, 5].isfinite()
    assert int((~images.isfinite()).sum()) == 1


class _Planted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, bad: float) -> Tensor:
        ctx.bad = bad
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone()
        gradient[0, 0, 0, 3] = ctx.bad
        return gradient, None


class Plants(nn.Module):
    """The layer, but one pixel's gradient is `bad` in call `at`; `hide`: it takes NaN for 0."""

    def __init__(self, inner: nn.Module, at: int, bad: float, hide: bool) -> None:
        super().__init__()
        self.inner, self.at, self.bad, self.hide, self.calls = inner, at, bad, hide, 0

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at:
                images = _Planted.apply(images, self.bad)
        if self.hide:
            images = images.nan_to_num()
        found: Tensor = self.inner(images)
        return found


def toy_search(kind: str, optimizer: OptimizerSettings) -> Search:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 3))
    images = torch.rand(2, 1, 16, 16)
    return Search(
        model, "1", *images, [0, 1], sources=pasted() if kind != "pixels" else None,
        grid=3 if kind == "grid" else None, stop=StopSettings(None, 40, 40, None, None),
        log=LogSettings(every=10), optimizer=optimizer, corners_per_batch=2,
        loss=LossSettings.paper(),
        trainer={"accelerator": "cpu"},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["pixels", "composite", "grid"])
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "descent"])
def test_a_search_ends_at_a_gradient_that_is_not_a_number(
    way: str, kind: str, hide: bool, optimizer: str
) -> None:
    """The 13th step's: the loss of the 14th is NaN, and if it is not, the parameters are."""
    search = toy_search(kind, plain_optimizer(optimizer, 0.01, average=0.9))
    search.module.network = Plants(search.module.network, 13, float("nan"), hide)
    step = "gradient is not finite at step 20" if hide else "loss is not finite at step 13"
    with pytest.raises(CollisionError, match=step):
        search.run()


@pytest.mark.parametrize("bad", BAD)
def test_an_infinite_gradient_of_pixels_is_not_clipped_away(bad: float) -> None:
    """-inf clips to 0 and looks like a pixel; the optimiser's mean of gradients remembers it."""
    search = toy_search("pixels", plain_optimizer("descent", 0.01, average=0.9))
    search.module.network = Plants(search.module.network, 13, bad, False)
    with pytest.raises(CollisionError, match="is not finite"):
        search.run()


@pytest.mark.parametrize("what", ["control", "sources"])
def test_a_search_ends_at_parameters_or_sources_that_are_not_numbers(way: str, what: str) -> None:
    search = toy_search("composite", plain_optimizer())
    module: Any = search.module.parameterisation
    planted = module.control if what == "control" else module.sources.windows
    with torch.no_grad():
        planted.view(-1)[44] = float("nan")
    with pytest.raises(CollisionError, match="loss is not finite at step 0"):
        search.run()


def test_a_search_that_stays_finite_does_not_notice() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 3))
    images = torch.rand(2, 1, 16, 16)
    hull = find_corners(
        model,
        "1",
        *images,
        [0],
        loss=LossSettings.paper(),
        stop=StopSettings(None, 5, 5, None, None),
    )
    assert hull.corners.isfinite().all()


def test_images_too_small_for_visible_distances_are_told() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 3))
    loss = LossSettings.paper(distance=2.0)
    with pytest.raises(SettingError, match=r"loss\.distance=2\.0: .* the images have 6x9; set"):
        find_corners(model, "1", *torch.rand(2, 1, 6, 9), [0], loss=loss)


def test_squares_that_do_not_divide_the_image_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 3))
    images, loss = torch.rand(2, 1, 6, 9), LossSettings.paper(distance=2.0, distance_pooling=2)
    rule = r"loss\.distance_pooling=2: must divide the image's sides, 6 and 9; 3 and its divisors"
    with pytest.raises(SettingError, match=rule):
        find_corners(model, "1", *images, [0], loss=loss)


def test_a_scale_that_only_falls_ends_with_its_own_reason() -> None:
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.1)
    scaler = torch.amp.GradScaler("cpu")

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            scaler.scale((weight * torch.nan).sum()).backward()
            scaler.step(optimizer)
            scaler.update()

    check_scale(None, 0)
    steps(10)
    check_scale(scaler, 10)
    steps(30)
    with pytest.raises(CollisionError, match=r"16-mixed.*skipped"):
        check_scale(scaler, 40)
