"""Corners that no network with this first layer can tell from the target: `exact_hull`."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ..errors import CollisionError, SettingError
from ..graph.agreement import validate_model
from ..graph.graph import Graph, trace
from ..graph.probabilities import giving
from ..graph.target import TargetFeatures, explain_forward_errors, logits_of
from ..hull.hull import Hull
from ..hull.outputs import output_of
from ..hull.statistics import AFFINE
from ..networks.unwrap import unwrap, unwrap_layer
from ..networks.weights import weights_hash
from ..search.summary import summarise
from ..settings.rules import SEED, whole
from .first_layer import FirstLayer, first_layer
from .windows import Polytope, polytope_of

_MOST = 1000  # corners
_EXACT = 1e-9  # of ||W t||: how exact the corners must be in float64
_MOVED = 1e-6  # of what a picture differs from the target by: less is rounding


def exact_hull(
    model: nn.Module, target: Tensor, towards: Tensor | int, layer: str = "auto", seed: int = 0
) -> Hull:
    """Corners whose values at a linear first layer equal the target's, so at every layer behind it.

    The images x of [0, 1] with W (x - t) = 0 are a convex polytope. All its points, and so all
    mixes of the corners, are the same to the network, whatever follows the layer. Where an
    activation with an exactly flat side follows, units that it hides may be anywhere beyond its
    edge. The corners are found in float64 and kept in float32, whose rounding `prove` accounts for.

    Args:
        model: any network whose graph begins with affine steps.
        target: (C, H, W) float32 in [0, 1].
        towards: (K, C, H, W) pictures, to each of which a corner is the nearest point of the
            polytope; or K, for K corners that are far from each other, pushed along random
            directions first.
        layer: the name of an affine layer that everything flows through; `auto`: the last.
        seed: decides the random directions.

    Returns:
        The hull. Its initial image is the first picture, or the target.

    Raises:
        SettingError: for images that cannot be used, a network that does not begin with a linear
            layer, or a layer that hides nothing.
        CollisionError: for a target whose pixels at 0 or 1 leave no other image.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> stem = torch.nn.Conv2d(1, 4, 4, stride=4)
        >>> model = torch.nn.Sequential(stem, torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> hull = exact_hull(model, torch.rand(1, 8, 8), towards=torch.rand(3, 1, 8, 8))
        >>> logits = model(hull.corners)
        >>> torch.allclose(logits, hull.target_logits.expand_as(logits), atol=1e-5)
        True
    """
    return ExactCorners(model, target, towards, layer, seed).run()


@dataclass
class ExactCorners:
    """The problem of `exact_hull`: checked when made, solved by `run`, as `Search` is.

    Args:
        model, target, towards, layer, seed: as `exact_hull` takes them.
        graph: of the model, once it gives logits; traced where none is given.
        initial: (C, H, W), for the pictures of the run.
        numbers: of the corners; from 0 where none are given.
        output, threshold: as `find_corners` takes them.

    Attributes:
        first: the first layer.
        polytope: of the images that it cannot tell from the target.
    """

    model: nn.Module
    target: Tensor
    towards: Tensor | int
    layer: str = "auto"
    seed: int = 0
    graph: Graph = None  # type: ignore[assignment]
    initial: Tensor | None = None
    numbers: Sequence[int] | None = None
    output: str = "classes"
    threshold: float | None = None

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0, SEED)
        _check_image("target", self.target)
        self.target = self.target.detach().cpu()
        self.towards = _checked(self.towards, self.target)
        if self.layer != "auto":
            self.layer = unwrap_layer(self.model, self.layer)
        self.model = validate_model(unwrap(self.model))
        images = self._pictures()
        with explain_forward_errors(self.target.shape):
            logits_of(self.model, images)
            self.model = giving(self.model, images, self.output)
            if self.graph is None or self.graph.model is not self.model:
                self.graph = trace(self.model, self.target.shape)
            self.first: FirstLayer = first_layer(self.graph, self.layer)
        self.layer = self.first.name
        self.polytope: Polytope = polytope_of(self.first, self.target)
        if not self.polytope.hidden:
            count = len(self.first.bias)
            raise SettingError(
                "layer",
                self.layer,
                f"this layer hides nothing: its {count} values of an image leave none of the "
                f"{self.target.numel()} directions of the pixels open",
                "choose a network whose first layer is narrower than what it reads, or search "
                "with solver=gradient",
            )

    def _pictures(self) -> Tensor:
        """(2, C, H, W): the initial image and the target."""
        initial = self.initial
        if initial is None:
            initial = self.target if isinstance(self.towards, int) else self.towards[0]
        self.initial = initial.detach().cpu()
        return torch.stack([self.initial, self.target])

    def run(self, logger: Logger | None = None) -> Hull:
        """Find the corners."""
        started = time.perf_counter()
        towards, near = self.towards, isinstance(self.towards, Tensor)
        if isinstance(towards, Tensor):
            wanted = float((towards - self.target).abs().max())
            found, steps = self.polytope.nearest(towards.flatten(1).double())
        else:
            generator, wanted = torch.Generator().manual_seed(self.seed), 1.0
            found, steps = self.polytope.apart(towards, generator)
        seconds = time.perf_counter() - started
        exact = found.view(-1, *self.target.shape)
        if not (exact - self.target).abs().max() > min(wanted, 1) * _MOVED and wanted:
            raise CollisionError(
                f"no image but the target has its values at {self.layer}: the layer hides "
                f"{self.polytope.hidden} directions, but the target's pixels at 0 or 1 leave none "
                "of them open; choose another target"
            )
        residual = float(self.first.residual(exact, self.target).max())
        converged = residual <= _EXACT
        if not converged:
            warnings.warn(
                f"not converged: the corners' values at {self.layer} are {residual:.2g} of the "
                f"target's off after {steps} steps, and the layer is too large for the linear "
                "program that would finish them; choose a target with fewer pixels at 0 or 1",
                stacklevel=2,
            )
        corners = exact.float()
        values = self.first(self.target[None])[0]
        units = torch.full((len(corners),), -1)
        assert self.initial is not None
        logits = logits_of(self.model, self.target[None])[0]
        summary = summarise(
            self.graph, self.layer, (self.initial, self.target), corners,
            self.numbers or range(len(corners)), units,
            TargetFeatures(values, self.first.activation),
            output_of(self.output, logits, self.threshold),
            experiment="exact", classifier_hash=weights_hash(self.model), solver="exact",
            objective="near" if near else "random", push="direction" if near else "apart",
            hull_relative=AFFINE, converged=converged, residual=residual, steps=steps,
            seconds=seconds, seconds_total=time.perf_counter() - started,
        )  # fmt: skip
        return Hull(
            self.model, self.layer, corners, self.initial, self.target, units, summary,
            graph=self.graph,
        )  # fmt: skip


def _check_image(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype != torch.float32:
        given = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else image
        raise SettingError(name, None, f"must be a float32 image (C, H, W), is {given}")
    _check_pixels(name, image)


def _check_pixels(name: str, images: Tensor) -> None:
    if not (images.numel() and images.isfinite().all() and 0 <= images.min() <= images.max() <= 1):
        raise SettingError(name, None, "pixels must be in [0, 1]", "divide 8-bit pixels by 255")


def _checked(towards: Tensor | int, target: Tensor) -> Tensor | int:
    if isinstance(towards, int) and not isinstance(towards, bool):
        whole("towards", towards, 1, _MOST)
        return towards
    if not isinstance(towards, Tensor) or towards.ndim != 4 or towards.dtype != torch.float32:
        given = tuple(towards.shape) if isinstance(towards, Tensor) else type(towards).__name__
        raise SettingError(
            "towards",
            None,
            "must be pictures (K, C, H, W), float32, or a number of corners",
            f"is {given}",
        )
    if towards.shape[1:] != target.shape:
        raise SettingError(
            "towards",
            None,
            f"pictures of {'x'.join(map(str, towards.shape[1:]))}, where the target is "
            f"{'x'.join(map(str, target.shape))}",
            "resize them to the target's size",
        )
    if not 1 <= len(towards) <= _MOST:
        raise SettingError(
            "towards", None, f"must be 1 to {_MOST} pictures", f"these are {len(towards)}"
        )
    _check_pixels("towards", towards)
    return towards.detach().cpu()
