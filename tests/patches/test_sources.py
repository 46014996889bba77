"""What the kernel gets as raw pointers: made right, or refused with one message."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from feature_collisions.errors import SettingError
from feature_collisions.patches import composite_kernel
from feature_collisions.patches.composite import Sources, blend, layers
from feature_collisions.search.parameterisations import PatchComposite


def parts() -> dict[str, Any]:
    """Nine windows of 10x10 pixels in 16x16; those at the border stick out."""
    torch.manual_seed(3)
    starts = torch.arange(0, 9, 4) - 1
    top, left = starts.repeat_interleave(3), starts.repeat(3)
    return {"windows": torch.rand(9, 3, 10, 10), "top": top, "left": left, "size": (16, 16)}


def logits_of(sources: Sources) -> Tensor:
    torch.manual_seed(4)
    return torch.randn(2, len(sources.top), 10, 10)


EQUAL: dict[str, Any] = {
    "channels last": lambda p: {"windows": p["windows"].to(memory_format=torch.channels_last)},
    "a view": lambda p: {"windows": torch.rand(9, 3, 10, 20).copy_(
        p["windows"].repeat_interleave(2, 3))[..., ::2]},
    "float64": lambda p: {"windows": p["windows"].double()},
    "int32": lambda p: {"top": p["top"].int(), "left": p["left"].int()},
    "int8": lambda p: {"top": p["top"].to(torch.int8)},
    "every other place": lambda p: {"left": p["left"].repeat_interleave(2)[::2]},
}  # fmt: skip


@pytest.mark.parametrize("change", EQUAL)
def test_other_layouts_and_types_of_the_same_numbers_make_the_same_images(change: str) -> None:
    given = parts()
    plain = Sources(**given)
    other = Sources(**(given | EQUAL[change](given)))
    logits = logits_of(plain)
    for found, expected in zip(blend(logits, other), blend(logits, plain), strict=True):
        assert torch.equal(found, expected)
    composite = PatchComposite(other, 2).to(memory_format=torch.channels_last)
    for precise in (composite, composite.double()):  # the kernel, and plain PyTorch
        images = precise().float()
        torch.testing.assert_close(images, PatchComposite(plain, 2)(), atol=1e-6, rtol=0)


def test_logits_and_gradients_of_any_layout_are_taken() -> None:
    sources = Sources(**parts())
    logits = logits_of(sources).requires_grad_()
    strided = logits.detach().to(memory_format=torch.channels_last).requires_grad_()
    slope = torch.rand(2, 3, 16, 16)
    (expected,) = torch.autograd.grad(blend(logits, sources)[0], logits, slope)
    for value in (strided, logits):
        for grad in (slope, slope.to(memory_format=torch.channels_last)):
            (found,) = torch.autograd.grad(blend(value, sources)[0], value, grad)
            assert torch.equal(found, expected)
    none = blend(logits[:0], sources)
    assert [tuple(part.shape) for part in none] == [(0, 3, 16, 16), (0,)]


REFUSED: dict[str, tuple[Any, str]] = {
    "no window": (lambda p: {key: p[key][:0] for key in ("windows", "top", "left")},
                  r"windows: must be at least one window, .* is torch.float32 \(0, 3, 10, 10\)"),
    "oblong": (lambda p: {"windows": p["windows"][..., :9]}, r"windows: must .* \(9, 3, 10, 9\)"),
    "8 bits": (lambda p: {"windows": (255 * p["windows"]).byte()}, "windows: must .* torch.uint8"),
    "255": (lambda p: {"windows": 255 * p["windows"]}, r"windows: pixels must be in \[0, 1\]"),
    "NaN": (lambda p: {"windows": p["windows"].log().log()}, r"are in \[nan, nan\]"),
    "too few": (lambda p: {"top": p["top"][:8]}, r"top: must be whole numbers \(9,\), .*\(8,\)"),
    "floating": (lambda p: {"left": p["left"].float()}, "left: must be whole numbers"),
    "above": (lambda p: {"top": p["top"] - 9}, "window 0, 10x10 pixels at row -10, column -1"),
    "left": (lambda p: {"left": p["left"] - 9}, "window 0, .* at row -1, column -10, is outside"),
    "right": (lambda p: {"left": p["left"] + 10}, "window 2, .* at row -1, column 17, is"),
    "far": (lambda p: {"top": p["top"] + 2**62}, "is outside the composite of 16x16"),
    "a gap": (lambda p: {"top": p["top"].clamp_min(3)}, "no window covers row 0, column 0 of the"),
    "nothing": (lambda p: {"size": (0, 16)}, r"size=\(0, 16\): must be \(H, W\)"),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_sources_that_make_no_composite_are_refused_when_they_are_made(change: str) -> None:
    given = parts()
    made, message = REFUSED[change]
    with pytest.raises(SettingError, match=message):
        Sources(**(given | made(given)))


def test_logits_of_another_shape_or_type_are_refused() -> None:
    sources = Sources(**parts())
    logits = logits_of(sources)
    for other in (logits[:, 1:], logits[..., :9], logits[0]):
        for planes in (None, layers(sources)):
            with pytest.raises(ValueError, match=r"logits: must be \(K, 9, 10, 10\)"):
                blend(other, sources, planes)
    for kind in (torch.float64, torch.float16):
        with pytest.raises(ValueError, match=r"logits: the kernel takes float32 on the CPU"):
            blend(logits.to(kind), sources)


@pytest.mark.parametrize("away", [-5000, -27, -10, 16, 17, 40, 5000])
@pytest.mark.parametrize("axis", ["top", "left"])
def test_a_window_outside_the_image_is_neither_read_nor_written(axis: str, away: int) -> None:
    """`Sources` refuses it; the kernel, given it all the same, leaves it out."""
    given = parts()
    sources = Sources(**given)
    logits = logits_of(sources)
    places = {name: torch.cat([given[name], given[name][:1]]) for name in ("top", "left")}
    places[axis][-1] = away
    more = torch.cat([logits, logits[:, :1]], 1).requires_grad_()
    windows = torch.cat([given["windows"], given["windows"][:1]])
    images, variation = composite_kernel.Blend.apply(more, windows, *places.values(), (16, 16))
    expected = blend(logits, sources)
    assert torch.equal(images, expected[0])
    assert torch.equal(variation, expected[1])
    (gradient,) = torch.autograd.grad(images.square().sum() + variation.sum(), more)
    assert (gradient[:, -1] == 0).all()


def test_sources_are_checked_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    composite = PatchComposite(Sources(**parts()), 2)

    def checked(self: Sources) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(Sources, "__post_init__", checked)
    composite.penalised()
    with pytest.raises(AssertionError, match="checked again"):
        replace(composite.sources, size=(15, 15))
