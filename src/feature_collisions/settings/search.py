"""The settings of a search: loss, optimiser, stopping and logging."""

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
    """Weights that start at a step."""

    step: Annotated[int, Whole(0, STEPS)] = MISSING
    """First step with these weights, at least 1; stages increase."""
    alpha: Limit = None
    """Weight of L_pos from this step; null: unchanged."""
    beta: Limit = None
    """Weight of L_neg from this step; null: unchanged."""
    gamma: Limit = None
    """Weight of R(P) from this step; null: unchanged."""


@dataclass
class LossSettings(Group):
    """Weights of the terms of Eq. 4 and 6, and of terms beyond the paper."""

    group = "loss"
    alpha: NonNegative = 100.0
    """Weight of L_pos, the distance from the target's active units (Eq. 4)."""
    beta: NonNegative = 0.1
    """Weight of L_neg, which pushes one unit per corner down and holds the other inactive units
    near zero (Eq. 4)."""
    gamma: NonNegative = 0.0
    """Weight of R(P), the total variation of a composite's weights (Eq. 6). 0: pixels have none."""
    positive_form: Annotated[str, OneOf("norm", "half_square")] = "half_square"
    """Form of L_pos: `norm`, as the paper prints it, or `half_square`, half its square, as the
    authors optimise it. The norm reaches a collision. The square only comes close, but its
    gradients suit deep networks better."""
    normalise: bool = True
    """Whether features are measured in units of ||f(t)||, so that the same weights suit different
    networks. The paper does not."""
    hull: Annotated[int, Whole(0, 10_000)] = 2
    """Number of random interior points at which L_pos is also evaluated at each step; 0 in the
    paper. Without any, good corners of a deep layer can have a bad interior."""
    hull_weight: NonNegative = 2.5
    """Weight of each such point relative to a corner."""
    hull_edges: Annotated[int, Whole(0, 10_000)] = 1
    """Number of these points that are midpoints of two corners; the others are anywhere. Features
    deviate most near midpoints, where few random points are."""
    output: NonNegative = 0.0
    """Weight of KL(p(t) || p(x)) of the class probabilities, at the corners and those points. A
    divergence of 1 nat counts `output` times as much as an L_pos of ||f(t)||. 0 as in the paper."""
    distance: Limit = None
    """Reward for the mean L2 distance between two corners, of pixels in [0, 1] averaged by
    `distance_pooling`. It favours differences that a person sees. null: where corners are pushed
    apart, a third of `reach` for the mean RMS distance; otherwise 0, as in the paper."""
    distance_pooling: Annotated[int | None, Whole(1, SIDE)] = None
    """Side in pixels of the squares whose means `distance` compares, as reports do. It must divide
    the image's side. null: a Gaussian low-pass, which leaves no visible squares; 1: single
    pixels."""
    nearness: NonNegative = 0.0
    """Weight of half the squared L2 distance to the initial image, of pixels in [0, 1]. It keeps
    corners similar to the initial image. 0 as in the paper."""
    rectified: bool = True
    """Whether L_pos also counts inactive units above zero. Later layers see them; the paper's Eq. 2
    does not count them."""
    push: Annotated[str, OneOf("auto", "unit", "direction", "apart")] = "auto"
    """How corners are kept apart: `unit` pushes one unit of each down, as in the paper; `direction`
    moves each along a smooth random direction of the image; `apart` moves them away from each
    other. `auto`: unit if the layer has a flat side and more numbers flow into it than units are
    active (else these fix all others), otherwise apart, or direction for a single corner, as in a
    sweep."""
    reach: NonNegative = 5.0
    """Reward if no unit is pushed: for the mean RMS distance between two corners (`apart`), or the
    RMS along each corner's direction (`direction`), of pixels in [0, 1]. Less keeps features
    nearer, of smaller hulls."""
    tolerance: NonNegative = 0.01
    """Largest change of the features by all hidden units together, relative to ||f(t)||, if the
    activation is only approximately flat (GELU, SiLU). It decides below which pre-activation a unit
    counts as hidden."""
    stages: list[LossStage] = field(default_factory=list)
    """Weights that change at given steps, as the authors' do at step 14,000 of their macro runs;
    none."""

    @classmethod
    def paper(
        cls,
        alpha: float = 1.0,
        beta: float = 0.1,
        gamma: float = 0.0,
        positive_form: str = "norm",
        **changed: Any,
    ) -> Self:
        """Eq. 4 as the paper prints it: not normalised, and only of the corners.

        With beta at 0.1 of alpha the norm is still an exact penalty on MNIST: L_pos ends near 0.

        Args:
            alpha: weight of L_pos.
            beta: weight of L_neg.
            gamma: weight of R(P).
            positive_form: form of L_pos, `norm` or `half_square`.
            **changed: other fields to change.
        """
        own: dict[str, Any] = {"normalise": False, "rectified": False, "distance": 0.0}
        inside: dict[str, Any] = {"hull": 0, "hull_edges": 0, "hull_weight": 1.0}
        return cls(alpha, beta, gamma, positive_form, **own | inside | changed)

    def validate(self) -> None:
        """Raise SettingError for an invalid weight or form."""
        super().validate()
        check_rising("loss.stages", self.stages)
        if self.hull_edges > self.hull > 0:
            raise SettingError(
                "loss.hull_edges",
                self.hull_edges,
                f"must be at most loss.hull={self.hull}",
                "lower this one or raise the other",
            )


@dataclass
class RateStage:
    """A rate that starts at a step."""

    step: Annotated[int, Whole(0, STEPS)] = MISSING
    """First step with this rate."""
    rate: NonNegative = MISSING
    """Rate from this step, in the parameters' unit per step."""


@dataclass
class OptimizerSettings(Group):
    """The optimiser: Adam, Algorithm 1 or smooth gradients, with a decreasing rate."""

    group = "optimizer"
    name: Annotated[str, OneOf("adam", "descent", "sobolev")] = "adam"
    """`adam`; `descent`, the paper's Algorithm 1; or `sobolev`, along the Sobolev gradient of the
    pixels, for example with rate 0.01 and average 0.9. Adam needs far fewer steps than `descent`.
    `sobolev` helps if the feature error of a deep layer stays too large."""
    rate: NonNegative = 0.2
    """Initial rate. For `adam` a step in pixels of [0, 1], or in logits of a composite; for
    `sobolev` the RMS change of pixels per step; for `descent` the factor of the gradient."""
    final_rate: NonNegative = 0.0
    """Rate at `stop.max_steps`; it decreases linearly from `rate`. 0 lets the search settle."""
    average: Annotated[float, Share("the authors use 0.99", below_1=True)] = 0.0
    """Weight of earlier gradients in the running mean of `descent` and `sobolev`, in [0, 1); the
    authors use 0.99. 0: no averaging."""
    square_average: Annotated[float, Share("0.999 is usual", below_1=True)] = 0.9
    """Adam's beta_2, in [0, 1): how long it averages squared gradients. 0.999 is usual; 0.9 suits
    gradients that shrink tenfold during the search."""
    stages: list[RateStage] = field(default_factory=list)
    """Rates that change at given steps, instead of the linear decrease; none."""

    def validate(self) -> None:
        """Raise SettingError for an unknown optimiser or a rate out of range."""
        super().validate()
        check_rising("optimizer.stages", self.stages)
        if self.stages and self.final_rate != self.rate:
            raise SettingError(
                "optimizer.final_rate",
                self.final_rate,
                "optimizer.stages already changes the rate",
                f"set it to optimizer.rate={self.rate}",
            )


@dataclass
class RateSettings(Group):
    """Rate of each choice of `optimizer` in an experiment; it depends on the loss."""

    group = "rates"
    adam: NonNegative = 0.2
    """Initial rate with `optimizer=adam`."""
    paper: NonNegative = 0.002
    """Rate with `optimizer=paper`."""
    paper_stages: list[RateStage] = field(default_factory=list)
    """Later rates with `optimizer=paper`."""

    def validate(self) -> None:
        """Raise SettingError for a rate out of range, even one that is not chosen."""
        super().validate()
        check_rising("rates.paper_stages", self.paper_stages)


@dataclass
class StopSettings(Group):
    """When a search ends: when every corner has reached all limits, or at `max_steps`."""

    group = "stop"
    positive: Limit = None
    """Limit of L_pos (the norm) for every corner, in the network's unit; null: none. The paper uses
    5 on MNIST."""
    min_steps: Annotated[int | None, Whole(0, STEPS)] = None
    """Steps that are taken even if all corners collide earlier: sizes keep growing until the rate
    has decreased. null: `max_steps`, so sizes level off; 0: none, as in the paper."""
    max_steps: Steps = 500
    """Steps after which the search ends; the rate decreases until then."""
    positive_relative: Limit = 0.1
    """Limit of L_pos relative to ||f(t)|| for every corner; null: none. 0.1 for any network."""
    probability: Limit = 0.05
    """Largest difference between a corner's and the target's probability of the target's class,
    which must also be the corner's class. With `loss.hull` also at points between the corners.
    null: not required."""
    hull_relative: Limit = None
    """Limit of the feature error ||f(x) - f(t)|| / ||f(t)|| of a hull's points, below which a
    report calls it a collision. It does not end a search. null: 0.05 for a layer that is affine in
    the pixels; for deeper layers 0.2 with pixels and 0.3 with composites."""

    @property
    def least(self) -> int:
        """Minimum number of steps."""
        return self.max_steps if self.min_steps is None else self.min_steps

    def validate(self) -> None:
        """Raise SettingError for limits that contradict each other."""
        super().validate()
        if self.least > self.max_steps:
            raise SettingError(
                "stop.min_steps",
                self.min_steps,
                f"must not exceed stop.max_steps={self.max_steps}",
                "lower this one or raise the other",
            )


@dataclass
class LogSettings(Group):
    """Steps between checks, pictures and checkpoints."""

    group = "log"
    every: Steps = 50
    """Steps between rows of the curves, and between checks of the limits. A check costs a forward
    pass."""
    images_every: Steps = 250
    """Steps between intermediate pictures."""
    checkpoint_every: Steps = 500
    """Steps between checkpoints; a kill loses at most as many."""


@dataclass(kw_only=True)
class SearchSettings(Group):
    """Settings of a search, the same on the command line and in Python."""

    loss: LossSettings = field(default_factory=LossSettings)
    """Weights of the loss."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimiser and its rate."""
    stop: StopSettings = field(default_factory=StopSettings)
    """When the search ends."""
    log: LogSettings = field(default_factory=LogSettings)
    """Steps between curves, pictures and checkpoints."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's Trainer: accelerator, devices, precision. Without the first two
    `find_corners` uses the model's device."""
    corners_per_batch: Any = "auto"
    """Images in one forward pass, corners and the points of `loss.hull`; `auto`: as many as fit in
    memory."""
    channels_last: bool = False
    """Whether images and filters use the channels-last memory format; faster for some networks,
    slower for others."""
    compile: bool = False
    """Whether the frozen network runs through torch.compile."""
    corner_order: Order = "flat"
    """Order in which `corner` counts units: `flat`, or `inactive_first`, which counts units that
    are inactive at the start first."""
    seed: Seed = 0
    """Seed of all random numbers, 0 to 2**32 - 1; the same seed gives the same tensors."""

    def validate(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        super().validate()
        images_per_batch(self.corners_per_batch)

    @property
    def of_search(self) -> dict[str, Any]:
        """The settings above, by name."""
        return {each.name: getattr(self, each.name) for each in fields(SearchSettings)}


_DIGITS = 18  # of a number of images


def images_per_batch(value: Any) -> int | None:
    """Read `corners_per_batch`: a number of images, or `auto` (None)."""
    if value == "auto":
        return None
    text = str(value)
    if len(text) > _DIGITS or not text.isdecimal() or int(text) < 1:
        rule = "must be auto, or a number of corners of at least 1"
        raise SettingError("corners_per_batch", text, rule)
    return int(text)
