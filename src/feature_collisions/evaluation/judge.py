"""Another network as the judge of a hull: does it distinguish the corners?

Metamers are evaluated in this way. Features are compared at the layer that `auto` chooses, in units
of the distance between two images of the data set there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.datasets import DataSplit
from ..data.devices import CPU, without_tf32
from ..errors import SettingError
from ..graph.flow import following, last_layer
from ..graph.graph import evaluating, trace
from ..graph.target import explain_forward_errors, logits_of
from ..graph.target_layer import Observed
from ..hull.hull import Hull
from ..networks.classifiers import load_classifier
from ..runs.evaluation import Judged
from ..settings.train import ClassifierSettings

See = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images (B, C, H, W) to logits (B, classes) and features (B, N)."""
_IMAGES = 200  # images of the data set; their mean distance is the unit
_TOGETHER = 16  # batch size


@dataclass(frozen=True)
class Judge:
    """A network in which the corners were not searched.

    Attributes:
        name: its name in `sizes.judge`.
        see: returns its logits and features of images.
        classes: number of its classes.
        distance: mean distance between two images of the data set in its features.
    """

    name: str
    see: See
    classes: int
    distance: float

    def check(self, hull: Hull) -> None:
        """Raise SettingError unless it has as many classes as the hull's network."""
        wrong = partial(SettingError, "sizes.judge", self.name)
        if hull.output.kind != "classes":
            raise wrong("compares classes, and an encoder has no classes", "leave it out")
        if self.classes != (own := len(hull.target_logits)):
            raise wrong(
                f"has {self.classes} classes, and the network that it judges has {own}",
                "give one with the same classes",
            )

    def verdict(self, hull: Hull) -> Judged:
        """What it says of the corners.

        `size` is the corners' mean distance in its features relative to the data set's; None for
        one corner. `initial_kept` counts corners with the class that it gives the initial image,
        `target_given` those with the class that the hull's network gives the target.
        """
        self.check(hull)
        logits, features = self.see(torch.cat([hull.initial[None], hull.corners]).to(CPU))
        initial, *given = logits.argmax(1).tolist()
        size = float(F.pdist(features[1:]).mean()) / self.distance if len(given) > 1 else None
        return Judged(
            network=self.name,
            size=size,
            corners=len(given),
            initial_class=initial,
            initial_kept=given.count(initial),
            target_given=given.count(hull.target_class),
        )


def judge_of(name: str | None, data: DataSplit) -> Judge | None:
    """Load the judge that `sizes.judge` names; None without a name.

    Args:
        name: a network of torchvision, or MODULE:NAME for the user's code; ::FILE adds weights.
        data: data set for the unit of distance.

    Raises:
        SettingError: if the network cannot be loaded, rejects images of this size, or gives all of
            them the same features.
    """
    wrong = partial(SettingError, "sizes.judge", name)
    if name is None:
        return None
    named = ClassifierSettings(name, None, "auto")
    if ":" in name.partition("::")[0]:  # the user's code
        named = ClassifierSettings("file", None, "auto", path=name)
    try:
        network = load_classifier(named, data)
        images = data.test.draw(_IMAGES)
        with explain_forward_errors(data.test.size):
            logits_of(network, images[:1])
        see = _seeing(network, data.test.size)
        logits, features = see(images)
    except SettingError as error:
        raise wrong(f"cannot judge these images: {error}") from None
    distance = float(F.pdist(features).mean())
    if not distance > 0:
        raise wrong("sees no difference between the data set's images")
    return Judge(name, see, logits.shape[1], distance)


def _seeing(network: nn.Module, size: tuple[int, int, int]) -> See:
    """Logits and features of a network for images of `size` (C, H, W), on the CPU in batches."""
    graph = trace(network, size)
    layer = last_layer(graph).layer
    observed, function = Observed(graph, layer), following(graph, layer).activation.function

    @torch.inference_mode()
    @without_tf32()
    def see(images: Tensor) -> tuple[Tensor, Tensor]:
        with evaluating(network):
            parts = [observed(part) for part in images.split(_TOGETHER)]
        logits, preactivation = (torch.cat(each) for each in zip(*parts, strict=True))
        return logits, function(preactivation)

    return see
