"""Bounds over pieces of a hull beside a peer's: `python benchmarks/bounds.py`.

The peer is bound-propagation (CROWN, plain PyTorch), where it is installed; it knows boxes, linear
layers and ReLU. In one process, on the same pieces of one hull of a random network 784-256-256-10:
the peer gets a linear layer in front, from the hull's free coordinates to the pixels, and each
piece's box in them. Each one's lower bound of the smallest margin, and pieces per second, both in
float64 and in one batch.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from feature_collisions.graph.graph import trace
from feature_collisions.proofs.bounds.over_pieces import Bounds
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.relaxation import rounding
from feature_collisions.proofs.piecewise import traced
from feature_collisions.simplex import dirichlet

try:
    from bound_propagation import BoundModelFactory, HyperRectangle
except ImportError:  # the peer is no dependency
    BoundModelFactory = None

CORNERS, CLASSES, PIECES = 5, 10, 32


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES)
    ).double()


def ours(model: nn.Sequential, corners: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """(P,) the least margin that is certain on each piece, by its weights (P, K, K)."""
    pieces = weights @ corners
    steps = steps_of(
        traced(trace(nn.Sequential(nn.Flatten(), model), corners.shape[1:])), corners[0]
    )
    bounds = Bounds(steps, pieces, rounding(CORNERS, pieces))
    return bounds.lower(len(steps) - 1, rows).amin((1, 2))


def theirs(model: nn.Sequential, corners: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """The same by the peer."""
    front, margins = nn.Linear(CORNERS - 1, 784), nn.Linear(CLASSES, len(rows), bias=False)
    front.weight.data, front.bias.data = (corners[1:] - corners[0]).T, corners[0]
    margins.weight.data = rows
    bound = BoundModelFactory().build(nn.Sequential(front, *model, margins).double())
    free = weights[:, :, 1:]
    boxes = HyperRectangle(free.amin(1), free.amax(1))
    found: Tensor = bound.crown(boxes).concretize().lower.amin(1)
    return found


def measure(bound: Callable[..., Tensor], *given: object) -> tuple[Tensor, float]:
    started = time.perf_counter()
    found = bound(*given)
    return found, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    model = network()
    generator = torch.Generator().manual_seed(1)
    corners = 0.25 + 0.5 * torch.rand(CORNERS, 784, generator=generator).double()
    ways = {"ours": ours} | ({"bound-propagation": theirs} if BoundModelFactory else {})
    with torch.no_grad():
        best = int(model(corners.mean(0)).argmax())
        rows = torch.eye(CLASSES).double()
        rows = (rows[best] - rows)[[k for k in range(CLASSES) if k != best]]
        for scale in (1.0, 0.3, 0.1, 0.03):
            at = dirichlet(PIECES, CORNERS, generator)[:, None]
            weights = scale * torch.eye(CORNERS).double() + (1 - scale) * at
            true = (model(weights @ corners) @ rows.T).amin((1, 2)).mean()
            print(f"scale {scale}: least margin at the vertices {true:.3f} on average")
            for name, bound in ways.items():
                found = [measure(bound, model, corners, weights, rows) for _ in range(rounds)]
                seconds = statistics.median(taken for _, taken in found)
                margin = found[0][0].mean()
                print(f"  {name}: {margin:.3f}, {PIECES / seconds:.0f} pieces a second")
    if not BoundModelFactory:
        print("bound-propagation is not installed: nothing to compare with")


if __name__ == "__main__":
    main()
