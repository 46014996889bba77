"""A composite with R(P), forward and backward, beside the network it feeds.

`python benchmarks/composite.py [--corners 5] [--rounds 10]` compares, in turn and in one process:
the kernel, plain PyTorch on planes, what a grid of logits adds, and SqueezeNet 1.1 forward and
backward on the same images; then, in two precisions, a whole step of `squeezenet_macro`'s search
and the bare network on as many images. Each figure is the smallest of its rounds; random weights
and sources.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models import squeezenet1_1

from feature_collisions.commands.start import keep_freed_memory
from feature_collisions.networks.torchvision_models import Classifier
from feature_collisions.patches.composite import Sources, blend, layers
from feature_collisions.search.find_corners import Search
from feature_collisions.search.parameterisations import PatchComposite
from feature_collisions.settings.search import LossSettings, OptimizerSettings, StopSettings


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
    for precision in ("32-true", "bf16-mixed"):
        step, bare = step_and_bare(sources, arguments.corners, arguments.rounds, precision)
        print(
            f"a step, {precision:10s} {1e3 * step:8.1f} ms; the bare network {1e3 * bare:8.1f} ms; "
            f"ratio {step / bare:.2f}"
        )


def step_and_bare(sources: Sources, corners: int, rounds: int, precision: str) -> tuple[float, ...]:
    """Seconds of one step with everything that `squeezenet_macro` has, and of the network alone."""
    model = Classifier(squeezenet1_1(), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    loss = LossSettings.paper(
        100.0, 0.03, 0.0005, "half_square", normalise=True, hull=2, distance=0.6, rectified=True
    )
    initial, target = torch.rand(2, 3, 224, 224)
    module = Search(
        model, "classifier.1", initial, target, range(corners), loss=loss,
        optimizer=OptimizerSettings("adam", 0.5, square_average=0.9),
        stop=StopSettings(None, 0, probability=None),
        trainer={"accelerator": "cpu", "precision": precision}, corners_per_batch=corners + 2,
        channels_last=True, sources=sources, grid=16,
    ).module  # fmt: skip
    optimizer = module.configure_optimizers()
    images = torch.rand(corners + 2, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    steps, bare = [], []
    for number in range(rounds + 1):  # the first round warms up
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            begin = time.perf_counter()
            optimizer.zero_grad()
            module._descend(number, Tensor.backward)
            optimizer.step()
            middle = time.perf_counter()
            module.network(images.clone().requires_grad_()).float().sum().backward()
            steps.append(middle - begin)
            bare.append(time.perf_counter() - middle)
    return min(steps[1:]), min(bare[1:])


if __name__ == "__main__":
    main()
