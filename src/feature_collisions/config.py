"""The settings of a run: their schema, their checks, and the reading of `corner`.

YAML in `conf/` holds values; these dataclasses say which keys exist and which values are allowed.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from .checks import at_least, one_of, rising
from .errors import SettingError
from .patch_settings import PatchSettings


@dataclass
class ClassifierSettings:
    """A network, its weights, and the layer whose features collide.

    `name` is `mnist_mlp`, `file` (imported from `path`, MODULE:NAME) or torchvision's.
    """

    name: str = MISSING
    weights: str | None = None
    layer: str = MISSING
    path: str | None = None


@dataclass
class DataSettings:
    """Where images come from; `size` and `resize` (`warp` or `crop`) concern image folders."""

    name: str = MISSING
    root: str | None = None
    size: int = 224
    resize: str = "warp"

    def check(self) -> None:
        """Raise SettingError for an unknown way of resizing, or no size."""
        at_least("data.size", self.size, 1)
        one_of("data.resize", self.resize, ("warp", "crop"))


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
    times alpha. `distance` rewards the mean distance between two corners that a person sees: over
    8x8 pixels' means, in [0, 1]. `stages` changes the weights on the way, as the authors do from
    step 14,000 of their macro runs.
    """

    alpha: float = 1.0
    beta: float = 0.1
    gamma: float = 0.0
    positive_form: str = "norm"
    normalise: bool = False
    hull: int = 0
    hull_weight: float = 1.0
    distance: float = 0.0
    rectified: bool = False
    stages: list[LossStage] = field(default_factory=list)

    def check(self) -> None:
        """Raise SettingError for a weight or form that makes no loss."""
        for name in ("alpha", "beta", "gamma", "hull_weight", "distance"):
            at_least(f"loss.{name}", getattr(self, name), 0)
        at_least("loss.hull", self.hull, 0)
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
            if not 0 <= share < 1:
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


@dataclass
class StopSettings:
    """Stop once every corner has reached all limits that are given, or at `max_steps`.

    `positive` bounds L_pos (the norm), `positive_relative` L_pos over ||f(t)||; `probability`
    asks for the target's class, with a probability that close to the target's.
    """

    positive: float | None = 5.0
    min_steps: int = 0
    max_steps: int = 1000
    positive_relative: float | None = None
    probability: float | None = None

    def check(self) -> None:
        """Raise SettingError for limits that contradict each other."""
        for name in ("positive", "positive_relative", "probability"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"stop.{name}", value, 0)
        at_least("stop.min_steps", self.min_steps, 0)
        at_least("stop.max_steps", self.max_steps, 1)
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
            at_least(f"log.{name}", getattr(self, name), 1)


@dataclass
class WandbSettings:
    """Weights & Biases: `online`, `offline` (files in the run directory) or `disabled`."""

    mode: str = "offline"
    project: str = "feature_collisions"

    def check(self) -> None:
        """Raise SettingError for an unknown mode."""
        one_of("wandb.mode", self.mode, ("online", "offline", "disabled"))


@dataclass
class Settings:
    """Everything `train.py` can be told."""

    name: str = MISSING
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    data: DataSettings = field(default_factory=DataSettings)
    initial: Any = MISSING
    target: Any = MISSING
    corner: Any = "0..4"
    loss: LossSettings = field(default_factory=LossSettings)
    rates: RateSettings = field(default_factory=RateSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    log: LogSettings = field(default_factory=LogSettings)
    wandb: WandbSettings = field(default_factory=WandbSettings)
    parameterisation: str = "pixels"
    patches: PatchSettings = field(default_factory=PatchSettings)
    corner_order: str = "flat"
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    ckpt_path: str | None = None
    corners_per_batch: Any = "auto"
    channels_last: bool = False
    compile: bool = False
    pairs: str | None = None

    solver: str = "gradient"
    objective: str = "eq2"

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        one_of("solver", self.solver, ("gradient", "linear_program"))
        one_of("objective", self.objective, ("eq2", "unit", "random"))
        one_of("parameterisation", self.parameterisation, ("pixels", "composite"))
        one_of("corner_order", self.corner_order, ("flat", "inactive_first"))
        if self.solver == "linear_program" and self.parameterisation == "composite":
            raise SettingError(
                "parameterisation=composite: linear programs move pixels; leave solver out"
            )
        if self.solver == "linear_program" and self.ckpt_path:
            raise SettingError(
                f"ckpt_path={self.ckpt_path}: linear programs keep no checkpoints; leave it out"
            )
        parts = (
            self.data,
            self.loss,
            self.optimizer,
            self.stop,
            self.log,
            self.wandb,
            self.patches,
        )
        for part in parts:
            part.check()
        at_least("seed", self.seed, 0)
        parse_corners(self.corner)
        parse_corners_per_batch(self.corners_per_batch)


def to_settings(config: DictConfig) -> Any:
    """Turn a composed config into its checked dataclass; nothing after this sees a DictConfig."""
    settings: Any = OmegaConf.to_object(config)
    settings.check()
    return settings


_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_CORNER_RULE = (
    "corner counts the target's inactive units from 0; write one index (2), a list ([0,3,7]) "
    "or a range with both ends (0..4)"
)


def parse_corners(corner: Any) -> list[int]:
    """Read `corner`: one index, a list of indices or ranges, or `a..b` with both ends included.

    Raises:
        SettingError: for a negative, empty, falling, repeated or non-numeric value.

    Example:
        >>> parse_corners(["0..2", 7])
        [0, 1, 2, 7]
    """
    parts = corner if isinstance(corner, list | tuple | range) else [corner]
    corners: list[int] = []
    for part in parts:
        text = str(part).strip()
        span = _RANGE.fullmatch(text)
        if span and int(span[1]) > int(span[2]):
            raise SettingError(
                f"corner={text}: a range must rise; write corner={span[2]}..{span[1]}"
            )
        if span:
            corners += range(int(span[1]), int(span[2]) + 1)
        elif text.isdecimal() and not isinstance(part, bool):
            corners.append(int(text))
        else:
            raise SettingError(f"corner={corner}: {_CORNER_RULE}")
    if not corners:
        raise SettingError(f"corner={corner}: no corner is named; {_CORNER_RULE}")
    if len(set(corners)) < len(corners):
        raise SettingError(f"corner={corner}: a corner is named twice; name each one once")
    return corners


def parse_corners_per_batch(value: Any) -> int | None:
    """Read `corners_per_batch`: a number of corners, or `auto` (None) for what memory holds."""
    if value == "auto":
        return None
    if not str(value).isdecimal() or int(value) < 1:
        raise SettingError(
            f"corners_per_batch={value}: must be auto, or a number of corners of at least 1"
        )
    return int(value)


def expand_corner_sweep(arguments: list[str]) -> list[str]:
    """With `-m`, turn `corner=0..4` into `corner=0,1,2,3,4`, a choice any sweeper understands."""
    multirun = {"-m", "--multirun", "hydra.mode=MULTIRUN"}
    if not multirun.intersection(arguments):
        return arguments
    return [_expand(argument) for argument in arguments]


def _expand(argument: str) -> str:
    key, _, value = argument.partition("=")
    value = value.strip("'\"")
    if key == "corner" and _RANGE.fullmatch(value):
        return "corner=" + ",".join(map(str, parse_corners(value)))
    return argument
