"""How far apart corners look."""

import os

import pytest
import torch
from torch import Tensor

from feature_collisions.evaluation.differences import boxes, lpips_mean, lpips_weights, ssim_mean
from helpers.commands import SHARED


def test_boxes_lie_where_the_corners_differ_and_do_not_touch() -> None:
    corners = torch.full((3, 2, 40, 50), 0.5)
    corners[1, :, 4:12, 30:40] = 1.0
    corners[2, 0, 28:36, 10:20] = 0.9
    first, second = boxes(corners)
    assert (first.row, first.column, first.height, first.width) == (4, 30, 8, 10)
    assert (second.row, second.column, second.height, second.width) == (28, 10, 8, 10)
    # population of three values a, b, b: variance (a - b)^2 / 3, over both channels or one
    strong, weak = 2 * 0.5**2, 0.4**2
    assert first.share == pytest.approx(strong / (strong + weak), rel=1e-5)
    assert second.share == pytest.approx(weak / (strong + weak), rel=1e-5)


def test_equal_corners_have_no_boxes_and_full_similarity() -> None:
    corners = torch.rand(1, 1, 28, 28).repeat(3, 1, 1, 1)
    assert boxes(corners) == []
    assert ssim_mean(corners) == pytest.approx(1)


def test_ssim_of_flat_images_in_closed_form() -> None:
    """Without any contrast only the means count: (2 m n + c) / (m^2 + n^2 + c), c = 0.01^2."""
    corners = torch.stack([torch.full((1, 20, 20), 0.2), torch.full((1, 20, 20), 0.6)])
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.04 + 0.36 + 1e-4)
    assert ssim_mean(corners) == pytest.approx(expected, rel=1e-3)  # its variances are rounded
    assert ssim_mean(corners[..., :8]) is None


def test_lpips_is_left_out_without_its_weights_and_never_downloads_them(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    assert lpips_mean(torch.rand(2, 3, 64, 64)) is None


def test_lpips_with_its_weights_at_hand(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    file = SHARED / "weights" / "squeezenet1_1.safetensors"
    if not file.exists():
        pytest.skip("SqueezeNet's weights are not beside the checkout")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    os.makedirs(lpips_weights().parent)
    torch.save(load_file(file), lpips_weights())
    torch.manual_seed(0)
    base = torch.rand(1, 3, 64, 64)
    near, far = (base + scale * torch.randn(1, 3, 64, 64) for scale in (0.02, 0.3))
    small = lpips_mean(torch.cat([base, near]).clamp(0, 1))
    large = lpips_mean(torch.cat([base, far]).clamp(0, 1))
    assert small is not None
    assert large is not None
    assert 0 < small < large
    assert lpips_mean(torch.cat([base, base])) == pytest.approx(0, abs=1e-6)
