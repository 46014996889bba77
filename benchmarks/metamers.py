"""Corners and metamers of one target: how far apart, at the same error, in the same time?

    python benchmarks/metamers.py --root DIR --weights FILE            # pip install plenoptic

One layer of SqueezeNet 1.1, one target, one thread. First our search, N corners; then plenoptic's
Metamer, N at once, in as much processor time or until their features are as near as our corners':
from noise, as it starts by default, and from our initial image with a little noise. A row says how
far apart the N pictures are over two images of the data set, as they are and after averaging 8x8
pixels, the largest feature error of the N, and of random mixes of them the largest feature error
and the share within `--tolerance`.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import plenoptic  # type: ignore[import-not-found]
import torch
from torch import Tensor, nn

from feature_collisions import LossSettings, StopSettings, find_corners
from feature_collisions.data.datasets import load_data
from feature_collisions.data.images import pooled_distance
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import TargetLayer
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.settings.search import OptimizerSettings
from feature_collisions.settings.train import ClassifierSettings, DataSettings
from feature_collisions.simplex import SAMPLERS

LAYER, RATE, CHUNK, NOISE = "features.12.squeeze", 0.01, 10, 0.05


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="data.root")
    parser.add_argument("--weights", required=True, help="classifier.weights")
    parser.add_argument("--initial", default="trimaran")
    parser.add_argument("--target", default="obelisk")
    parser.add_argument("--count", type=int, default=5, help="corners, and metamers")
    parser.add_argument("--steps", type=int, default=1500, help="of our search")
    parser.add_argument("--rate", type=float, default=0.12, help="of our search")
    parser.add_argument(
        "--peer-rates", type=float, nargs="+", default=[RATE], help="of plenoptic's"
    )
    parser.add_argument("--distance", type=float, default=0.0, help="loss.distance of ours")
    parser.add_argument("--tolerance", type=float, default=0.2, help="of mixes, over ||f(t)||")
    parser.add_argument("--mixes", type=int, default=200)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data = load_data(DataSettings("image_folder", arguments.root)).test
    settings = ClassifierSettings("squeezenet1_1", arguments.weights, LAYER)
    model = load_classifier(settings, data)  # type: ignore[arg-type]
    initial, target = (data.find(n, getattr(arguments, n)).image for n in ("initial", "target"))
    features = Features(model, target)
    unit = data.mean_distances((1, 8))

    started = time.process_time()
    hull = find_corners(
        model, LAYER, initial, target, range(arguments.count), channels_last=True,
        optimizer=OptimizerSettings(rate=arguments.rate), trainer={"precision": "32-true"},
        stop=StopSettings(max_steps=arguments.steps),
        loss=LossSettings(distance=arguments.distance),
    )  # fmt: skip
    seconds = time.process_time() - started
    line = float(features.error(hull.corners).max())

    def row(name: str, images: Tensor, spent: float) -> None:
        sampler, generator = SAMPLERS["dirichlet"], torch.Generator().manual_seed(0)
        weights = sampler(arguments.mixes, len(images), generator).to(images)
        mixes = torch.tensordot(weights, images, 1)
        errors, images = features.error(mixes), images.contiguous()
        within = float((errors <= arguments.tolerance).float().mean())
        sizes = ", ".join(f"{pooled_distance(images, n) / d:.3f}" for n, d in unit.items())
        print(
            f"{name}: apart {sizes} (8x8); error {float(features.error(images).max()):.3f}; mixes "
            f"at most {float(errors.max()):.3f}, {within:.0%} within {arguments.tolerance:g}; "
            f"{spent:.0f} s",
            flush=True,
        )

    row("ours", hull.corners, seconds)
    noise = torch.rand(arguments.count, *target.shape, generator=torch.Generator().manual_seed(0))
    near = (initial + NOISE * (noise - 0.5)).clamp(0, 1)
    for rate in arguments.peer_rates:
        for name, start in (("noise", noise), ("the same image", near)):
            found, spent = metamers(features, target, start, rate, line, seconds)
            row(f"plenoptic's from {name}, rate {rate:g}", found, spent)
    print(f"torch {torch.__version__}, plenoptic {plenoptic.__version__}, 1 thread")


class Features(nn.Module):
    """What later layers see, (B, 1, N) as plenoptic takes it."""

    def __init__(self, model: nn.Module, target: Tensor) -> None:
        super().__init__()
        self.cut = TargetLayer(trace(model, target.shape), LAYER).eval().requires_grad_(False)
        self.cut.to(memory_format=torch.channels_last)
        self.wanted = self(target[None])
        self.norm = self.wanted.norm()

    def forward(self, images: Tensor) -> Tensor:
        """f of images (B, C, H, W)."""
        found: Tensor = self.cut(images.contiguous(memory_format=torch.channels_last))
        return found.relu().flatten(1)[:, None]

    @torch.no_grad()
    def error(self, images: Tensor) -> Tensor:
        """||f(x) - f(t)|| over ||f(t)||, (B,)."""
        parts = [self(part) - self.wanted for part in images.split(16)]
        return torch.cat(parts).flatten(1).norm(dim=1) / self.norm


def metamers(
    features: Features, target: Tensor, start: Tensor, rate: float, line: float, seconds: float
) -> tuple[Tensor, float]:
    """Metamers (N, C, H, W) within the line, or what there is after the time; and the time."""
    model: Callable[[Tensor], Tensor] = features
    synthesis = plenoptic.Metamer(target.expand_as(start).contiguous(), model)
    synthesis.setup(start, optimizer_kwargs={"lr": rate})
    started = time.process_time()
    while time.process_time() - started < seconds:
        synthesis.synthesize(CHUNK, stop_criterion=0.0)
        if features.error(synthesis.metamer.detach()).max() <= line:
            break
    return synthesis.metamer.detach().clamp(0, 1), time.process_time() - started


if __name__ == "__main__":
    main()
