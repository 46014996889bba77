"""Optimisers: Adam, the authors' gradient descent, and descent along Sobolev gradients."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..settings.search import OptimizerSettings


def make_optimizer(
    settings: OptimizerSettings, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimiser named by `optimizer`.

    `descent` with `average` a > 0 uses a running mean of the gradient, a times the old plus 1 - a
    times the new, as in the authors' experiments. The mean starts at the first gradient.
    """
    if settings.name == "adam":
        betas = (0.9, float(settings.square_average))
        return torch.optim.Adam(parameters, lr=settings.rate, betas=betas, fused=True)
    average = settings.average
    if settings.name == "sobolev":
        return SobolevDescent(parameters, settings.rate, average)
    return torch.optim.SGD(parameters, lr=settings.rate, momentum=average, dampening=average)


def rate_at(settings: OptimizerSettings, step: int, max_steps: int) -> float:
    """Rate at `step`: of its stage, or on the line from `rate` to `final_rate`."""
    if settings.stages:
        rates = [stage.rate for stage in settings.stages if step >= stage.step]
        return rates[-1] if rates else settings.rate
    share = step / max_steps
    return settings.rate * (1 - share) + settings.final_rate * share


class SobolevDescent(torch.optim.Optimizer):
    """Steps of fixed length along the images' Sobolev gradient.

    This is the gradient of the loss in the inner product of H^(1/2), which weights a component by
    its frequency. So low frequencies change more than high ones. Each image (..., H, W) has a
    running mean of its gradient. A step changes its pixels by `lr` (RMS), whatever the length of
    the gradient.

    Args:
        parameters: images (K, C, H, W).
        lr: RMS change of an image's pixels per step.
        average: weight of earlier gradients in the running mean, in [0, 1).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, average: float) -> None:
        super().__init__(parameters, {"lr": lr, "average": average})
        self.weights: Tensor | None = None  # of frequencies, on the images' device

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every image along its gradient."""
        for group in self.param_groups:
            for images in group["params"]:
                self._move(images, group["lr"], group["average"])

    def _move(self, images: Tensor, rate: float, average: float) -> None:
        state = self.state[images]
        if not state:
            state["mean"] = torch.zeros_like(images)
        if self.weights is None:
            self.weights = inverse_frequencies(images)
        mean: Tensor = state["mean"].lerp_(images.grad, 1 - average)
        spectrum = torch.fft.rfft2(mean).mul_(self.weights)
        direction = torch.fft.irfft2(spectrum, s=(images.shape[-2], images.shape[-1]))
        for length in (largest, root_mean_square):  # squares of small numbers would underflow
            direction /= length(direction).clamp_min_(torch.finfo(images.dtype).tiny)
        images.sub_(direction, alpha=rate)


def inverse_frequencies(images: Tensor) -> Tensor:
    """Period in pixels of each component of `rfft2` of images (..., H, W): (H, W // 2 + 1).

    The mean of an image has no period; the longest side is used.
    """
    height, width = images.shape[-2:]
    like = {"dtype": images.dtype, "device": images.device}
    rows, columns = torch.fft.fftfreq(height, **like), torch.fft.rfftfreq(width, **like)
    frequencies = torch.hypot(rows[:, None], columns)
    return frequencies.clamp_min_(1 / max(height, width)).reciprocal_()


def largest(images: Tensor) -> Tensor:
    """Largest |pixel| of each image (K, C, H, W): (K, 1, 1, 1)."""
    return images.abs().amax((1, 2, 3), keepdim=True)


def root_mean_square(images: Tensor) -> Tensor:
    """RMS of the pixels of each image (K, C, H, W): (K, 1, 1, 1)."""
    return images.square().mean((1, 2, 3), keepdim=True).sqrt_()
