import pytest
import torch
from torch import nn

from feature_collisions.search.optimizers import make_optimizer, rate_at
from feature_collisions.settings.search import OptimizerSettings, RateStage
from helpers.defaults import plain_optimizer


def steps(settings, gradients):
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = make_optimizer(settings, [parameter])
    path = []
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        path.append(parameter.item())
    return path


def test_descent_is_algorithm_1():
    path = steps(plain_optimizer("descent", rate=0.5), [1.0, -2.0, 0.25])
    assert path == pytest.approx([0.5, 1.5, 1.375])


def test_descent_averages_the_gradient_as_the_authors_do():
    gradients, x, mean, expected = [1.0, -2.0, 0.25], 1.0, 1.0, []
    for gradient in gradients:
        mean = 0.99 * mean + 0.01 * gradient
        x -= 0.5 * mean
        expected.append(x)
    path = steps(plain_optimizer("descent", rate=0.5, average=0.99), gradients)
    assert path == pytest.approx(expected)


def test_the_rate_falls_along_a_line():
    settings = plain_optimizer(rate=0.3, final_rate=0.1)
    assert [rate_at(settings, step, 4) for step in range(5)] == pytest.approx(
        [0.3, 0.25, 0.2, 0.15, 0.1]
    )


def test_a_fixed_rate_stays():
    settings = plain_optimizer("descent", rate=0.3, final_rate=0.3)
    assert {round(rate_at(settings, step, 7), 12) for step in range(7)} == {0.3}


def test_rates_by_stages():
    stages = [RateStage(2, 0.1), RateStage(4, 0.5)]
    settings = plain_optimizer(rate=0.3, final_rate=0.3, stages=stages)
    assert [rate_at(settings, step, 6) for step in range(6)] == [0.3, 0.3, 0.1, 0.1, 0.5, 0.5]


def test_adam_forgets_the_gradients_size_as_fast_as_it_is_told():
    """Adam written again: after a gradient of 1000, beta_2 = 0.5 steps on, 0.999 stands still."""
    gradients, moves = [1000.0] + [1.0] * 20, {}
    for share in (0.5, 0.999):
        x, mean, square, expected = 1.0, 0.0, 0.0, []
        for step, gradient in enumerate(gradients, 1):
            mean = 0.9 * mean + 0.1 * gradient
            square = share * square + (1 - share) * gradient**2
            x -= 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - share**step)) ** 0.5 + 1e-8)
            expected.append(x)
        path = steps(OptimizerSettings("adam", 0.1, square_average=share), gradients)
        assert path == pytest.approx(expected)
        moves[share] = abs(path[-1] - path[-2])
    assert moves[0.5] > 2 * moves[0.999]


def sobolev(images, gradients, rate=0.1, average=0.8):
    """What SobolevDescent does to one image, with whole Fourier transforms, written slowly."""
    height, width = images.shape[-2:]
    mean = torch.zeros_like(images)
    for gradient in gradients:
        mean = average * mean + (1 - average) * gradient
        direction = torch.zeros_like(images)
        for channel, plane in enumerate(mean):
            spectrum = torch.fft.fft2(plane)
            for row in range(height):
                for column in range(width):
                    v, u = min(row, height - row) / height, min(column, width - column) / width
                    spectrum[row, column] /= max((u * u + v * v) ** 0.5, 1 / max(height, width))
            direction[channel] = torch.fft.ifft2(spectrum).real
        images = images - rate * direction / direction.square().mean().sqrt()
    return images


@pytest.mark.parametrize("size", [(6, 6), (5, 7), (4, 1)])
def test_a_sobolev_step_is_that_of_the_gradient_over_its_frequencies(size):
    generator = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(4, 2, 3, *size, generator=generator, dtype=torch.float64)
    images = nn.Parameter(start.clone())
    optimizer = make_optimizer(plain_optimizer("sobolev", rate=0.1, average=0.8), [images])
    for gradient in gradients:
        images.grad = gradient.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    for number in range(2):
        expected = sobolev(start[number], [gradient[number] for gradient in gradients])
        assert torch.allclose(images[number], expected, atol=1e-12)


def test_a_sobolev_step_has_the_rates_length_whatever_the_gradients():
    images = nn.Parameter(torch.zeros(2, 3, 8, 8))
    optimizer = make_optimizer(plain_optimizer("sobolev", rate=0.01), [images])
    images.grad = torch.randn(2, 3, 8, 8) * torch.tensor([1e-30, 1e6]).view(2, 1, 1, 1)
    optimizer.step()
    lengths = images.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(lengths, torch.full((2,), 0.01), rtol=1e-4)


def test_a_sobolev_step_without_a_gradient_stays():
    images = nn.Parameter(torch.full((1, 3, 4, 4), 0.5))
    optimizer = make_optimizer(plain_optimizer("sobolev", rate=0.01), [images])
    images.grad = torch.zeros_like(images)
    optimizer.step()
    assert (images == 0.5).all()
