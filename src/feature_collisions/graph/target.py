"""Features of the target and the error relative to them (sec. 2)."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data.devices import device_for, without_tf32
from ..errors import SettingError, first_line
from .activations import RELU, Activation, title_of
from .flow import following
from .graph import Graph, evaluating
from .logits import like_weights, predict
from .target_layer import TargetLayer

_TOGETHER = 16  # batch size


def positive(
    preactivation: Tensor,
    features: Tensor,
    active: Tensor,
    form: str = "norm",
    rectified: bool = False,
) -> Tensor:
    """L_pos of Eq. 2, (K,): distance of the target's active units from their values.

    Args:
        preactivation: (K, N) f0(x).
        features: (N,) f(t) of active units, 0 for inactive ones.
        active: (N,) psgn(f0(t)), 1 for active units and 0 for inactive ones.
        form: `norm`, as the paper prints it, or `half_square`, half its square, as the authors
            optimise it. The norm's gradient at an exact collision is 0.
        rectified: also count f(x) of the inactive units, which must be 0 (Eq. 1).

    Example:
        >>> target = torch.tensor([3.0, 4.0, -1.0])
        >>> positive(torch.tensor([[0.0, 0.0, 9.0]]), target.relu(), target >= 0)
        tensor([5.])
    """
    seen = preactivation * active
    if rectified:
        seen = torch.where(active > 0, seen, preactivation.relu())
    error = seen - features
    if form == "norm":
        norm: Tensor = torch.linalg.vector_norm(error, dim=1)
        return norm
    return error.square().sum(1) / 2


class TargetFeatures(nn.Module):
    """The target's features at the target layer.

    On a flat side of the activation, later layers do not see how far a unit is beyond the edge e.
    `oriented` measures from the edge: z = f0 - e if flat below, z = e - f0 if flat above. So hidden
    values are negative, and section 2 and Eq. 2 apply to z unchanged.

    Args:
        preactivation: (N,) f0(t).
        activation: the next activation, with an edge for each flat side (`Activation.within`).

    Attributes:
        preactivation: (N,) f0(t).
        features: (N,) f(t), after the activation.
        active: (N,) bool, the active units (psgn 1), with those exactly at the lower edge.
        above: (N,) bool, the units at or above the upper edge.
        edge: (N,) edge of each hidden unit's side; 0 for active units.
        values: (N,) required z of active units, f0(t); 0 for the others.
    """

    preactivation: Tensor
    features: Tensor
    active: Tensor
    above: Tensor
    edge: Tensor
    values: Tensor

    def __init__(self, preactivation: Tensor, activation: Activation = RELU) -> None:
        super().__init__()
        self.activation = activation
        below, above = torch.zeros(2, *preactivation.shape, dtype=torch.bool).to(
            preactivation.device
        )
        edge = torch.zeros_like(preactivation)
        for side in activation.sides:
            assert side.edge is not None
            hidden = preactivation < side.edge if side.sign > 0 else preactivation >= side.edge
            edge = torch.where(hidden, side.edge, edge)
            below, above = (hidden, above) if side.sign > 0 else (below, hidden & ~below)
        active = ~(below | above)
        self.register_buffer("preactivation", preactivation)
        self.register_buffer("features", self.rectified(preactivation))
        self.register_buffer("active", active)
        self.register_buffer("above", above)
        self.register_buffer("edge", edge)
        self.register_buffer("values", torch.where(active, preactivation, 0.0))
        self._shifts = any(side.edge for side in activation.sides)  # a ReLU's edge is 0

    def rectified(self, preactivation: Tensor) -> Tensor:
        """f of f0, both (..., N): the values that later layers see."""
        return self.activation.function(preactivation)

    def oriented(self, preactivation: Tensor) -> Tensor:
        """z (..., N) of f0 (..., N): negative where hidden, on either side."""
        if not self._shifts:
            return preactivation
        return torch.where(self.above, self.edge - preactivation, preactivation - self.edge)

    def error(self, preactivation: Tensor) -> Tensor:
        """||f(x) - f(t)|| (...) of f0(x) (..., N): the error of Eq. 1."""
        error: Tensor = (self.rectified(preactivation) - self.features).norm(dim=-1)
        return error

    @property
    def seen_by(self) -> Tensor:
        """(N,) distance of each unit from the nearest edge: positive if active, else negative."""
        inside = [self.preactivation.new_full((len(self.preactivation),), torch.inf)]
        inside += [
            side.sign * (self.preactivation - side.edge)  # type: ignore[operator]
            for side in self.activation.sides
        ]
        unhidden = torch.full_like(self.preactivation, torch.inf)
        return torch.stack([*inside, unhidden]).amin(0)

    def sides(self, units: Tensor) -> list[str]:
        """Hidden side, `below` or `above`, of each of the units (K,)."""
        return ["above" if above else "below" for above in self.above[units].tolist()]

    def units(self, corners: Sequence[int], start: Tensor | None = None) -> Tensor:
        """Flat indices (K,) of the inactive units of `corners`.

        Args:
            corners: ranks among the target's inactive units, in flat order as the authors count.
            start: (N,) f0 at the start of the search. Units inactive there on the same side come
                first: the gradient of an active unit is the same for every corner, since L_neg
                pushes down all active units.

        Raises:
            SettingError: if a corner exceeds the number of inactive units.
        """
        inactive = (~self.active).nonzero().flatten()
        if start is not None:
            seen = self.oriented(start)[inactive] > 0
            inactive = inactive[seen.int().argsort(stable=True)]
        if not len(inactive):
            raise SettingError(
                "layer",
                None,
                "all its units are active in the target, so no corner has a unit to push",
                "choose another layer or target, or loss.push=apart",
            )
        for corner in corners:
            if not 0 <= corner < len(inactive):
                raise SettingError(
                    "corner",
                    corner,
                    f"the target has {len(inactive)} inactive units in this layer",
                    f"corner counts them from 0 to {len(inactive) - 1}",
                )
        return inactive[list(corners)]


TOLERANCE = 0.01
"""Default of `loss.tolerance`: largest change of the features by all hidden units, / ||f(t)||."""


def target_features(
    graph: Graph, layer: str, target: Tensor, dtype: torch.dtype, tolerance: float = TOLERANCE
) -> TargetFeatures:
    """Compute the features of one image.

    Args:
        graph: graph of the network.
        layer: the target layer.
        target: (C, H, W).
        dtype: of the pre-activations.
        tolerance: see `with_edges`.

    Raises:
        SettingError: if the layer cannot be used, or the network rejects the image.
    """
    with explain_forward_errors(target.shape, f" up to {layer}"):
        preactivation = preactivation_of(graph, layer, target[None], dtype)[0]
        activation = with_edges(following(graph, layer).activation, preactivation, tolerance)
        return TargetFeatures(preactivation, activation)


def with_edges(activation: Activation, preactivation: Tensor, tolerance: float) -> Activation:
    """Give each side of an activation an edge, for one target.

    Args:
        activation: the activation after the target layer.
        preactivation: (N,) f0(t).
        tolerance: on a side that is not exactly flat, each of the N units may change by
            `tolerance` ||f(t)|| / sqrt(N) beyond the edge, so all together by `tolerance` ||f(t)||.

    Raises:
        SettingError: if the tolerance is 0 and no side is exactly flat.
    """
    if activation.is_exact:
        return activation
    if not tolerance > 0:
        raise SettingError(
            "loss.tolerance",
            f"{tolerance:g}",
            f"{title_of(activation.name)} is nowhere exactly flat, so the tolerance must be "
            "above 0",
            f"{TOLERANCE} is the default. Or push corners otherwise (loss.push=apart)",
        )
    norm = float(activation.function(preactivation).norm())
    return activation.within(tolerance * norm / math.sqrt(len(preactivation)))


_OF_SIZE = re.compile(r"shape|size|height|width|channels|dimension|elements", re.IGNORECASE)
_BY_SIZE = (RuntimeError, AssertionError, ValueError)  # PyTorch, timm, transformers


@contextmanager
def explain_forward_errors(size: Sequence[int], where: str = "") -> Iterator[None]:
    """Turn errors of a network on images of `size` (C, H, W) into a SettingError."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:  # whatever the user's own forward raises
        reason = first_line(error)
        shape = "x".join(map(str, size))
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in reason:
            cure = "too little memory; use smaller images (data.size)"
        elif isinstance(error, _BY_SIZE) and _OF_SIZE.search(reason):
            cure = "use images of the network's size (data.size)"
        else:
            kind = type(error).__name__
            cure = f"its forward raises {kind}: it must take only float images (B, C, H, W)"
        raise SettingError(
            "target",
            None,
            f"the network{where} rejects an image of {shape} ({reason})",
            cure,
        ) from error


@torch.no_grad()
def check_forward(graph: Graph) -> None:
    """Raise SettingError if the network without a graph rejects images of the graph's size."""
    if graph.network is None:
        with explain_forward_errors(graph.size), evaluating(graph.model):
            graph.model(like_weights(graph.model, torch.zeros(1, *graph.size)))


@torch.no_grad()
@without_tf32()
def preactivation_of(graph: Graph, layer: str, images: Tensor, dtype: torch.dtype) -> Tensor:
    """f0 (B, N) of images (B, C, H, W) in `dtype`, on their device if it supports `dtype`."""
    device = device_for(images.device, dtype)
    cut = TargetLayer(graph, layer).to(device, dtype)
    return torch.cat([cut(part) for part in images.to(device, dtype).split(_TOGETHER)])


@torch.no_grad()
@without_tf32()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, classes) of images (B, C, H, W) in the model's dtype and eval mode."""
    with evaluating(model):
        return torch.cat([predict(model, part) for part in images.split(_TOGETHER)])
