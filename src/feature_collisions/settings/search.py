"""The settings of a search: its loss, its optimiser, when it stops, and what it writes."""

from dataclasses import dataclass, field
from typing import Any, Self

from omegaconf import MISSING

from ..errors import SettingError
from .rules import STEPS, at_least, one_of, rising, whole


@dataclass
class LossStage:
    """Weights from a step on."""

    step: int = MISSING
    """The step that these weights hold from; stages rise, from 1 or later."""
    alpha: float | None = None
    """The weight of L_pos from there on; null: as before."""
    beta: float | None = None
    """The weight of L_neg from there on; null: as before."""
    gamma: float | None = None
    """The weight of R(P) from there on; null: as before."""


@dataclass
class LossSettings:
    """The terms of Eq. 4 and 6, and what goes beyond the paper, by their weights."""

    alpha: float = 1.0
    """The weight of L_pos, the distance from the target's active units (Eq. 4). 1 leaves the unit
    to `beta`, which is measured against it."""
    beta: float = 0.1
    """The weight of L_neg, which pushes one unit per corner down and holds the other inactive ones
    (Eq. 4). At 0.1 of alpha the norm still is an exact penalty on MNIST: L_pos ends near 0."""
    gamma: float = 0.0
    """The weight of R(P), the roughness of a composite's weights (Eq. 6); 0, for pixels have none.
    """
    positive_form: str = "norm"
    """L_pos is the `norm`, as the paper prints it, or `half_square`, half its square, as the
    authors optimise it. The norm ends at a collision, the square near one, with gradients that deep
    networks bear better."""
    normalise: bool = False
    """Whether features are measured in units of ||f(t)||, so that weights carry from one network to
    another. Off, as in the paper."""
    hull: int = 0
    """How many random points between the corners L_pos is taken at, too, in every step; 0, as in
    the paper. Without any, good corners of a deep layer can have a bad interior."""
    hull_weight: float = 1.0
    """What such a point counts for, over what a corner does."""
    hull_edges: int = 0
    """How many of them are taken halfway between two corners, the others anywhere: of a deep layer
    that is where features go furthest astray, and where few of the others fall. 0."""
    output: float = 0.0
    """The weight of KL(p(t) || p(x)) of the class probabilities, at the corners and those points: a
    divergence of 1 nat counts `output` times what an L_pos of ||f(t)|| does. 0, as in the paper."""
    distance: float = 0.0
    """The reward for the mean L2 distance between two corners, of pixels in [0, 1] after a Gaussian
    low-pass: for differences that a person sees. 0, as in the paper."""
    nearness: float = 0.0
    """The weight of half the squared L2 distance to the initial image, of pixels in [0, 1]: it
    holds corners near, so that they keep its picture. 0, as in the paper."""
    rectified: bool = False
    """Whether L_pos counts what the ReLU lets through of inactive units above zero, too: later
    layers see it, Eq. 2 does not. Off, as in the paper."""
    stages: list[LossStage] = field(default_factory=list)
    """Other weights from given steps on, as the authors have them from step 14,000 of their macro
    runs; none."""

    @classmethod
    def for_any_network(cls, **changed: Any) -> Self:
        """Weights that carry from one network to another: what `find_corners` takes by default.

        Features are measured in units of ||f(t)||, inactive units above zero count, and so does
        what lies between the corners: behind a first layer, good corners alone can have an
        interior of other classes.

        Args:
            **changed: fields that shall be different.
        """
        weights: dict[str, Any] = {
            "alpha": 100.0,
            "beta": 0.1,
            "positive_form": "half_square",
            "normalise": True,
            "rectified": True,
            "hull": 2,
            "hull_weight": 2.5,
        }
        return cls(**weights | changed)

    def check(self) -> None:
        """Raise SettingError for a weight or form that makes no loss."""
        for name in ("alpha", "beta", "gamma", "hull_weight", "output", "distance", "nearness"):
            at_least(f"loss.{name}", getattr(self, name), 0)
        whole("loss.hull", self.hull, 0, 10_000)
        whole("loss.hull_edges", self.hull_edges, 0, 10_000)
        if self.hull_edges > self.hull:
            raise SettingError(
                "loss.hull_edges",
                self.hull_edges,
                f"must be at most loss.hull={self.hull}, for it is a part of those points",
                "lower the one or raise the other",
            )
        one_of("loss.positive_form", self.positive_form, ("norm", "half_square"))
        rising("loss.stages", [stage.step for stage in self.stages])
        for number, stage in enumerate(self.stages):
            for name in ("alpha", "beta", "gamma"):
                weight = getattr(stage, name)
                if weight is not None:
                    at_least(f"loss.stages[{number}].{name}", weight, 0)


@dataclass
class RateStage:
    """A rate from a step on."""

    step: int = MISSING
    """The step that this rate holds from."""
    rate: float = MISSING
    """The rate from there on, in the parameters' unit per step."""


@dataclass
class OptimizerSettings:
    """How the loss is descended: Adam, Algorithm 1 or smooth gradients, at a rate that falls."""

    name: str = "adam"
    """`adam`; `descent`, the paper's Algorithm 1; or `sobolev`, along the Sobolev gradient of the
    pixels, with a rate of 0.01 and an average of 0.9, say. Adam, since it needs far fewer steps
    than `descent`; `sobolev` where deep features stay too far off."""
    rate: float = 0.1
    """The first rate: Adam's step in pixels of [0, 1], or in logits of a composite; how far pixels
    move in a step of `sobolev`, in root mean square; what `descent` multiplies the gradient by."""
    final_rate: float = 0.0
    """The rate at `stop.max_steps`; it falls on a line from `rate`. 0: the search comes to rest."""
    average: float = 0.0
    """The share of the earlier gradients that `descent` and `sobolev` keep in their running mean,
    in [0, 1); the authors use 0.99. 0 takes each gradient as it is."""
    square_average: float = 0.999
    """Adam's beta_2, in [0, 1): how long it remembers the gradient's size. 0.999 is usual; 0.9
    suits gradients that shrink tenfold on the way."""
    stages: list[RateStage] = field(default_factory=list)
    """Other rates from given steps on, in place of the line; none."""

    @classmethod
    def for_any_network(cls, **changed: Any) -> Self:
        """The rates that belong to `LossSettings.for_any_network`.

        Args:
            **changed: fields that shall be different.
        """
        return cls(**{"rate": 0.05, "square_average": 0.9} | changed)

    def check(self) -> None:
        """Raise SettingError for an unknown optimiser or a rate out of range."""
        one_of("optimizer.name", self.name, ("adam", "descent", "sobolev"))
        at_least("optimizer.rate", self.rate, 0)
        at_least("optimizer.final_rate", self.final_rate, 0)
        for name, usual in (
            ("average", "the authors use 0.99"),
            ("square_average", "0.999 is usual"),
        ):
            share = getattr(self, name)
            if not (isinstance(share, int | float) and 0 <= share < 1):
                raise SettingError(
                    f"optimizer.{name}",
                    share,
                    "the share of the old gradients must be in [0, 1)",
                    usual,
                )
        rising("optimizer.stages", [stage.step for stage in self.stages])
        for number, stage in enumerate(self.stages):
            at_least(f"optimizer.stages[{number}].rate", stage.rate, 0)
        if self.stages and self.final_rate != self.rate:
            raise SettingError(
                "optimizer.final_rate",
                self.final_rate,
                "with optimizer.stages the rate does not fall as well",
                f"set it to optimizer.rate={self.rate}",
            )


@dataclass
class RateSettings:
    """The rate that each choice of `optimizer` takes in an experiment: it depends on the loss."""

    adam: float = 0.1
    """The first rate with `optimizer=adam`; 0.1 reaches the optimum of Eq. 2 on MNIST in 1000
    steps."""
    paper: float = 0.002
    """The rate with `optimizer=paper`, for gradients of this experiment's loss."""
    paper_stages: list[RateStage] = field(default_factory=list)
    """The rates that `optimizer=paper` goes on with, from given steps on."""

    def check(self) -> None:
        """Raise SettingError for a rate out of range, even one that is not chosen."""
        at_least("rates.adam", self.adam, 0)
        at_least("rates.paper", self.paper, 0)
        rising("rates.paper_stages", [stage.step for stage in self.paper_stages])
        for number, stage in enumerate(self.paper_stages):
            at_least(f"rates.paper_stages[{number}].rate", stage.rate, 0)


@dataclass
class StopSettings:
    """When a search ends: once every corner has reached all limits given, or at `max_steps`."""

    positive: float | None = None
    """L_pos (the norm) that every corner must be under; null: any, for it is in the network's own
    unit. 5 is the paper's on MNIST."""
    min_steps: int = 0
    """Steps that are taken even where all corners have collided before; 0."""
    max_steps: int = 1000
    """Steps after which the search ends in any case; the rate falls until then."""
    positive_relative: float | None = 0.1
    """L_pos over ||f(t)|| that every corner must be under; null: any. A tenth, in any network."""
    probability: float | None = 0.05
    """How near every corner's probability of the target's class must be to the target's, and the
    class must be that; with `loss.hull`, at points between the corners, too. null: not asked."""
    hull_relative: float | None = None
    """The largest ||f(x) - f(t)|| over ||f(t)|| of a hull's points at which its features are said
    to collide; it ends no search. null: by the layer, 0.05 where it is affine in the pixels; behind
    a deeper layer 0.2 for pixels and 0.3 for composites."""

    def check(self) -> None:
        """Raise SettingError for limits that contradict each other."""
        for name in ("positive", "positive_relative", "probability", "hull_relative"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"stop.{name}", value, 0)
        whole("stop.min_steps", self.min_steps, 0, STEPS)
        whole("stop.max_steps", self.max_steps, 1, STEPS)
        if self.min_steps > self.max_steps:
            raise SettingError(
                "stop.min_steps",
                self.min_steps,
                f"must not exceed stop.max_steps={self.max_steps}",
                "lower the one or raise the other",
            )


@dataclass
class LogSettings:
    """How often a search is looked at and written down, in steps."""

    every: int = 50
    """Steps between rows of the curves, and between looks at whether to stop. A look costs a
    forward pass."""
    images_every: int = 250
    """Steps between intermediate pictures."""
    checkpoint_every: int = 500
    """Steps between checkpoints; what a kill can cost."""

    def check(self) -> None:
        """Raise SettingError for a cadence below one step."""
        for name in ("every", "images_every", "checkpoint_every"):
            whole(f"log.{name}", getattr(self, name), 1, STEPS)
