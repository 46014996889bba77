import math

import pytest
import torch

from feature_collisions.graph.target import TargetFeatures, positive
from feature_collisions.search.losses import CollisionLoss, negative, settings_at
from feature_collisions.settings.search import LossSettings, LossStage


def problem(form, seed=0, rectified=False):
    generator = torch.Generator().manual_seed(seed)
    target = TargetFeatures(torch.randn(30, generator=generator, dtype=torch.float64))
    x = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    x[x.abs() < 0.05] = 0.05  # away from the kinks of |.|
    loss = CollisionLoss(
        target, target.units(range(4)), LossSettings.paper(2.0, 0.5, 0.0, form, rectified=rectified)
    )
    return loss, target, x.requires_grad_()


KINDS = [(form, rectified) for form in ("norm", "half_square") for rectified in (False, True)]


def test_gradients_in_float64():
    for form, rectified in KINDS:
        loss, _, x = problem(form, rectified=rectified)
        assert torch.autograd.gradcheck(loss, (x,))


def test_the_gradient_of_the_product_with_signs_is_that_of_the_papers_terms():
    """Bit for bit, at the kinks, too: |.| has the gradient 0 at 0, and unit i is pushed there."""
    loss, target, x = problem("norm")
    with torch.no_grad():
        x[1] = target.features  # an exact collision
        x[2, loss.units[2]] = 0.0  # the pushed unit at its kink
    unit = x.gather(1, loss.units[:, None])[:, 0]
    paper = unit - unit.abs() + (x * loss.inactive).abs().sum(1)
    ours = negative(x, loss.inactive, loss.units)
    assert torch.allclose(ours, paper, rtol=1e-12)
    assert torch.equal(*[torch.autograd.grad(total.sum(), x)[0] for total in (ours, paper)])


def test_rows_are_the_corners_of_the_whole():
    loss, _, x = problem("half_square")
    assert torch.equal(loss(x[1:3], slice(1, 3)), loss(x)[1:3])


def test_what_is_rectified_is_what_later_layers_see():
    """Unit by unit: an active unit's f0 - f(t), an inactive one's max(f0, 0)."""
    loss, target, x = problem("norm", rectified=True)
    found = positive(x, target.features, loss.active, rectified=True)
    for row, norm in zip(x.tolist(), found.tolist(), strict=True):
        squares = [
            (f0 - t) ** 2 if t >= 0 else max(f0, 0) ** 2
            for f0, t in zip(row, target.preactivation.tolist(), strict=True)
        ]
        assert norm == pytest.approx(sum(squares) ** 0.5)
    assert (found > positive(x, target.features, target.active)).all()
    assert loss.interior(x).tolist() == pytest.approx((2.0 * found).tolist())


def test_the_outputs_weight_is_a_share_of_the_loss_without_features():
    """KL((3/4, 1/4) || (1/2, 1/2)) = log 2 - H(3/4); ||f(t)|| = 5, L_pos(0) = 5 or 25/2."""
    target = TargetFeatures(torch.tensor([3.0, 4.0, -1.0], dtype=torch.float64))
    logits = torch.tensor([[1.0, 1.0], [math.log(3.0), 0.0]], dtype=torch.float64)
    divergence = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    for form, normalise, empty in (
        ("norm", False, 5.0),
        ("half_square", False, 12.5),
        ("norm", True, 1.0),
        ("half_square", True, 0.5),
    ):
        settings = LossSettings.paper(7.0, 0.0, 0.0, form, normalise=normalise, output=0.1)
        loss = CollisionLoss(target, target.units([0]), settings, logits[1])
        found = loss.output(logits)
        assert found[0].item() == pytest.approx(0.1 * 7.0 * empty * divergence)
        assert found[1].item() == pytest.approx(0, abs=1e-12)
        nothing = loss.interior(torch.zeros(1, 3, dtype=torch.float64)).item()
        assert found[0].item() == pytest.approx(0.1 * divergence * nothing)


def test_gradient_is_zero_and_finite_at_an_exact_collision():
    for form in ("norm", "half_square"):
        _, target, _ = problem(form)
        x = target.features[None].clone().requires_grad_()
        value = positive(x, target.features, target.active.double(), form)
        assert value.item() == 0
        (gradient,) = torch.autograd.grad(value.sum(), x)
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_pushed_unit_goes_down_from_either_side_of_zero():
    target = TargetFeatures(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    loss = CollisionLoss(target, target.units([0]), LossSettings.paper(0.0, 1.0))
    for start in (2.0, 0.0, -2.0):
        x = torch.tensor([[1.0, start, 0.5]], dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
        assert gradient.tolist() == [[0.0, 1.0, 1.0]]


def test_corners_do_not_touch_each_other():
    loss, _, x = problem("norm")
    (together,) = torch.autograd.grad(loss(x).sum(), x)
    for k in range(4):
        (alone,) = torch.autograd.grad(loss(x)[k], x)
        assert torch.equal(alone[k], together[k])
        assert alone.count_nonzero() == alone[k].count_nonzero()


def test_weights_by_stages():
    stages = [LossStage(2, alpha=1000.0, beta=1.0), LossStage(4, beta=5.0)]
    settings = LossSettings.paper(100.0, 10.0, positive_form="half_square", stages=stages)
    found = [settings_at(settings, step) for step in range(6)]
    assert [each.alpha for each in found] == [100, 100, 1000, 1000, 1000, 1000]
    assert [each.beta for each in found] == [10, 10, 1, 1, 5, 5]


def test_the_reward_for_distance_is_of_the_squares_means():
    """A difference that squares average away is not rewarded; one of whole squares is."""
    images = torch.zeros(2, 1, 4, 4)
    fine, coarse = images.clone(), images.clone()
    fine[1, :, ::2], fine[1, :, 1::2] = 0.5, -0.5
    coarse[1, :, :2] = 0.5
    found = []
    for pooling in (1, 2):
        settings = LossSettings.paper(distance=3.0, distance_pooling=pooling)
        loss = CollisionLoss(TargetFeatures(torch.ones(2)), torch.tensor([0, 0]), settings)
        for each in (fine, coarse):
            found.append(sum(loss.of_images(each, torch.zeros(2), each)).item())
    rewards = [-3.0 * 2 * distance for distance in (2.0, math.sqrt(2), 0.0, math.sqrt(2))]
    assert found == pytest.approx(rewards)
