"""What first layers hide: exact hulls of whole networks, a survey of stems, hybrid pictures.

Hulls, near photographs and far: sizes, processor seconds, and how much the layer's values and the
outputs of random mixes differ from the target's, in float64, float32 and 8 bits, whose pixels are
rounded apart and together; and the size that no five points of the polytope exceed.
Run: PYTHONPATH=DIR python benchmarks/exact.py hulls --networks MODULE:NAME:SIZE NAME --root DIR
A name alone is timm's, with random weights, which the theorem allows.
Survey: python benchmarks/exact.py survey FIGURE     Pictures: ... pictures FIGURE --networks ...
Lattice: ... lattice --networks ...: how nearly exact 8-bit pixels are, by how far they may move.
"""

import argparse
import importlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import timm
import torch
from torch import Tensor, nn

from feature_collisions.data.datasets import load_data
from feature_collisions.data.image_folder import ImageFolder
from feature_collisions.data.images import pooled_distance
from feature_collisions.exact import polytope as polytope_module
from feature_collisions.exact.eight_bits import nearest_plane, reduced, with_exact_pngs
from feature_collisions.exact.exact_hull import ExactCorners
from feature_collisions.exact.first_layer import first_layer
from feature_collisions.exact.nearest import Matrix
from feature_collisions.exact.polytope import Polytope, polytope_of
from feature_collisions.graph.activations import IDENTITY
from feature_collisions.graph.graph import trace
from feature_collisions.settings.train import DataSettings
from feature_collisions.simplex import dirichlet

STEMS = (
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224",
    "vit_small_patch32_224", "vit_base_patch32_224", "vit_base_patch32_clip_224",
    "mixer_s32_224", "mixer_b16_224", "gmlp_ti16_224", "resmlp_12_224", "pit_ti_224",
    "swin_tiny_patch4_window7_224", "convnext_atto", "edgenext_xx_small", "pvt_v2_b0",
    "poolformer_s12", "lcnet_035", "mobilenetv2_100", "resnet18", "vgg11",
)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("hulls", "survey", "pictures", "lattice"))
    parser.add_argument("figure", nargs="?")
    parser.add_argument("--networks", nargs="+", default=["vit_tiny_patch16_224"])
    parser.add_argument("--root", help="a folder of images, one folder a class")
    parser.add_argument("--images", type=int, nargs=6, default=(0, 1, 2, 3, 4, 5),
                        help="the target, and five photographs")  # fmt: skip
    parser.add_argument("--mixes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="in which far corners are pushed")
    return parser.parse_args()


def network_of(name: str) -> tuple[nn.Module, int]:
    """A network and the size of its images."""
    torch.manual_seed(0)
    if name == "digits":
        return digits(), 28
    if ":" in name:
        module, function, size = name.split(":")
        return getattr(importlib.import_module(module), function)().eval(), int(size)
    model = timm.create_model(name).eval()
    return model, model.pretrained_cfg["input_size"][-1]


def digits() -> nn.Sequential:
    """The tutorial's network with a strided stem: 8 values of each square of 4x4 pixels."""
    rest = nn.ReLU(), nn.Flatten(), nn.Linear(8 * 49, 64), nn.ReLU(), nn.Linear(64, 10)
    return nn.Sequential(nn.Conv2d(1, 8, 4, stride=4), *rest).eval()


def problem_of(
    name: str, arguments: argparse.Namespace
) -> tuple[nn.Module, Tensor, Sequence[Tensor]]:
    """A network, the target and the photographs (6, C, H, W), and the data set that they are of."""
    model, size = network_of(name)
    images: Sequence[Tensor] = load_data(DataSettings("digits")).test
    if name != "digits":
        images = ImageFolder(DataSettings("image_folder", arguments.root, size))
    return model, torch.stack([images[k] for k in arguments.images]), images


@torch.no_grad()
def change(model: nn.Module, target: Tensor, corners: Tensor, mixes: int) -> float:
    """The most that an output of a mix differs from the target's, over the target's largest."""
    weights = dirichlet(mixes, len(corners), torch.Generator().manual_seed(0)).to(corners)
    expected, most = model(target[None].to(corners)), 0.0
    for part in torch.cat([torch.eye(len(corners)).to(corners), weights]).split(20):
        images = (part @ corners.flatten(1)).view(-1, *target.shape)
        most = max(most, float((model(images) - expected).abs().max()))
    return most / float(expected.abs().max())


def at_most(polytope: Polytope, given: Tensor, kind: str, count: int = 5) -> float:
    """A distance that the mean of `count` points of the polytope's distances is at most.

    The nearest points of a convex set are no further apart than what they are nearest to, once that
    is projected onto the set's span. Points of the box are in a ball of radius sqrt(n) / 2, whose
    slice by the equations is a smaller ball; K points of one of radius r have a mean squared
    distance of at most 2 K / (K - 1) r^2.
    """
    start = given[:1] - 0.5 if kind == "far" else given[1:]
    left = start.flatten(1).double()
    for problem in polytope.problems:
        assert isinstance(problem.rows, Matrix)
        rows = problem.rows.weight[problem.equal]
        part = left[:, problem.pixels]
        seen = part @ rows.mT @ rows
        left[:, problem.pixels] = seen if kind == "far" else part - seen
    if kind == "near":
        return float(torch.pdist(left).mean())
    radius = left.shape[1] / 4 - left.square().sum()
    return float(2 * count / (count - 1) * radius) ** 0.5


def hulls(arguments: argparse.Namespace) -> None:
    columns = ("network", "hidden of directions", "corners", "size", "at most",
               "of 2x2, 4x4, 8x8 averages", "processor s",
               "||W (c - t)||: float64, 32, 8 bits apart, together",
               "outputs: float64, 32, 8 bits apart, together")  # fmt: skip
    polytope_module._ROUNDS = arguments.rounds
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for name in arguments.networks:
        model, given, images = problem_of(name, arguments)
        sample = torch.stack([images[k] for k in range(0, len(images), -(-len(images) // 100))])
        for kind, towards in (("near", given[1:]), ("far", 5)):
            problem = ExactCorners(model, given[0], towards)
            started, polytope = time.process_time(), problem.polytope
            if kind == "near":
                found, _ = polytope.nearest(given[1:].flatten(1).double())
            else:
                found, _ = polytope.apart(5, torch.Generator().manual_seed(0))
            whole = with_exact_pngs(polytope, found)
            seconds = time.process_time() - started
            shape = (-1, *given[0].shape)
            saved, apart, png = (
                whole.float(),
                *((255 * each).round() / 255 for each in (found, whole)),
            )
            sets = {"64": whole, "32": saved, "apart": apart, "together": png}
            sets = {key: each.view(shape) for key, each in sets.items()}
            saved = sets["32"]
            layer, wide = problem.first, network_of(name)[0].double()
            residuals = [
                float(layer.residual(each, problem.features).max()) for each in sets.values()
            ]
            most = at_most(polytope, given, kind) / pooled_distance(sample, 1)
            sizes = [pooled_distance(saved, s) / pooled_distance(sample, s) for s in (1, 2, 4, 8)]
            changes = [
                change(model if key == "32" else wide, given[0], each, arguments.mixes)
                for key, each in sets.items()
            ]
            cells = (
                name, f"{polytope.hidden:,} of {given[0].numel():,}", kind, f"{sizes[0]:.2f}",
                f"{most:.2f}",
                ", ".join(f"{each:.2f}" for each in sizes[1:]), f"{seconds:.1f}",
                ", ".join(f"{each:.1e}" for each in residuals),
                ", ".join(f"{each:.1e}" for each in changes),
            )  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)


def lattice(arguments: argparse.Namespace) -> None:
    """Corners near photographs, whose pixels are rounded together at several costs of a level."""
    print("| network | s | error | levels | windows in range |\n| --- | --- | --- | --- | --- |")
    for name in arguments.networks:
        model, given, _ = problem_of(name, arguments)
        polytope = ExactCorners(model, given[0], given[1:]).polytope
        (problem,) = polytope.problems
        assert problem.given is not None
        rows = problem.given.matrix
        rows = rows / np.linalg.norm(rows, axis=1).mean()
        found, _ = polytope.nearest(given[1:].flatten(1).double())
        at = 255 * found[:, problem.pixels].flatten(0, 1).mT.numpy()
        plain = np.square(rows @ (np.rint(at) - at)).sum(0)
        for spread in (0.1, 0.01, 3e-3, 3e-4, 3e-5, 3e-6):
            metric = np.vstack([rows, spread * np.eye(len(at))])
            whole = nearest_plane(metric, reduced(metric), at)
            inside = (whole >= 0).all(0) & (whole <= 255).all(0)
            left = np.square(rows @ (whole - at)).sum(0)
            error = (left[inside].mean() / plain[inside].mean()) ** 0.5
            levels = np.square(whole - at).mean() ** 0.5
            figures = f"{spread:g} | {error:.2g} | {levels:.2g} | {inside.mean():.0%}"
            print(f"| {name} | {figures} |", flush=True)


def survey(arguments: argparse.Namespace) -> None:
    found: list[tuple[str, float, str]] = []
    for name in STEMS:
        model, size = network_of(name)
        image = torch.rand(3, size, size)
        layer = first_layer(trace(model, image.shape))
        hidden = polytope_of(replace(layer, activation=IDENTITY), image).hidden
        found.append((name, hidden / image.numel(), layer.name))
        print(f"| {name} | {layer.name} | {len(layer.bias):,} | {hidden / image.numel():.1%} |",
              flush=True)  # fmt: skip
    found.sort(key=lambda row: row[1])
    figure, axes = plt.subplots(figsize=(7, 5.5), layout="constrained")
    axes.barh([name for name, *_ in found], [100 * share for _, share, _ in found], color="#4878a8")
    axes.set_xlabel("directions of the pixels that the first layer hides, %")
    axes.set_xlim(0, 100)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.figure, dpi=110)


@torch.no_grad()
def pictures(arguments: argparse.Namespace) -> None:
    (name,) = arguments.networks
    model, given, images = problem_of(name, arguments)
    found, _ = ExactCorners(model, given[0], given[1:]).polytope.nearest(
        given[1:].flatten(1).double()
    )
    corners = found.float().view(given[1:].shape)
    probabilities = model(torch.cat([given[:1], corners])).softmax(1)
    figure, axes = plt.subplots(2, 6, figsize=(9, 3.5), layout="constrained")
    for k, column in enumerate(axes.T):
        column[0].imshow(given[k].permute(1, 2, 0))
        column[0].set_title("target" if k == 0 else f"photograph {k}", fontsize=9)
        column[1].imshow((given[0] if k == 0 else corners[k - 1]).permute(1, 2, 0))
        best = int(probabilities[k].argmax())
        names = getattr(images, "class_names", ())
        own = names[best] if len(names) == len(probabilities[k]) else best
        column[1].set_xlabel(f"{own}\n{probabilities[k, best]:.5f}", fontsize=9)
        for each in column:
            each.set(xticks=[], yticks=[])
    figure.savefig(arguments.figure, dpi=110)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    chosen = parse()
    {"hulls": hulls, "survey": survey, "pictures": pictures, "lattice": lattice}[chosen.task](
        chosen
    )
