"""2,000 points of a SqueezeNet hull against a bare batched forward of 2,000 images.

    python benchmarks/sampling.py [samples]

Weights and corners are random: the cost does not depend on them. The two are timed in turns, so
that a busy machine slows both; the smallest time of each counts.
"""

import sys
import time

import torch
from torchvision.models import squeezenet1_1

from feature_collisions import Hull

samples, batch, rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2000, 32, 3
torch.manual_seed(0)
model = squeezenet1_1().eval().requires_grad_(False)
corners = torch.rand(5, 3, 224, 224)
summary = {"target_class": 0, "distance_scale": 255}
hull = Hull(
    model, "features.12.squeeze", corners, corners[0], corners[1], torch.arange(5), summary, batch
)
images = torch.rand(batch, 3, 224, 224)


def bare() -> None:
    with torch.inference_mode():
        for _ in range(samples // batch):
            model(images)


def sample() -> None:
    hull.sample(samples // batch * batch)


times: dict[str, list[float]] = {"bare": [], "sample": []}
for _ in range(rounds):
    for measured in (bare, sample):
        start = time.perf_counter()
        measured()
        times[measured.__name__].append(time.perf_counter() - start)
best = {name: min(found) for name, found in times.items()}
print({name: [round(t, 2) for t in found] for name, found in times.items()})
print(f"{samples} points: {best['sample']:.2f} s; bare forwards {best['bare']:.2f} s; "
      f"ratio {best['sample'] / best['bare']:.3f}")  # fmt: skip
