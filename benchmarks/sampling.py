"""Points of a SqueezeNet hull against bare batched forwards, at several batch sizes and layouts.

    python benchmarks/sampling.py [--samples 256] [--rounds 3]

Weights and corners are random: the cost does not depend on them. All are timed in turns; the
smallest time of each counts. Where others use the machine too, the processor's seconds, of all
threads, tell more than the clock's.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torchvision.models import squeezenet1_1

from feature_collisions.commands.start import keep_freed_memory
from feature_collisions.hull.hull import Hull

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def bare(layout: torch.memory_format, batch: int, samples: int) -> Callable[[], None]:
    """`samples` forward passes, `batch` at a time."""
    torch.manual_seed(0)
    model = squeezenet1_1().eval().requires_grad_(False).to(memory_format=layout)
    images = torch.rand(batch, 3, 224, 224).contiguous(memory_format=layout)

    @torch.inference_mode()
    def work() -> None:
        for _ in range(samples // batch):
            model(images)

    return work


def hull_of(layout: torch.memory_format) -> Hull:
    torch.manual_seed(0)
    model = squeezenet1_1().eval().requires_grad_(False).to(memory_format=layout)
    corners = torch.rand(5, 3, 224, 224).contiguous(memory_format=layout)
    summary = {"target_class": 0, "distance_scale": 255}
    units = torch.arange(5)
    return Hull(model, "features.12.squeeze", corners, corners[0], corners[1], units, summary)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()  # as evaluate.py does
    samples = arguments.samples // 64 * 64
    works: dict[str, Callable[[], object]] = {
        f"bare, {name}, {batch} at once": bare(layout, batch, samples)
        for name, layout in LAYOUTS.items()
        for batch in (16, 32, 64)
    }
    hull = hull_of(torch.channels_last)
    sampled = f"Hull.sample, channels last, {hull.evaluator.batch_size} at once"
    works[sampled] = lambda: hull.sample(samples)
    clocks = (time.perf_counter, time.process_time)
    best = {name: [float("inf")] * 2 for name in works}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            starts = [clock() for clock in clocks]
            work()
            spent = [clock() - start for clock, start in zip(clocks, starts, strict=True)]
            best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    for name, (seconds, processor) in best.items():
        print(f"{name:42s} {samples / seconds:7.1f} points/s, {samples / processor:7.1f} a "
              "processor's second")  # fmt: skip
    floors = [min(each) for each in zip(*(best[n] for n in works if n != sampled), strict=True)]
    shares = [floor / own for floor, own in zip(floors, best[sampled], strict=True)]
    print("sampling reaches {:.2f}, by the processor's seconds {:.2f}, of the best".format(*shares))


if __name__ == "__main__":
    main()
