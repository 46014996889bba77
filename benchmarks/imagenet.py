"""What a step costs on an ImageNet network, random weights: `python benchmarks/imagenet.py`.

For each number of corners, in turn: one step of the search against the bare forward and backward
pass of the cut network on the same batch. What the machine does beside only adds time, so the
smallest of the rounds is compared with the smallest. The peak of the process's memory is so far.
"""

import argparse
import resource
import time

import torch
from torch import Tensor
from torchvision import models

from feature_collisions.networks.torchvision_models import Classifier
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LossSettings, OptimizerSettings, StopSettings

LAYERS = {"squeezenet1_1": "features.12.squeeze", "vgg16": "classifier.0"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=LAYERS, default="squeezenet1_1")
    parser.add_argument("--corners", type=int, nargs="+", default=[1, 5, 16, 64])
    parser.add_argument("--per-batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = models.get_model(arguments.network, weights=None)
    model = Classifier(network, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    initial, target = torch.rand(2, 3, 224, 224)
    for count in arguments.corners:
        search = Search(
            model, LAYERS[arguments.network], initial, target, range(count),
            loss=LossSettings.paper(100.0, 10.0, positive_form="half_square", rectified=True),
            optimizer=OptimizerSettings("adam", 4 / 255, square_average=0.999),
            stop=StopSettings(None, 0, probability=None), trainer={"accelerator": "cpu"},
            corners_per_batch=arguments.per_batch, channels_last=arguments.network != "vgg16",
        )  # fmt: skip
        measure(search, arguments.rounds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


def measure(search: Search, rounds: int) -> None:
    module = search.module
    optimizer = module.configure_optimizers()
    images = module.parameterisation().detach().clone()
    steps, floors = [], []
    for number in range(rounds + 1):  # the first round warms up
        started = time.perf_counter()
        optimizer.zero_grad()
        module._descend(number, Tensor.backward)
        optimizer.step()
        module.parameterisation.project()
        middle = time.perf_counter()
        for part in images.split(module.per_batch or len(images)):
            module.network(part.clone().requires_grad_()).sum().backward()
        steps.append(middle - started)
        floors.append(time.perf_counter() - middle)
    step, floor = min(steps[1:]), min(floors[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(
        f"{len(images)} corners: {1e3 * step:.0f} ms a step, {1e3 * step / len(images):.1f} a "
        f"corner; bare {1e3 * floor:.0f} ms; ratio {step / floor:.2f}; peak {peak:.1f} GiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
