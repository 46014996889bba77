"""The target, and all that a search compares with it: computed once (sec. 2)."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..data.devices import able, without_tf32
from ..errors import SettingError
from .activations import RELU, Activation, title_of
from .flow import following
from .graph import Graph, evaluating
from .logits import ask
from .target_layer import TargetLayer

_TOGETHER = 16  # images that go through the network at once


def positive(
    preactivation: Tensor,
    features: Tensor,
    active: Tensor,
    form: str = "norm",
    rectified: bool = False,
) -> Tensor:
    """L_pos of Eq. 2: how far the target's active units are from their values.

    Args:
        preactivation: (K, N) f0(x).
        features: (N,) f(t) of active units, 0 for inactive ones.
        active: (N,) psgn(f0(t)), 1 for active units and 0 for inactive ones.
        form: `norm`, as the paper prints it, or `half_square`, half its square, as the authors
            optimise it. The norm's gradient at an exact collision is 0.
        rectified: also count what the ReLU lets through of inactive units, which must be nothing:
            f(x) of Eq. 1 in their place.

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
    """The target's features at the target layer, computed once.

    On a flat side of the activation later layers do not see how far a unit is beyond the edge e.
    `oriented` counts from there, z = f0 - e below and e - f0 above, so whatever the layer
    cannot see is negative, and section 2 and Eq. 2 hold of z as they stand.

    Args:
        preactivation: (N,) f0(t).
        activation: what follows, with an edge for each of its flat sides (`Activation.within`).

    Attributes:
        preactivation: (N,) f0(t).
        features: (N,) f(t), after the activation.
        active: (N,) bool, the units that are seen: where psgn is 1, those at the lower edge too.
        above: (N,) bool, the units at or above the upper edge.
        edge: (N,) the edge of each hidden unit's side; 0 of active ones.
        values: (N,) what z of active units must be, f0(t); 0 for the others.
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
        """f of any f0: what later layers see."""
        return self.activation.function(preactivation)

    def oriented(self, preactivation: Tensor) -> Tensor:
        """z (..., N) of any f0: hidden where it is negative, on whichever side that is."""
        if not self._shifts:
            return preactivation
        return torch.where(self.above, self.edge - preactivation, preactivation - self.edge)

    def error(self, preactivation: Tensor) -> Tensor:
        """||f(x) - f(t)|| (...) of any f0 (..., N): all that later layers can see, Eq. 1."""
        error: Tensor = (self.rectified(preactivation) - self.features).norm(dim=-1)
        return error

    @property
    def seen_by(self) -> Tensor:
        """(N,) how far each unit is inside of what the layer sees of it; negative: outside."""
        inside = [self.preactivation.new_full((len(self.preactivation),), torch.inf)]
        inside += [
            side.sign * (self.preactivation - side.edge)  # type: ignore[operator]
            for side in self.activation.sides
        ]
        unhidden = torch.full_like(self.preactivation, torch.inf)
        return torch.stack([*inside, unhidden]).amin(0)

    def sides(self, units: Tensor) -> list[str]:
        """On which side the layer is blind to each of the units (K,): `below` or `above`."""
        return ["above" if above else "below" for above in self.above[units].tolist()]

    def units(self, corners: Sequence[int], start: Tensor | None = None) -> Tensor:
        """Flat indices (K,) of the target's inactive units that `corners` count.

        Args:
            corners: counted in flat order, as the authors do.
            start: (N,) f0 where the search starts: units already inactive there, on the same side,
                are counted first. While a unit is seen its push is the same for every corner, for
                L_neg holds all such units down.

        Raises:
            SettingError: for a corner beyond the number of inactive units.
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
"""Of ||f(t)||: how far all hidden units together may move the features, where that is not 0."""


def target_features(
    graph: Graph, layer: str, target: Tensor, dtype: torch.dtype, tolerance: float = TOLERANCE
) -> TargetFeatures:
    """The features of one image (C, H, W).

    Args:
        graph: of the network.
        layer: the target layer.
        target: (C, H, W).
        dtype: that pre-activations are computed in.
        tolerance: as `with_edges` takes it.

    Raises:
        SettingError: for a layer that cannot be used, or an image the network cannot take.
    """
    with explain_forward_errors(target.shape, f" as far as {layer}"):
        preactivation = preactivation_of(graph, layer, target[None], dtype)[0]
        activation = with_edges(following(graph, layer).activation, preactivation, tolerance)
        return TargetFeatures(preactivation, activation)


def with_edges(activation: Activation, preactivation: Tensor, tolerance: float) -> Activation:
    """The activation with an edge for each side, at a target.

    Args:
        activation: what follows the target layer.
        preactivation: (N,) f0(t).
        tolerance: where a side is not exactly flat, each of the N units may move by this much of
            ||f(t)|| / sqrt(N) beyond the edge: all of them together by `tolerance` ||f(t)||.

    Raises:
        SettingError: for a tolerance of 0, where that leaves no side.
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


_OF_SIZE = re.compile(r"shape|size|channels|dimension|elements", re.IGNORECASE)


@contextmanager
def explain_forward_errors(size: Sequence[int], where: str = "") -> Iterator[None]:
    """Say in a SettingError what a network raises that cannot take images of this `size`."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:  # whatever the user's own forward raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shape = "x".join(map(str, size))
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in reason:
            cure = "there is too little memory for it; give smaller images (data.size)"
        elif isinstance(error, RuntimeError) and _OF_SIZE.search(reason):
            cure = "give images of the size the network was made for (data.size)"
        else:
            kind = type(error).__name__
            cure = f"its forward raises {kind}: it must take float images (B, C, H, W) alone"
        raise SettingError(
            "target",
            None,
            f"an image of {shape} does not pass through the network{where} ({reason})",
            cure,
        ) from error


@torch.no_grad()
@without_tf32()
def preactivation_of(graph: Graph, layer: str, images: Tensor, dtype: torch.dtype) -> Tensor:
    """f0 (B, N) of images (B, C, H, W), computed in `dtype`, where the images are if that can."""
    place = able(images.device, dtype)
    cut = TargetLayer(graph, layer).to(place, dtype)
    return torch.cat([cut(part) for part in images.to(place, dtype).split(_TOGETHER)])


@torch.no_grad()
@without_tf32()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) to (B, classes), in the model's dtype, the model in eval mode."""
    with evaluating(model):
        return torch.cat([ask(model, part) for part in images.split(_TOGETHER)])
