import torch

from feature_collisions.data.images import pooled_distances
from feature_collisions.hull.distances import low_pass, smooth_distances


def test_pooled_distances_see_squares_and_not_what_averages_away():
    images = torch.zeros(3, 1, 16, 16)
    images[1, :, :8, :8] = 0.5
    images[2, :, ::2] = 0.25
    images[2, :, 1::2] = -0.25
    apart = torch.tensor([0.5 * 8, 0, 0.5 * 8])  # 64 pixels by 0.5
    torch.testing.assert_close(pooled_distances(images, 8), apart, rtol=0, atol=1e-6)


def test_smooth_distances_do_not_depend_on_where_the_samples_lie():
    """Moved by one to three pixels a picture is as far from grey; 8x8 squares tell these apart."""
    torch.manual_seed(0)
    noise = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), 48, mode="bicubic")[0]
    images = torch.zeros(5, 3, 96, 96, dtype=torch.float64)
    for moved in range(4):
        images[moved + 1, :, 24 + moved : 72 + moved, 24 + moved : 72 + moved] = noise
    found = smooth_distances(images)[:4]
    assert (found / found[0] - 1).abs().max() < 1e-3


def test_smooth_distances_keep_the_smooth_and_drop_the_fine():
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).expand(1, 64, 64)
    stripes = ramp.clone()
    stripes[..., ::2] += 0.25
    stripes[..., 1::2] -= 0.25
    images = torch.stack([torch.zeros_like(ramp), ramp, stripes])
    grey_ramp, _, ramp_stripes = smooth_distances(images)
    assert abs(grey_ramp / ramp.norm() - 1) < 0.02
    assert ramp_stripes < 0.03 * (stripes - ramp).norm()


def test_low_passed_constants_stay_to_the_border():
    images = torch.full((2, 3, 30, 41), 0.7)
    found = low_pass(images)
    assert found.shape == (2, 3, 8, 11)
    torch.testing.assert_close(found, torch.full_like(found, 0.7))


def test_gradients_in_float64_and_at_equal_images():
    torch.manual_seed(0)
    images = torch.rand(3, 1, 12, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth_distances, (images,))
    equal = torch.full((2, 1, 12, 10), 0.5, requires_grad=True)
    assert not torch.autograd.grad(smooth_distances(equal - equal[:1]).sum(), equal)[0].any()


def test_pooled_distances_have_gradients_and_none_where_images_are_equal():
    torch.manual_seed(0)
    images = torch.rand(3, 2, 8, 4, dtype=torch.float64, requires_grad=True)
    for square in (1, 2, 4):
        assert torch.autograd.gradcheck(lambda x, n=square: pooled_distances(x, n), (images,))
    equal = torch.zeros(2, 1, 8, 8, requires_grad=True)
    assert not torch.autograd.grad(pooled_distances(equal, 4).sum(), equal)[0].any()
