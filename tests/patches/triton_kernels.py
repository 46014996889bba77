"""Run by test_composite_triton.py: on the CPU under TRITON_INTERPRET=1, or with `cuda` on a GPU."""

import sys

import torch

from feature_collisions.patches import composite_triton
from feature_collisions.patches.composite import Sources, blend, layers

CASES = [
    # windows' side, rows and columns, size, channels, corners
    (5, [(0, 0), (0, 4), (4, 0), (4, 4), (2, 3)], (9, 9), 3, 2),
    (6, [(-2, -3), (-2, 2), (-1, 5), (3, -3), (3, 2), (2, 6)], (8, 10), 1, 3),  # they stick out
    (16, [(r, c) for r in (-2, 3) for c in (-3, 8, 20, 31)], (10, 45), 2, 1),  # two tiles
]


DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cpu"


def results(work, logits, weights):
    logits = logits.clone().requires_grad_()
    images, variation = work(logits)
    ((images * weights[0]).sum() + (variation * weights[1]).sum()).backward()
    return images.detach(), variation.detach(), logits.grad


for side, places, size, channels, corners in CASES:
    torch.manual_seed(0)
    top, left = torch.tensor(places).unbind(1)
    windows = torch.rand(len(places), channels, side, side).to(DEVICE)
    sources = Sources(windows, top, left, size)
    logits = 3 * torch.randn(corners, len(places), side, side).to(DEVICE)
    weights = torch.randn(corners, channels, *size).to(DEVICE), torch.rand(corners).to(DEVICE)
    tiles = composite_triton.tiles(sources.top, sources.left, side, size)

    def kernel(logits, sources=sources, tiles=tiles, size=size):
        given = (sources.windows, sources.top, sources.left, size, tiles)
        return composite_triton.Blend.apply(logits, *given)

    found = results(kernel, logits, weights)
    double = Sources(sources.windows.double(), top, left, size)
    expected = results(
        lambda logits, double=double: blend(logits, double, layers(double).to(DEVICE)),
        logits.double(),
        [weight.double() for weight in weights],
    )
    for name, one, other in zip(("images", "R", "gradient"), found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5, msg=f"{name} {side}")
    logits[0, 0, side // 2, side // 2] = torch.nan
    images = kernel(logits)[0]
    assert images[0].isnan().any()
    print("case", side, "agrees")
