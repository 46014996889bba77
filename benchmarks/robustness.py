"""Accuracy, clean and against PGD, of a survey's networks: columns for `survey.extra`.

Projected gradient ascent on the cross-entropy (Madry et al. 2018), in an L-infinity ball, from a
random point of it: an upper bound on what the accuracy is against the strongest adversary.
Run: PYTHONPATH=DIR python benchmarks/robustness.py --networks MODULE:NAME ... --root DIR > FILE.csv
"""

import argparse
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.settings.train import DataSettings

STEPS, BATCH = 20, 250


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", required=True)
    parser.add_argument("--root", required=True, help="folders of images, one for each class")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epsilon", type=float, default=2.0, help="of 255")
    parser.add_argument("--every", type=int, default=1, help="4: every fourth image")
    return parser.parse_args()


def attacked(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Images (B, C, H, W) within `epsilon` of `images`, where the loss is large."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(images.shape, generator=generator) * 2 - 1
    found = (images + epsilon * noise).clamp(0, 1)
    for _ in range(STEPS):
        found.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(found), labels), found)
        found = found.detach() + 2.5 * epsilon / STEPS * gradient.sign()
        found = found.clamp(images - epsilon, images + epsilon).clamp(0, 1)
    return found


def main() -> None:
    arguments = parse()
    images = ImageFolder(DataSettings("image_folder", arguments.root, arguments.size))
    chosen = torch.arange(0, len(images.labels), arguments.every)
    print(f"network,test accuracy,robust accuracy at {arguments.epsilon:g}/255")
    for name in arguments.networks:
        module, _, function = name.partition(":")
        model = getattr(importlib.import_module(module), function)().eval().requires_grad_(False)
        clean = robust = 0
        for part in chosen.split(BATCH):
            pixels, labels = images[part], images.labels[part]
            found = attacked(model, pixels, labels, arguments.epsilon / 255)
            right = model(pixels).argmax(1) == labels
            clean += int(right.sum())
            robust += int((right & (model(found).argmax(1) == labels)).sum())
        print(f"{name},{clean / len(chosen):.4f},{robust / len(chosen):.4f}", flush=True)


if __name__ == "__main__":
    main()
