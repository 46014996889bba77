"""A step on one image of SqueezeNet: ours, a bare loop, and plenoptic's Metamer where it is there.

    python benchmarks/metamer.py                # pip install plenoptic, to have the third

All three start from the same image, match the same pre-activations of the last convolution (random
weights; what a step costs does not depend on them) and use Adam. What the machine does beside only
adds time, so the smallest of interleaved rounds is compared with the smallest. Per image, with five
corners at once, too.
"""

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models

from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import TargetLayer
from feature_collisions.networks.torchvision_models import Classifier
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LossSettings, OptimizerSettings, StopSettings

LAYER = "classifier.1"
RATE = 0.01


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = models.get_model("squeezenet1_1", weights=None)
    model = Classifier(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
    model.requires_grad_(False)
    initial, target = torch.rand(2, 3, 224, 224)
    runs: dict[str, tuple[Callable[[int], object], int]] = {
        "ours, one corner": (ours(model, initial, target, 1), 1),
        "ours, five corners": (ours(model, initial, target, 5), 5),
        "a bare loop": (bare(model, initial, target), 1),
    }
    if peer := metamer(model, initial, target):
        runs["plenoptic's Metamer"] = (peer, 1)
    best = dict.fromkeys(runs, float("inf"))
    for number in range(arguments.rounds + 1):  # the first round warms up
        for name, (run, images) in runs.items():
            started = time.perf_counter()
            run(arguments.steps)
            seconds = (time.perf_counter() - started) / arguments.steps / images
            if number:
                best[name] = min(best[name], seconds)
    for name, seconds in best.items():
        print(f"{name}: {1e3 * seconds:.1f} ms per image and step")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


def ours(model: nn.Module, initial: Tensor, target: Tensor, corners: int) -> Callable[[int], None]:
    """Steps of the search, as a run takes them: L_pos, L_neg, Adam, projection to [0, 1]."""
    search = Search(
        model, LAYER, initial, target, range(corners),
        loss=LossSettings.paper(100.0, 10.0, positive_form="half_square", rectified=True),
        optimizer=OptimizerSettings("adam", RATE, square_average=0.999),
        stop=StopSettings(None, 0, probability=None),
        trainer={"accelerator": "cpu"}, channels_last=True,
    )  # fmt: skip
    module = search.module
    optimizer = module.configure_optimizers()

    def run(steps: int) -> None:
        for step in range(steps):
            optimizer.zero_grad()
            module._descend(step, Tensor.backward)
            optimizer.step()
            module.parameterisation.project()

    return run


def bare(model: nn.Module, initial: Tensor, target: Tensor) -> Callable[[int], None]:
    """The loop one would write: the mean square of the difference, Adam, a clamp."""
    cut = TargetLayer(trace(model, target.shape), LAYER)
    wanted = cut(target[None]).detach()
    image = initial[None].clone().requires_grad_()
    optimizer = torch.optim.Adam([image], RATE)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(cut(image), wanted).backward()
            optimizer.step()
            with torch.no_grad():
                image.clamp_(0, 1)

    return run


def metamer(model: nn.Module, initial: Tensor, target: Tensor) -> Callable[[int], object] | None:
    """Steps of plenoptic's synthesis; it minimises the mean square, too, and a penalty on range."""
    try:
        import plenoptic  # type: ignore[import-not-found]
    except ImportError as error:
        print(f"plenoptic is left out ({error})")
        return None

    class Cut(nn.Module):
        """Its models give (B, C, ...)."""

        def __init__(self) -> None:
            super().__init__()
            self.cut = TargetLayer(trace(model, target.shape), LAYER).eval()

        def forward(self, images: Tensor) -> Tensor:
            return self.cut(images).flatten(1)[:, None]

    synthesis = plenoptic.Metamer(target[None], Cut().requires_grad_(False).eval())
    synthesis.setup(initial[None], optimizer_kwargs={"lr": RATE})

    def run(steps: int) -> object:
        return synthesis.synthesize(steps, stop_criterion=0.0)

    return run


if __name__ == "__main__":
    main()
