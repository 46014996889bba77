"""The settings of a search: its loss, its optimiser, when it stops, and what it writes."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Self

from omegaconf import MISSING

from ..errors import SettingError
from .rules import (
    SIDE,
    STEPS,
    Group,
    Limit,
    NonNegative,
    OneOf,
    Order,
    Seed,
    Share,
    Steps,
    Whole,
    check_rising,
)


@dataclass
class LossStage:
    """Weights from a step on."""

    step: Annotated[int, Whole(0, STEPS)] = MISSING
    """The step that these weights hold from; stages rise, from 1 or later."""
    alpha: Limit = None
    """The weight of L_pos from there on; null: as before."""
    beta: Limit = None
    """The weight of L_neg from there on; null: as before."""
    gamma: Limit = None
    """The weight of R(P) from there on; null: as before."""


@dataclass
class LossSettings(Group):
    """The terms of Eq. 4 and 6, and what goes beyond the paper, by their weights."""

    group = "loss"
    alpha: NonNegative = 100.0
    """The weight of L_pos, the distance from the target's active units (Eq. 4)."""
    beta: NonNegative = 0.1
    """The weight of L_neg, which pushes one unit per corner down and holds the other inactive ones
    (Eq. 4)."""
    gamma: NonNegative = 0.0
    """The weight of R(P), the roughness of a composite's weights (Eq. 6); 0, for pixels have none.
    """
    positive_form: Annotated[str, OneOf("norm", "half_square")] = "half_square"
    """L_pos is the `norm`, as the paper prints it, or `half_square`, half its square, as the
    authors optimise it. The norm ends at a collision, the square near one, with gradients that deep
    networks bear better."""
    normalise: bool = True
    """Whether features are measured in units of ||f(t)||, so weights carry from one network to
    another. The paper's are not."""
    hull: Annotated[int, Whole(0, 10_000)] = 2
    """Number of random interior points at which L_pos is also evaluated at each step; 0 in the
    paper. Without any, good corners of a deep layer can have a bad interior."""
    hull_weight: NonNegative = 2.5
    """Weight of each such point relative to a corner."""
    hull_edges: Annotated[int, Whole(0, 10_000)] = 0
    """How many of them are taken halfway between two corners, the others anywhere: of a deep layer
    that is where features go furthest astray, and where few of the others fall. 0."""
    output: NonNegative = 0.0
    """The weight of KL(p(t) || p(x)) of the class probabilities, at the corners and those points: a
    divergence of 1 nat counts `output` times what an L_pos of ||f(t)|| does. 0, as in the paper."""
    distance: NonNegative = 0.0
    """The reward for the mean L2 distance between two corners, of pixels in [0, 1] as
    `distance_pooling` averages them: for differences that a person sees. 0, as in the paper."""
    distance_pooling: Annotated[int | None, Whole(1, SIDE)] = None
    """The side in pixels of the squares whose means `distance` compares, as reports do: it divides
    the image's. null: a Gaussian low-pass, which draws no squares; 1: the pixels themselves."""
    nearness: NonNegative = 0.0
    """The weight of half the squared L2 distance to the initial image, of pixels in [0, 1]: it
    holds corners near, so they keep its picture. 0, as in the paper."""
    rectified: bool = True
    """Whether L_pos counts what the ReLU lets through of inactive units above zero, too: later
    layers see it, the paper's Eq. 2 does not."""
    push: Annotated[str, OneOf("auto", "unit", "direction", "apart")] = "auto"
    """What makes a corner: its `unit` driven down, as in the paper; a smooth random `direction` of
    its own in the image; or `apart`, away from the other corners. `auto`: the unit where the layer
    has a flat side, else apart, or a direction for a corner alone, as in a sweep."""
    reach: NonNegative = 5.0
    """The reward, where no unit is pushed: for the mean root mean square distance between two
    corners, or for the root mean square along each corner's direction, of pixels in [0, 1]."""
    tolerance: NonNegative = 0.01
    """How far all hidden units together may move the features, over ||f(t)||, where a flat side is
    not exactly flat (GELU, SiLU): it decides from which pre-activation on a unit is hidden."""
    stages: list[LossStage] = field(default_factory=list)
    """Other weights from given steps on, as the authors have them from step 14,000 of their macro
    runs; none."""

    @classmethod
    def paper(
        cls,
        alpha: float = 1.0,
        beta: float = 0.1,
        gamma: float = 0.0,
        positive_form: str = "norm",
        **changed: Any,
    ) -> Self:
        """Eq. 4 as the paper prints it: in the network's own unit, and of the corners alone.

        At 0.1 of alpha the norm still is an exact penalty on MNIST: L_pos ends near 0.

        Args:
            alpha: the weight of L_pos.
            beta: the weight of L_neg.
            gamma: the weight of R(P).
            positive_form: L_pos is the `norm` or `half_square`.
            **changed: other fields that shall be different.
        """
        own: dict[str, Any] = {"normalise": False, "rectified": False, "hull": 0}
        return cls(alpha, beta, gamma, positive_form, **own | {"hull_weight": 1.0} | changed)

    def check(self) -> None:
        """Raise SettingError for a weight or form that makes no loss."""
        super().check()
        check_rising("loss.stages", self.stages)
        if self.hull_edges > self.hull:
            raise SettingError(
                "loss.hull_edges",
                self.hull_edges,
                f"must be at most loss.hull={self.hull}",
                "lower the one or raise the other",
            )


@dataclass
class RateStage:
    """A rate from a step on."""

    step: Annotated[int, Whole(0, STEPS)] = MISSING
    """The step that this rate holds from."""
    rate: NonNegative = MISSING
    """The rate from there on, in the parameters' unit per step."""


@dataclass
class OptimizerSettings(Group):
    """How the loss is descended: Adam, Algorithm 1 or smooth gradients, at a rate that falls."""

    group = "optimizer"
    name: Annotated[str, OneOf("adam", "descent", "sobolev")] = "adam"
    """`adam`; `descent`, the paper's Algorithm 1; or `sobolev`, along the Sobolev gradient of the
    pixels, with a rate of 0.01 and an average of 0.9, say. Adam, since it needs far fewer steps
    than `descent`; `sobolev` where deep features stay too far off."""
    rate: NonNegative = 0.2
    """The first rate: Adam's step in pixels of [0, 1], or in logits of a composite; how far pixels
    move in a step of `sobolev`, in root mean square; what `descent` multiplies the gradient by."""
    final_rate: NonNegative = 0.0
    """The rate at `stop.max_steps`; it falls on a line from `rate`. 0: the search comes to rest."""
    average: Annotated[float, Share("the authors use 0.99", below_1=True)] = 0.0
    """The share of the earlier gradients that `descent` and `sobolev` keep in their running mean,
    in [0, 1); the authors use 0.99. 0 takes each gradient as it is."""
    square_average: Annotated[float, Share("0.999 is usual", below_1=True)] = 0.9
    """Adam's beta_2, in [0, 1): how long it remembers the gradient's size. 0.999 is usual; 0.9
    suits gradients that shrink tenfold on the way."""
    stages: list[RateStage] = field(default_factory=list)
    """Other rates from given steps on, in place of the line; none."""

    def check(self) -> None:
        """Raise SettingError for an unknown optimiser or a rate out of range."""
        super().check()
        check_rising("optimizer.stages", self.stages)
        if self.stages and self.final_rate != self.rate:
            raise SettingError(
                "optimizer.final_rate",
                self.final_rate,
                "with optimizer.stages the rate does not fall as well",
                f"set it to optimizer.rate={self.rate}",
            )


@dataclass
class RateSettings(Group):
    """The rate that each choice of `optimizer` takes in an experiment: it depends on the loss."""

    group = "rates"
    adam: NonNegative = 0.2
    """The first rate with `optimizer=adam`."""
    paper: NonNegative = 0.002
    """The rate with `optimizer=paper`, for gradients of this experiment's loss."""
    paper_stages: list[RateStage] = field(default_factory=list)
    """The rates that `optimizer=paper` goes on with, from given steps on."""

    def check(self) -> None:
        """Raise SettingError for a rate out of range, even one that is not chosen."""
        super().check()
        check_rising("rates.paper_stages", self.paper_stages)


@dataclass
class StopSettings(Group):
    """When a search ends: once every corner has reached all limits given, or at `max_steps`."""

    group = "stop"
    positive: Limit = None
    """L_pos (the norm) that every corner must be under; null: any, for it is in the network's own
    unit. 5 is the paper's on MNIST."""
    min_steps: Annotated[int | None, Whole(0, STEPS)] = None
    """Steps that are taken even where all corners have collided before: sizes go on growing, until
    the rate has fallen. null: `max_steps`, so sizes level off; 0: none, as in the paper."""
    max_steps: Steps = 500
    """Steps after which the search ends in any case; the rate falls until then."""
    positive_relative: Limit = 0.1
    """L_pos over ||f(t)|| that every corner must be under; null: any. A tenth, in any network."""
    probability: Limit = 0.05
    """How near every corner's probability of the target's class must be to the target's, and the
    class must be that; with `loss.hull`, at points between the corners, too. null: not asked."""
    hull_relative: Limit = None
    """The largest ||f(x) - f(t)|| over ||f(t)|| of a hull's points at which its features are said
    to collide; it ends no search. null: by the layer, 0.05 where it is affine in the pixels; behind
    a deeper layer 0.2 for pixels and 0.3 for composites."""

    @property
    def least(self) -> int:
        """Steps that are taken in any case."""
        return self.max_steps if self.min_steps is None else self.min_steps

    def check(self) -> None:
        """Raise SettingError for limits that contradict each other."""
        super().check()
        if self.least > self.max_steps:
            raise SettingError(
                "stop.min_steps",
                self.min_steps,
                f"must not exceed stop.max_steps={self.max_steps}",
                "lower the one or raise the other",
            )


@dataclass
class LogSettings(Group):
    """How often a search is looked at and written down, in steps."""

    group = "log"
    every: Steps = 50
    """Steps between rows of the curves, and between looks at whether to stop. A look costs a
    forward pass."""
    images_every: Steps = 250
    """Steps between intermediate pictures."""
    checkpoint_every: Steps = 500
    """Steps between checkpoints; what a kill can cost."""


@dataclass(kw_only=True)
class SearchSettings(Group):
    """What a search is told, from the command line and from Python alike."""

    loss: LossSettings = field(default_factory=LossSettings)
    """The terms that are descended."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """How they are descended."""
    stop: StopSettings = field(default_factory=StopSettings)
    """When the search ends."""
    log: LogSettings = field(default_factory=LogSettings)
    """How often curves, pictures and checkpoints are written."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's Trainer: accelerator, devices, precision. Without the first two
    `find_corners` searches where the model is."""
    corners_per_batch: Any = "auto"
    """Images in one forward pass, corners and the points of `loss.hull`; `auto`: as many as memory
    holds."""
    channels_last: bool = False
    """Whether images and filters lie in memory with the channels last; faster for some networks,
    slower for others."""
    compile: bool = False
    """Whether the frozen network runs through torch.compile."""
    corner_order: Order = "flat"
    """How `corner` counts units: `flat`, or `inactive_first`: those inactive at the start come
    first."""
    seed: Seed = 0
    """Of all that is drawn at random, from 0 to 2**32 - 1; the same seed gives the same tensors."""

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        super().check()
        images_per_batch(self.corners_per_batch)

    @property
    def of_search(self) -> dict[str, Any]:
        """The settings above, by name."""
        return {each.name: getattr(self, each.name) for each in fields(SearchSettings)}


_DIGITS = 18  # of a number of images


def images_per_batch(value: Any) -> int | None:
    """Read `corners_per_batch`: a number of images, or `auto` (None) for what memory holds."""
    if value == "auto":
        return None
    text = str(value)
    if len(text) > _DIGITS or not text.isdecimal() or int(text) < 1:
        rule = "must be auto, or a number of corners of at least 1"
        raise SettingError("corners_per_batch", text, rule)
    return int(text)
