"""False proofs among random networks whose answer is known, by dense sampling: there must be none.

    OMP_NUM_THREADS=1 python benchmarks/stress.py --networks 200

Each network has one to three layers of random kinds (ReLU, clipped, max pool, smooth activations,
attention, layer norm, gates, batch norm, a sum past a layer) and a hull of two to four corners. The
bias of its class is set such that the least margin of 5,000 points is a little above 0, or below
it and above at the corners where a network allows that. A proof is false where a point has another
class, or a smaller margin than is stated.
"""

import argparse
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions.graph.activations import RELU
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target import TargetFeatures
from feature_collisions.proofs.problem import Problem
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.simplex import dirichlet, mixes

_POINTS = 5000


class Attention(nn.Module):
    """Softmax attention over four tokens of four numbers, behind a layer norm, past a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 16) to as many."""
        tokens = x.unflatten(1, (4, 4))
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, -1)
        return (tokens + self.out(F.scaled_dot_product_attention(q, k, v))).flatten(1)


class Gate(nn.Module):
    """Numbers times a sigmoid of their mean."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 16) to as many."""
        return x * torch.sigmoid(3 * x.mean(1, keepdim=True))


class Pooled(nn.Module):
    """The larger of neighbours, beside what they were."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 16) to as many."""
        largest = F.max_pool2d(x.unflatten(1, (1, 4, 4)), 2).flatten(1)
        return torch.cat([largest, x[:, 4:]], 1)


class Past(nn.Module):
    """A layer and what goes past it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 16) to as many."""
        return x + self.layer(x).relu()


KINDS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.LeakyReLU, nn.ELU, Attention,
    Gate, Pooled, Past, lambda: nn.LayerNorm(16), lambda: nn.BatchNorm1d(16),
)  # fmt: skip


def network(seed: int) -> tuple[nn.Sequential, list[str]]:
    """One of 16 numbers and three classes, and what its layers are."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for number in torch.randint(len(KINDS), (1 + seed % 3,)).tolist():
        layers += [nn.Linear(16, 16), KINDS[number]()]
    layers.append(nn.Linear(16, 3))
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model, [type(layer).__name__ for layer in layers[2:-1:2]]


@torch.no_grad()
def problem(seed: int, model: nn.Sequential) -> tuple[Problem, float]:
    """Corners whose least margin is near 0, and that margin at many points."""
    apart = 0.1 + 0.3 * torch.rand(())
    corners = torch.rand(1, 1, 4, 4) + apart * torch.randn(2 + seed % 3, 1, 4, 4)
    drawn = dirichlet(_POINTS, len(corners), torch.Generator().manual_seed(seed))
    points = mixes(torch.cat([torch.eye(len(corners)), drawn]), corners)
    target_class = int(model(corners.mean(0, keepdim=True)).argmax())

    def margins() -> Tensor:
        logits = model.double()(points.double())
        others = torch.arange(3) != target_class
        return (logits[:, target_class, None] - logits[:, others]).amin(1)

    last = model[-1]
    assert isinstance(last, nn.Linear)
    found = margins()
    low, high, at_corners = map(float, (found.min(), found.max(), found[: len(corners)].min()))
    level = low - 0.1 * (high - low) if seed % 2 else (low + at_corners) / 2
    if level == low:  # the least is at a corner
        level += 0.05 * (high - low)
    last.bias[target_class] -= level
    model.float()
    least = float(margins().min())
    model.float()
    graph = trace(model, corners.shape[1:])
    features = TargetFeatures(torch.ones(3), RELU)
    names = tuple(range(len(corners)))
    return Problem(graph, "", corners, corners[0], features, target_class, 0.2, names), least


def main() -> None:
    """Prove each, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each proof")
    given = parser.parse_args()
    counts, false = Counter[str](), 0
    for seed in range(given.networks):
        model, kinds = network(seed)
        asked, least = problem(seed, model)
        found = prove_class(asked, given.seconds)
        truth = "holds" if least > 0 else "fails"
        counts[f"{truth}, {found['outcome']}"] += 1
        wrong = found["outcome"] == "proved" and found["margin_min"] > least + 1e-5
        if wrong or (found["outcome"] == "proved" and least < -1e-5):
            false += 1
            print(f"FALSE: seed {seed}, {kinds}: least margin {least:.3g}, {found}")
        if "reason" in found and not found.get("pieces"):
            counts[found["reason"]] += 1
    for what, count in sorted(counts.items()):
        print(f"{count:5d}  {what}")
    print(f"false proofs: {false}")


if __name__ == "__main__":
    main()
