"""The settings of a search: its loss, its optimiser, when it stops, and what it writes."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from ..errors import SettingError
from .rules import STEPS, at_least, one_of, rising, whole


@dataclass
class LossStage:
    """Weights from `step` on; one that is not given stays as it was."""

    step: int = MISSING
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None


@dataclass
class LossSettings:
    """Weights of Eq. 6; `positive_form` is `norm` (as printed) or `half_square` (as optimised).

    `normalise` measures features in units of ||f(t)||, so that weights carry from one network to
    another: L_pos and L_neg are those of f0 / ||f(t)||. `rectified` counts in L_pos what the ReLU
    lets through of inactive units above zero: later layers see it, Eq. 2 does not. `hull` is how
    many random points of the hull L_pos is taken at, too, in every step, each with `hull_weight`
    times alpha. `output` adds KL(p(t) || p(x)) of the class probabilities, at the corners and at
    those points; a divergence of 1 weighs `output` times what an L_pos of ||f(t)|| does.
    `distance` rewards the mean distance between two corners that a person sees: of pixels in
    [0, 1], after a Gaussian low-pass. `nearness` / 2 times the squared L2 distance to the initial
    image, of pixels in [0, 1], holds corners near it: they keep its picture. `stages` changes the
    weights on the way, as the authors do from step 14,000 of their macro runs.
    """

    alpha: float = 1.0
    beta: float = 0.1
    gamma: float = 0.0
    positive_form: str = "norm"
    normalise: bool = False
    hull: int = 0
    hull_weight: float = 1.0
    output: float = 0.0
    distance: float = 0.0
    nearness: float = 0.0
    rectified: bool = False
    stages: list[LossStage] = field(default_factory=list)

    def check(self) -> None:
        """Raise SettingError for a weight or form that makes no loss."""
        for name in ("alpha", "beta", "gamma", "hull_weight", "output", "distance", "nearness"):
            at_least(f"loss.{name}", getattr(self, name), 0)
        whole("loss.hull", self.hull, 0, 10_000)
        one_of("loss.positive_form", self.positive_form, ("norm", "half_square"))
        rising("loss.stages", [stage.step for stage in self.stages])
        for number, stage in enumerate(self.stages):
            for name in ("alpha", "beta", "gamma"):
                weight = getattr(stage, name)
                if weight is not None:
                    at_least(f"loss.stages[{number}].{name}", weight, 0)


@dataclass
class RateStage:
    """The rate from `step` on."""

    step: int = MISSING
    rate: float = MISSING


@dataclass
class OptimizerSettings:
    """`adam`, or `descent` (Algorithm 1) on a running `average` of the gradient.

    `square_average` is Adam's beta_2: how long it remembers the gradient's size. The rate falls
    linearly from `rate` to `final_rate` over `stop.max_steps`, or goes by `stages`: each one's
    rate from its step on.
    """

    name: str = "adam"
    rate: float = 0.1
    final_rate: float = 0.0
    average: float = 0.0
    square_average: float = 0.999
    stages: list[RateStage] = field(default_factory=list)

    def check(self) -> None:
        """Raise SettingError for an unknown optimiser or a rate out of range."""
        one_of("optimizer.name", self.name, ("adam", "descent"))
        at_least("optimizer.rate", self.rate, 0)
        at_least("optimizer.final_rate", self.final_rate, 0)
        for name, usual in (
            ("average", "the authors use 0.99"),
            ("square_average", "0.999 is usual"),
        ):
            share = getattr(self, name)
            if not (isinstance(share, int | float) and 0 <= share < 1):
                raise SettingError(
                    f"optimizer.{name}={share}: the share of the old gradients must be in [0, 1); "
                    f"{usual}"
                )
        rising("optimizer.stages", [stage.step for stage in self.stages])
        for number, stage in enumerate(self.stages):
            at_least(f"optimizer.stages[{number}].rate", stage.rate, 0)
        if self.stages and self.final_rate != self.rate:
            raise SettingError(
                f"optimizer.final_rate={self.final_rate}: with optimizer.stages the rate does not "
                f"fall as well; set it to optimizer.rate={self.rate}"
            )


@dataclass
class RateSettings:
    """The rate each choice of `optimizer` takes in this experiment; it depends on the losses.

    `paper_stages` are the rates that `paper` goes on with.
    """

    adam: float = 0.1
    paper: float = 0.002
    paper_stages: list[RateStage] = field(default_factory=list)

    def check(self) -> None:
        """Raise SettingError for a rate out of range, even one that is not chosen."""
        at_least("rates.adam", self.adam, 0)
        at_least("rates.paper", self.paper, 0)
        rising("rates.paper_stages", [stage.step for stage in self.paper_stages])
        for number, stage in enumerate(self.paper_stages):
            at_least(f"rates.paper_stages[{number}].rate", stage.rate, 0)


@dataclass
class StopSettings:
    """Stop once every corner has reached all limits that are given, or at `max_steps`.

    `positive` bounds L_pos (the norm), `positive_relative` L_pos over ||f(t)||; `probability`
    asks for the target's class, with a probability that close to the target's. `hull_relative`
    ends nothing: up to this largest L_pos over ||f(t)|| a hull's features are said to collide.
    """

    positive: float | None = 5.0
    min_steps: int = 0
    max_steps: int = 1000
    positive_relative: float | None = None
    probability: float | None = None
    hull_relative: float = 0.3

    def check(self) -> None:
        """Raise SettingError for limits that contradict each other."""
        for name in ("positive", "positive_relative", "probability"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"stop.{name}", value, 0)
        at_least("stop.hull_relative", self.hull_relative, 0)
        whole("stop.min_steps", self.min_steps, 0, STEPS)
        whole("stop.max_steps", self.max_steps, 1, STEPS)
        if self.min_steps > self.max_steps:
            raise SettingError(
                f"stop.min_steps={self.min_steps}: must not exceed stop.max_steps="
                f"{self.max_steps}; lower the one or raise the other"
            )


@dataclass
class LogSettings:
    """Cadences in steps: curves (also how often stopping is checked), pictures, checkpoints."""

    every: int = 50
    images_every: int = 250
    checkpoint_every: int = 500

    def check(self) -> None:
        """Raise SettingError for a cadence below one step."""
        for name in ("every", "images_every", "checkpoint_every"):
            whole(f"log.{name}", getattr(self, name), 1, STEPS)
