"""The search over control parameters (Eq. 6), with its gradient written again."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.errors import SettingError
from feature_collisions.patches.composite import Sources
from feature_collisions.search.find_corners import Search, find_corners
from feature_collisions.settings.search import LossSettings, StopSettings
from helpers.defaults import plain_optimizer

ALL = LossSettings.paper(
    alpha=3.0, beta=0.7, gamma=0.2, positive_form="half_square", normalise=True, hull=2,
    hull_weight=1.5, hull_edges=1, distance=0.4, nearness=0.6, rectified=True,
)  # fmt: skip


@pytest.fixture
def sources() -> Sources:
    torch.manual_seed(3)
    starts = torch.arange(0, 9, 4) - 1
    top, left = starts.repeat_interleave(3), starts.repeat(3)
    return Sources(torch.rand(9, 1, 10, 10), top, left, (16, 16))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return torch.rand(1, 16, 16), torch.rand(1, 16, 16)


def composite(logits: Tensor, sources: Sources) -> tuple[Tensor, Tensor]:
    """One corner's image and R(P), pixel by pixel."""
    side = logits.shape[-1]
    planes = logits.new_full((len(logits), 16, 16), -torch.inf)
    q = logits.new_zeros(len(logits), 16, 16)
    for k, (top, left) in enumerate(zip(sources.top.tolist(), sources.left.tolist(), strict=True)):
        rows = range(max(0, -top), min(side, 16 - top))
        columns = range(max(0, -left), min(side, 16 - left))
        for i in rows:
            for j in columns:
                planes[k, top + i, left + j] = logits[k, i, j]
                q[k, top + i, left + j] = sources.windows[k, 0, i, j]
    p = planes.softmax(0)
    variation = p.diff(dim=1).abs().sum() + p.diff(dim=2).abs().sum()
    return (p * q).sum(0), variation


def low_passed(image: Tensor) -> Tensor:
    """Each sample as a weighted mean of all pixels, weighed by their distance from it."""
    height, width = image.shape
    rows = []
    for top in range(0, height, 4):
        row = []
        for left in range(0, width, 4):
            weights = torch.tensor([
                [math.exp(-((i - top - 1.5) ** 2 + (j - left - 1.5) ** 2) / 32)
                 for j in range(width)] for i in range(height)
            ], dtype=torch.float64)  # fmt: skip
            row.append((weights * image).sum() / weights.sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def equation_6(
    logits: Tensor, sources: Sources, model: Any, initial: Tensor, target: Tensor, units: Any
) -> Tensor:
    """The loss of all corners with everything that goes beyond the paper, from its description."""
    f0 = lambda image: model[1](image.flatten())  # noqa: E731
    t = f0(target[0])
    norm = t.relu().norm()

    def l_pos(image: Tensor) -> Tensor:
        error = torch.where(t >= 0, f0(image) - t, f0(image).relu()) / norm
        return error.square().sum() / 2

    corners, total = [], torch.zeros((), dtype=torch.float64)
    for own, unit in zip(logits, units, strict=True):
        image, variation = composite(own, sources)
        y = f0(image) / norm
        others = [j for j in range(len(y)) if t[j] < 0 and j != unit]
        total = total + 3.0 * l_pos(image) + 0.7 * (y[unit] + y[others].abs().sum())
        total = total + 0.2 * variation + 0.6 * (image - initial[0]).square().sum() / 2
        corners.append(image)
    draws = torch.empty(2, 2).exponential_(generator=torch.Generator().manual_seed(11))
    draws[0] = 1  # `hull_edges` puts the first halfway between the two corners
    for weights in (draws / draws.sum(1, keepdim=True)).double():
        mix = sum(w * corner for w, corner in zip(weights, corners, strict=True))
        total = total + 1.5 * 3.0 * l_pos(mix)
    distance = 4 * (low_passed(corners[0]) - low_passed(corners[1])).square().sum().sqrt()
    return total - 0.4 * 2 * distance


@pytest.mark.parametrize("grid", [None, 3])
def test_the_gradient_is_equation_6s(
    model: Any, images: Any, sources: Sources, grid: int | None
) -> None:
    search = Search(
        model, "1", *images, [0, 2], loss=ALL, sources=sources, grid=grid,
        trainer={"accelerator": "cpu", "precision": "64-true"},
    )  # fmt: skip
    module = search.module
    with torch.no_grad():
        module.parameterisation.control += torch.randn_like(module.parameterisation.control)
    logits = module.parameterisation.logits()
    units = module.loss.units.tolist()
    expected = equation_6(
        logits, replace(sources, windows=sources.windows.double()), model.double(),
        images[0].double(), images[1].double(), units,
    )  # fmt: skip
    gradient = torch.autograd.grad(expected, module.parameterisation.control)[0]
    for per_batch in (None, 1):
        module.per_batch = per_batch
        module.parameterisation.control.grad = None
        total = module._descend(11, torch.Tensor.backward)
        assert float(total) == pytest.approx(expected.item(), rel=1e-6)
        found = module.parameterisation.control.grad
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-7)


def run(model: Any, images: Any, sources: Sources, steps: int, **more: Any) -> Any:
    return find_corners(
        model, "1", *images, [0, 1], sources=sources,
        optimizer=plain_optimizer(rate=0.1, final_rate=0.1),
        stop=StopSettings(None, steps, steps, None, None, hull_relative=0.3), **more,
    )  # fmt: skip


def test_a_resumed_composite_ends_bitwise_the_same(
    model: Any, images: Any, sources: Sources, tmp_path: Path
) -> None:
    whole = run(model, images, sources, 30)
    run(model, images, sources, 10, directory=tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = run(model, images, sources, 30, directory=tmp_path, ckpt_path=last)
    assert torch.equal(resumed.corners, whole.corners)
    assert "total_variation/corner_1" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert (tmp_path / "images" / "composite.png").exists()
    entry = resumed.summary["corners"][1]
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert list(saved) == ["parameterisation.control"]
    control = saved["parameterisation.control"]
    image, variation = composite(control[1], sources)
    torch.testing.assert_close(resumed.corners[1, 0], image)
    assert entry["total_variation"] == pytest.approx(float(variation), rel=1e-5)
    other = replace(sources, windows=sources.windows.flip(0))
    with pytest.raises(SettingError, match=r"a checkpoint of another experiment \(sources was"):
        run(model, images, other, 30, ckpt_path=last)


def test_composites_have_no_smooth_gradients(model: Any, images: Any, sources: Sources) -> None:
    with pytest.raises(SettingError, match=r"sobolev: .* take optimizer=adam"):
        find_corners(
            model, "1", *images, [0], sources=sources, optimizer=plain_optimizer("sobolev")
        )


def test_corners_may_be_counted_by_where_the_search_starts(
    model: Any, images: Any, sources: Sources
) -> None:
    start = Search(model, "1", *images, [0], sources=sources).start
    with torch.no_grad():
        f0, t = model[1](start.flatten()), model[1](images[1].flatten())
    already = [j for j in range(12) if t[j] < 0 and f0[j] <= 0]
    others = [j for j in range(12) if t[j] < 0 and f0[j] > 0]
    assert already
    assert others
    count = len(already) + len(others)
    for order, expected in (
        ("inactive_first", already + others),
        ("flat", sorted(already + others)),
    ):
        search = Search(model, "1", *images, range(count), sources=sources, corner_order=order)
        assert search.module.loss.units.tolist() == expected


def test_mnist_macro_from_the_command_line(
    command: Any, classifier: Any, tmp_path: Path, capsys: Any
) -> None:
    """The whole macro path: database, search, composites, evaluation; few steps, few patches."""
    quick = ["patches.fraction=0.1", "stop.max_steps=60", "stop.min_steps=60", "log.every=20"]
    place = tmp_path / "run"
    assert command(
        "train.py", "experiment=mnist_macro", "wandb.mode=disabled", f"hydra.run.dir={place}",
        "stop.positive=null", *quick,
    ) is None  # fmt: skip
    capsys.readouterr()
    assert command(
        "evaluate.py", f"run={place}", "samples=50", "worst_case.steps=2", "plain.steps=0",
        "edges.seconds=0", "proof.seconds=0", "proof.depth=false",
    ) is None  # fmt: skip
    result = json.loads((place / "evaluation.json").read_text())
    assert 0 < result["corner_distance_min"] <= result["corner_distance_mean"]
    assert 0 < result["macro_share"] < 1
    assert result["total_variation"] > 0
    assert -1 < result["ssim_to_target"] < 1
    assert (place / "corners.png").exists()
    assert (place / "images" / "patches.png").stat().st_size > 10_000
    page = (place / "report.html").read_text()
    assert "the composite by Eq. 5" in page
    assert 'alt="patches: query, match, pasted"' in page
    assert "R(P), mean over the corners" in (place / "report.md").read_text()


def test_pixels_have_no_penalty_however_they_are_batched(model: Any, images: Any) -> None:
    found = [
        find_corners(
            model, "1", *images, [0, 1], loss=LossSettings.paper(gamma=gamma),
            corners_per_batch=batch, stop=StopSettings(None, 5, 5, None, None, hull_relative=0.3),
            trainer={"precision": "64-true"},
        ).corners
        for gamma, batch in ((0.0, 2), (3.0, 2), (3.0, 1))
    ]  # fmt: skip
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])


def test_sources_that_are_all_alike_are_what_limits(
    model: Any, images: Any, sources: Sources
) -> None:
    grey = replace(sources, windows=torch.full_like(sources.windows, 0.5))
    with pytest.warns(UserWarning, match="these patches limit them; all are alike at each pixel"):
        hull = run(model, images, grey, 3, grid=3)
    with torch.no_grad():
        f0, t = model[1](torch.full((256,), 0.5)), model[1](images[1].flatten())
    apart = float((f0.relu() - t.relu()).norm() / t.relu().norm())
    assert hull.summary["floor"] == pytest.approx(apart, rel=1e-4)


def test_sources_that_differ_too_little_are_what_limits(
    model: Any, images: Any, sources: Sources
) -> None:
    dull = replace(sources, windows=0.4 + 0.1 * sources.windows)
    with pytest.warns(UserWarning, match="these patches limit them, judged by 400 steps"):
        run(model, images, dull, 3, grid=3)


def test_a_reward_so_large_that_features_are_given_up_is_what_limits(
    model: Any, images: Any, sources: Sources
) -> None:
    bright = replace(sources, windows=sources.windows.round())  # they can say a lot
    start = Search(model, "1", *images, [0], sources=bright).start[0]
    pair = images[0], start.clamp(0.01, 0.99)
    with pytest.warns(UserWarning, match="the search limits them; .* Lower loss.distance"):
        hull = find_corners(
            model, "1", *pair, [0, 1], sources=bright,
            loss=LossSettings.paper(1.0, 0.1, distance=1000.0), optimizer=plain_optimizer(rate=0.1),
            stop=StopSettings(None, 40, 40, None, None, hull_relative=0.05),
        )  # fmt: skip
    assert hull.summary["floor"] < 0.05


def test_composites_that_collide_have_no_floor(model: Any, images: Any, sources: Sources) -> None:
    start = Search(model, "1", *images, [0], sources=sources).start[0]
    hull = run(model, (images[0], start.clamp(0, 1)), sources, 5, loss=LossSettings.paper(1.0, 0.0))
    assert "floor" not in hull.summary
