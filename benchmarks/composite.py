"""A composite with R(P), forward and backward, beside the network it feeds.

`python benchmarks/composite.py [--corners 5] [--rounds 10]` compares, in turn and in one process:
the kernel, plain PyTorch on planes, what a grid of logits adds, and SqueezeNet 1.1 forward and
backward on the same images. Each figure is the smallest of its rounds; random weights and sources.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models import squeezenet1_1

from feature_collisions.commands.start import keep_freed_memory
from feature_collisions.patches.composite import Sources, blend, layers
from feature_collisions.search.parameterisations import PatchComposite


def paper_sources() -> Sources:
    """625 windows of 64x64 pixels, pasted as the paper's are."""
    starts = torch.arange(0, 224 - 56 + 1, 7) - 4
    top, left = starts.repeat_interleave(25), starts.repeat(25)
    return Sources(torch.rand(625, 3, 64, 64), top, left, (224, 224))


def seconds_of(work: Callable[[], Tensor]) -> float:
    """Forward, by `work`, and backward."""
    start = time.perf_counter()
    work().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corners", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    keep_freed_memory()  # as train.py does
    torch.manual_seed(0)
    sources = paper_sources()
    planes = layers(sources)
    pixel = PatchComposite(sources, arguments.corners)
    grid = PatchComposite(sources, arguments.corners, 16)
    network = squeezenet1_1().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = pixel().detach().contiguous(memory_format=torch.channels_last).requires_grad_()

    def total(images: Tensor, variation: Tensor) -> Tensor:
        return images.square().sum() + 1e-3 * variation.sum()

    works: dict[str, Callable[[], Tensor]] = {
        "kernel, a logit a pixel": lambda: total(*pixel.penalised()),
        "kernel, a 16x16 grid a window": lambda: total(*grid.penalised()),
        "plain PyTorch, on planes": lambda: total(*blend(pixel.control, sources, planes)),
        "SqueezeNet 1.1": lambda: network(images).sum(),
    }
    best = dict.fromkeys(works, float("inf"))
    for turn in range(arguments.rounds):
        for name, work in works.items():
            if name.startswith("plain") and turn > 2:
                continue  # seconds each
            for parameter in (pixel.control, grid.control, images):
                parameter.grad = None
            best[name] = min(best[name], seconds_of(work))
    for name, seconds in best.items():
        ratio = seconds / best["SqueezeNet 1.1"]
        print(f"{name:32s} {1e3 * seconds:8.1f} ms  {ratio:6.2f} of the network")


if __name__ == "__main__":
    main()
