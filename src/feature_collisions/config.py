"""The settings of a run: their schema, their checks, and the reading of `corner`.

YAML in `conf/` holds values; these dataclasses say which keys exist and which values are allowed.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from .checks import at_least, one_of
from .errors import SettingError
from .patch_settings import PatchSettings
from .search_settings import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    RateSettings,
    StopSettings,
)


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
