"""The settings of a run: their schema, their checks, and the reading of `corner`.

YAML in `conf/` holds values; these dataclasses say which keys exist and which values are allowed.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import SettingError
from .conversions import in_plain_words
from .patches import PatchSettings
from .rules import SEED, SIDE, one_of, whole
from .search import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    RateSettings,
    StopSettings,
)
from .solver import OBJECTIVES


@dataclass
class ClassifierSettings:
    """A network, its weights, and the layer whose features collide.

    `name` is `mnist_mlp`, `file` (imported from `path`, MODULE:NAME) or one of `library`'s:
    torchvision or timm. `layer` may be `auto`: the last that feeds a ReLU and that everything flows
    through. `train` trains mnist_mlp anew, on the data and with the run's seed, in place of what
    ships.
    """

    name: str = MISSING
    weights: str | None = None
    layer: str = MISSING
    path: str | None = None
    train: bool = False
    library: str = "torchvision"

    def check(self) -> None:
        """Raise SettingError for an unknown library."""
        one_of("classifier.library", self.library, ("torchvision", "timm"))


@dataclass
class DataSettings:
    """Where images come from; `size` and `resize` (`warp` or `crop`) concern image folders.

    `size` is None where the classifier's own is wanted.
    """

    name: str = MISSING
    root: str | None = None
    size: int | None = 224
    resize: str = "warp"

    def check(self) -> None:
        """Raise SettingError for an unknown way of resizing, or no size."""
        if self.size is not None:
            whole("data.size", self.size, 1, SIDE)
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
    networks: list[dict[str, str | None]] = field(default_factory=list)

    solver: str = "gradient"
    objective: str = "eq2"

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        one_of("solver", self.solver, ("gradient", "linear_program"))
        one_of("objective", self.objective, OBJECTIVES)
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
            self.classifier,
            self.data,
            self.loss,
            self.rates,
            self.optimizer,
            self.stop,
            self.log,
            self.wandb,
            self.patches,
        )
        for part in parts:
            part.check()
        whole("seed", self.seed, 0, SEED)
        self._check_networks()
        parse_corners(self.corner)
        parse_corners_per_batch(self.corners_per_batch)

    def _check_networks(self) -> None:
        for each in self.networks:
            if strange := each.keys() - {"library", "name", "path", "weights"}:
                raise SettingError(
                    f"networks: {strange.pop()} is none of library, name, path and weights, by "
                    "which an entry says what it has in the place of classifier.name and so on"
                )

    def classifiers(self) -> list[ClassifierSettings]:
        """The classifiers that get the same pairs: those of a survey, or this job's alone."""
        given: list[dict[str, Any]] = list(map(dict, self.networks))
        return [replace(self.classifier, **each) for each in given] or [self.classifier]


def to_settings(config: DictConfig) -> Any:
    """Turn a composed config into its checked dataclass; nothing after this sees a DictConfig.

    Raises:
        SettingError: for a setting that is missing, or breaks its rule.
    """
    try:
        settings: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise SettingError(in_plain_words(error)) from None
    settings.check()
    return settings


_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_LONGEST = 300  # digits, of the largest float
_MOST = 100_000  # corners of a run
_DIGITS = 18  # of a corner's number
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
        if any(len(digits) > _DIGITS for digits in re.findall(r"\d+", text)):
            raise SettingError(f"corner={text[:40]}: no layer has as many units; {_CORNER_RULE}")
        if span and int(span[1]) > int(span[2]):
            raise SettingError(
                f"corner={text}: a range must rise; write corner={span[2]}..{span[1]}"
            )
        if span and int(span[2]) - int(span[1]) >= _MOST:
            raise SettingError(
                f"corner={text}: names {int(span[2]) - int(span[1]) + 1:,} corners; a run takes "
                f"{_MOST:,} at most; shorten the range"
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
    text = str(value)
    if len(text) > _DIGITS or not text.isdecimal() or int(text) < 1:
        raise SettingError(
            f"corners_per_batch={value}: must be auto, or a number of corners of at least 1"
        )
    return int(text)


_GROUPS = ("experiment", "classifier", "data", "optimizer", "trainer")


def check_arguments(arguments: list[str]) -> None:
    """Raise SettingError for what Hydra meets without a message of its own.

    These are a number that is too long to be read, and one in place of a choice.
    """
    for argument in arguments:
        group, _, choice = argument.lstrip("+").partition("=")
        if group in _GROUPS and re.fullmatch(r"[-+.\d]+|true|false|\{.*", choice.lower()):
            raise SettingError(
                f"{argument}: is none of the choices; they are the files in conf/{group}/"
            )
        longest = max(map(len, re.findall(r"\d+", argument)), default=0)
        if longest > _LONGEST:
            raise SettingError(
                f"{argument[:40]}...: a number of {longest} digits; none may have more than "
                f"{_LONGEST}"
            )


def overrides_first(arguments: list[str]) -> list[str]:
    """Hydra's own order: it takes no override that comes after a flag after an override.

    Example:
        >>> overrides_first(["corner=0..1", "-m", "data.root=DIR"])
        ['corner=0..1', 'data.root=DIR', '-m']
    """
    return sorted(arguments, key=lambda argument: not _is_override(argument))


def _is_override(argument: str) -> bool:
    return argument[:1] == "~" or ("=" in argument and argument[:1] != "-")


def expand_corner_sweep(arguments: list[str]) -> list[str]:
    """With `-m`, turn `corner=0..4` into `corner=0,1,2,3,4`, a choice any sweeper understands."""
    return [_expand(argument) for argument in arguments] if is_sweep(arguments) else arguments


def is_sweep(arguments: list[str]) -> bool:
    """Whether Hydra is told to run several jobs."""
    return not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)


def _expand(argument: str) -> str:
    key, _, value = argument.partition("=")
    value = value.strip("'\"")
    if key == "corner" and _RANGE.fullmatch(value):
        return "corner=" + ",".join(map(str, parse_corners(value)))
    return argument
