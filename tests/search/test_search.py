"""The search on a network whose polytope is known, and its promises about seeds and batches."""

import csv
import math
from dataclasses import replace

import pytest
import torch

from feature_collisions import find_corners
from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import (
    LogSettings,
    LossSettings,
    LossStage,
    RateStage,
    StopSettings,
)
from helpers.defaults import plain_optimizer, stop_at_once

EQUATION_2 = {"loss": LossSettings.paper(), "optimizer": plain_optimizer()}
QUICK = EQUATION_2 | {
    "stop": StopSettings(positive=0.01, min_steps=300, max_steps=300),
    "log": LogSettings(every=20, images_every=100, checkpoint_every=100),
}


def test_corners_of_a_known_polytope(shift, shift_images):
    """f0(x) = x - 1/2: active pixels are fixed, pixel i goes to 0, other inactive ones to 1/2."""
    initial, target = shift_images
    hull = find_corners(shift, "hidden", initial, target, range(4), **QUICK)
    assert hull.units.tolist() == [1, 3, 4, 6]
    expected = torch.where(target >= 0.5, target, 0.5).repeat(4, 1, 1, 1)
    expected.view(4, 9)[range(4), hull.units] = 0.0
    assert (hull.corners - expected).abs().max() < 2e-3
    assert hull.summary["converged"]
    assert [e["unit_preactivation"] for e in hull.summary["corners"]] == pytest.approx(
        [-0.5] * 4, abs=2e-3
    )


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_seed_moves_the_points_between_corners_and_nothing_else(shift, shift_images):
    def corners(hull, seed):
        settings = QUICK | {"loss": LossSettings.paper(hull=hull), "seed": seed}
        settings["stop"] = StopSettings(positive=0.01, min_steps=30, max_steps=30)
        return find_corners(shift, "hidden", *shift_images, range(3), **settings).corners

    assert torch.equal(corners(2, 1), corners(2, 1))
    assert not torch.equal(corners(2, 0), corners(2, 1))
    assert torch.equal(corners(0, 0), corners(0, 1))
    with pytest.raises(SettingError, match="seed=-1"):
        corners(0, -1)


def test_points_halfway_are_the_midpoints_of_edges_and_of_all_alike(shift, shift_images):
    module = Search(shift, "hidden", *shift_images, range(3), **QUICK).module
    units = torch.eye(5)[:, None, None]  # points of their hull are their own weights
    halfway, other = module._points_inside(2001, 7, units, 2000).flatten(1).split([2000, 1])
    assert halfway.unique().tolist() == [0.0, 0.5]
    pairs, counts = halfway.unique(dim=0, return_counts=True)
    assert len(pairs) == 10
    assert (pairs.sum(1) == 1).all()
    assert counts.min() > 150  # of 200 on average
    assert torch.equal(other, module._points_inside(2001, 7, units)[2000:].flatten(1))
    alone = module._points_inside(2, 7, units[:1], 1)
    assert torch.equal(alone.flatten(1), torch.eye(5)[[0, 0]])


def test_every_mix_of_exact_corners_keeps_the_features(shift, shift_images):
    """Section 2: the hull of exact corners lies in the polytope."""
    initial, target = shift_images
    hull = find_corners(shift, "hidden", initial, target, range(4), **QUICK)
    exact = torch.where(target >= 0.5, target, 0.5).repeat(4, 1, 1, 1)
    exact.view(4, 9)[range(4), hull.units] = 0.0
    hull = replace(hull, corners=exact)
    features = torch.relu(shift.hidden(target.flatten()))
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        weights = torch.rand(1, 4, generator=generator)
        mix = hull.points(weights / weights.sum())
        assert torch.allclose(torch.relu(shift.hidden(mix.flatten())), features, atol=1e-6)
    result = hull.sample(500)
    assert result["accuracy"] == 1
    assert result["inactive_kept"] == 1
    assert result["positive_relative_max"] < 1e-6


def test_the_main_job_is_a_bare_loop_over_equation_4(classifier, digits):
    """Bit for bit: Eq. 2 as it is printed, autograd, Adam with a falling rate, clipping."""
    initial, target = digits.test.find("initial", 3).image, digits.test.find("target", 7).image
    steps, alpha, beta = 150, 1.0, 0.1
    hidden = classifier.hidden1.weight.double(), classifier.hidden1.bias.double()
    f0 = torch.nn.functional.linear(target.double().flatten(), *hidden)
    units = (f0 < 0).nonzero().flatten()[:5]
    pixels = torch.nn.Parameter(initial.double().repeat(5, 1, 1, 1))
    adam = torch.optim.Adam([pixels], fused=True)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        f = torch.nn.functional.linear(pixels.flatten(1), *hidden)
        positive = torch.linalg.vector_norm(f * (f0 >= 0).double() - f0.relu(), dim=1)
        unit = f.gather(1, units[:, None])[:, 0]
        negative = unit - unit.abs() + (f * (f0 < 0).double()).abs().sum(1)
        adam.zero_grad()
        (alpha * positive + beta * negative).sum().backward()
        adam.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    trainer = {"precision": "64-true", "accelerator": "cpu"}
    hull = find_corners(
        classifier, "hidden1", initial, target, range(5), trainer=trainer,
        loss=LossSettings.paper(alpha, beta), stop=StopSettings(5.0, steps, steps),
        optimizer=plain_optimizer(),
    )  # fmt: skip
    assert torch.equal(hull.corners, pixels.detach().float())


@pytest.mark.parametrize("optimizer", ["adam", "descent", "sobolev"])
def test_a_batch_and_one_by_one_find_the_same_corners(classifier, digits, optimizer):
    initial, target = digits.test.find("initial", 3).image, digits.test.find("target", 7).image
    settings = {
        "optimizer": plain_optimizer(optimizer, rate=0.1 if optimizer == "adam" else 2e-4),
        "loss": LossSettings.paper(),
        "stop": StopSettings(None, 400, 400, None, None),
        "trainer": {"precision": "64-true"},
    }
    together = find_corners(classifier, "hidden1", initial, target, [0, 3, 7], **settings)
    for k, corner in enumerate([0, 3, 7]):
        alone = find_corners(classifier, "hidden1", initial, target, [corner], **settings)
        assert (alone.corners[0] - together.corners[k]).abs().max() < 1e-5


def test_the_papers_optimiser_converges(classifier, digits):
    """Algorithm 1 with the authors' average, on their half square, reaches L_pos < 5."""
    initial, target = digits.test.find("initial", 3).image, digits.test.find("target", 7).image
    hull = find_corners(
        classifier,
        "hidden1",
        initial,
        target,
        loss=LossSettings.paper(1.0, 0.1, positive_form="half_square"),
        optimizer=plain_optimizer("descent", 1e-4, 1e-4, average=0.99),
        stop=stop_at_once(positive=5.0, max_steps=5000),
    )
    assert hull.summary["converged"]
    assert {entry["predicted_class"] for entry in hull.summary["corners"]} == {7}


def test_the_search_stops_when_all_corners_have_converged(classifier, digits):
    initial, target = digits.test.find("initial", 3).image, digits.test.find("target", 7).image
    stop = StopSettings(positive=5.0, min_steps=60, max_steps=1000)
    log = LogSettings(every=10)
    slow = plain_optimizer(rate=0.05)
    hull = find_corners(classifier, "hidden1", initial, target, stop=stop, log=log, optimizer=slow)
    assert 60 <= hull.summary["steps"] < 200
    assert all(entry["positive"] < 5 for entry in hull.summary["corners"])


def test_a_search_that_did_not_converge_says_so(shift, shift_images):
    stop = stop_at_once(positive=1e-9, max_steps=3)
    with pytest.warns(UserWarning, match=r"not converged: L_pos of corners \[0, 1\] is not under"):
        hull = find_corners(shift, "hidden", *shift_images, [0, 1], stop=stop)
    assert not hull.summary["converged"]
    assert hull.summary["steps"] == 3


def test_a_loss_that_is_not_finite_stops_at_its_step(shift, shift_images):
    loss = LossSettings.paper(alpha=1e39)  # beyond float32
    with pytest.raises(CollisionError, match=r"not finite at step 0; lower optimizer.rate"):
        find_corners(shift, "hidden", *shift_images, [0], loss=loss)


class Breaks(torch.nn.Module):
    """Keeps its parameterisation in range until a given step, then gives NaN."""

    def __init__(self, inner, step):
        super().__init__()
        self.inner, self.step, self.calls = inner, step, 0

    def forward(self):
        return self.inner()

    def penalised(self):
        self.calls += 1
        images, variation = self.inner.penalised()
        return images * (math.nan if self.calls > self.step else 1.0), variation

    def project(self):
        self.inner.project()


def test_a_loss_that_breaks_later_keeps_the_checkpoint_before_it(shift, shift_images, tmp_path):
    search = Search(
        shift,
        "hidden",
        *shift_images,
        [0],
        **EQUATION_2,
        stop=stop_at_once(positive=0, max_steps=100),
        log=LogSettings(10, 10, 10),
        directory=tmp_path,
    )
    search.module.parameterisation = Breaks(search.module.parameterisation, 37)
    with pytest.raises(CollisionError, match="not finite at step 34"):
        search.run()  # of the 37 calls 6 looked at steps 10, 20 and 30
    kept = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["collision"]["step"] == 30
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def test_curves_pictures_and_checkpoints_are_written(shift, shift_images, tmp_path):
    find_corners(shift, "hidden", *shift_images, [0, 2], directory=tmp_path, **QUICK)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(20, 301, 20))
    assert float(rows[-1]["positive/corner_2"]) < 0.01
    assert float(rows[-1]["unit_preactivation/corner_0"]) == pytest.approx(-0.5, abs=2e-3)
    assert sorted(path.name for path in (tmp_path / "images" / "steps").iterdir()) == sorted(
        f"step_{step:06d}_corner_{corner}.png" for step in (100, 200, 300) for corner in (0, 2)
    )
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert list(checkpoint["state_dict"]) == ["parameterisation.pixels"]
    assert checkpoint["collision"]["step"] == 300


def test_a_search_goes_by_its_stages(shift, shift_images):
    """Weights of 0 and rates of 0 hold the corners still until a stage sets them free."""

    def moved(steps, **settings):
        stop = StopSettings(None, steps, steps, None, None)
        settings = EQUATION_2 | settings
        hull = find_corners(
            shift, "hidden", *shift_images, [0], stop=stop, log=LogSettings(every=7), **settings
        )
        return not torch.equal(hull.corners[0], shift_images[0])

    loss = LossSettings.paper(0.0, 0.0, stages=[LossStage(10, alpha=1.0)])
    still = plain_optimizer("descent", 0.0, stages=[RateStage(10, 0.01)])
    for settings in ({"loss": loss}, {"optimizer": still}):
        assert not moved(10, **settings)
        assert moved(11, **settings)


@pytest.mark.parametrize("optimizer", ["adam", "descent", "sobolev"])
def test_a_resumed_search_ends_bitwise_the_same(shift, shift_images, tmp_path, optimizer):
    settings = QUICK | {"optimizer": plain_optimizer(optimizer, 0.01, average=0.9)}
    whole = find_corners(
        shift, "hidden", *shift_images, [0, 1], directory=tmp_path / "a", **settings
    )
    cut = Search(shift, "hidden", *shift_images, [0, 1], directory=tmp_path / "b", **settings)
    cut.module.parameterisation = Breaks(cut.module.parameterisation, 250)
    with pytest.raises(CollisionError, match="not finite"):
        cut.run()
    # the keys of a wrapped parameterisation are its wrapper's; give the checkpoint the plain ones
    path = tmp_path / "b" / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["state_dict"] = {k.replace("inner.", ""): v for k, v in saved["state_dict"].items()}
    torch.save(saved, path)
    assert saved["collision"]["step"] == 200
    resumed = find_corners(
        shift, "hidden", *shift_images, [0, 1], directory=tmp_path / "b", ckpt_path=path, **settings
    )
    assert torch.equal(resumed.corners, whole.corners)
    assert (
        resumed.summary["seconds_total"]
        > resumed.summary["seconds"]
        > saved["collision"]["seconds"]
    )
    assert resumed.summary["seconds_total"] > saved["collision"]["seconds_total"]
    rows = [(tmp_path / name / "metrics.csv").read_text() for name in "ab"]
    assert rows[0] == rows[1]
    pictures = [sorted(p.name for p in (tmp_path / name).rglob("step_*.png")) for name in "ab"]
    assert pictures[0] == pictures[1]


def test_checkpoints_that_do_not_fit_are_refused(shift, shift_images, tmp_path):
    find_corners(shift, "hidden", *shift_images, [0], directory=tmp_path, **QUICK)
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(SettingError, match=r"of another experiment \(units was \[1\], is \[3\]\)"):
        find_corners(shift, "hidden", *shift_images, [1], ckpt_path=path)
    older = torch.load(path, weights_only=True)
    del older["collision"]["seconds_total"]
    torch.save(older, tmp_path / "older.ckpt")
    with pytest.raises(SettingError, match=r"older\.ckpt: not a whole checkpoint"):
        find_corners(shift, "hidden", *shift_images, [0], ckpt_path=tmp_path / "older.ckpt")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(SettingError, match=r"last\.ckpt: not a whole checkpoint"):
        find_corners(shift, "hidden", *shift_images, [0], ckpt_path=path)
    with pytest.raises(SettingError, match=r"none: there is no such file"):
        find_corners(shift, "hidden", *shift_images, [0], ckpt_path=tmp_path / "none")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickled_payload_in_a_checkpoint_is_not_executed(shift, shift_images, tmp_path):
    torch.save({"collision": {"problem": Payload(str(tmp_path / "harm"))}}, tmp_path / "bad.ckpt")
    with pytest.raises(SettingError, match="not a whole checkpoint"):
        find_corners(shift, "hidden", *shift_images, [0], ckpt_path=tmp_path / "bad.ckpt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, t: (t, t), "initial and target are the same image"),
        (lambda i, t: (i.numpy(), t), "initial: must be a float32 tensor"),
        (lambda i, t: (i * 255, t), r"initial: pixels must be in \[0, 1\]; divide 8-bit"),
        (lambda i, t: (i, t * math.nan), "target: pixels must be in"),
        (lambda i, t: (i.double(), t), r"initial: must be a float32 image .* is torch.float64"),
        (lambda i, t: (i, t[0]), r"target: must be a float32 image .* \(3, 3\)"),
        (lambda i, t: (i[:, :2], t), r"target differ in size: \(1, 2, 3\).*; resize one"),
        (lambda i, t: (i, None), "target: is missing; give an image"),
    ],
)
def test_images_that_cannot_be_used_are_refused(shift, shift_images, change, message):
    with pytest.raises(SettingError, match=message):
        find_corners(shift, "hidden", *change(*shift_images))


def test_trainer_settings_lightning_refuses_are_told(shift, shift_images):
    with pytest.raises(SettingError, match=r"trainer\.precision=9: must be one of 32-true"):
        find_corners(shift, "hidden", *shift_images, [0], trainer={"precision": 9})


def test_bfloat16_keeps_the_pixels_in_float32(shift, shift_images):
    settings = QUICK | {"stop": StopSettings(positive=0.05, min_steps=300, max_steps=300)}
    hull = find_corners(
        shift, "hidden", *shift_images, [0], trainer={"precision": "bf16-mixed"}, **settings
    )
    assert hull.corners.dtype == torch.float32
    assert hull.summary["converged"]
