"""The settings of a run: their schema, their checks, and the reading of `corner`.

YAML in `conf/` holds values; these dataclasses say which keys exist and which values are allowed.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import SettingError
from ..paths import expanded, home
from .conversions import in_plain_words
from .output import OUTPUTS, OutputSettings, check_output
from .patches import PatchSettings
from .rules import SIDE, Group, OneOf, WandbMode, one_of, whole
from .search import RateSettings, SearchSettings
from .solver import OBJECTIVES

NETWORK = ("library", "name", "path", "weights")
"""The settings of `classifier` that say which network it is."""
FOLDERS = ("timm", "transformers")
"""The libraries whose networks are read from the folder `classifier.path`."""


@dataclass
class ClassifierSettings(Group):
    """A network, its weights, and the layer whose features collide."""

    name: str = MISSING
    """`mnist_mlp`, `file` (imported from `path`), or a name of `library`'s. With a folder as
    `path`: what reports call the network; the name of the library stands for the folder's."""
    weights: str | None = None
    """A file of weights, or FILE::ENTRY for one entry of a checkpoint, such as an average (EMA);
    null: the library's own, which may have to be downloaded."""
    layer: Any = MISSING
    """The target layer, or a list of several that everything flows through together; `auto`: the
    last that everything flows through, before an activation with a flat side if one is in the last
    third, and else what the final linear layer reads."""
    path: str | None = None
    """MODULE:NAME of a constructor on PYTHONPATH, for `name=file`; for `transformers` and `timm`, a
    folder with config.json and model.safetensors. `path` and `name` may name their weights, too, so
    that a sweep pairs them: MODULE:NAME::FILE; `weights` is for those without."""
    train: bool = False
    """Whether mnist_mlp is trained anew, on the data and with the run's seed, in place of what
    ships."""
    library: str = "torchvision"
    """Where `name` is looked up: `torchvision` or `timm`; or, for a folder alone, `transformers`
    (Hugging Face)."""
    output: str = "classes"
    """What the network returns: logits of `classes`, or the `features` (B, D) of an encoder, of
    which no class is asked anywhere."""

    def __post_init__(self) -> None:
        self.weights = home(self.weights)
        if isinstance(self.layer, list | tuple):
            self.layer = ",".join(map(str, self.layer))

    def paired(self) -> "ClassifierSettings":
        """The same with `weights`, where the name or the path say them as ...::FILE."""
        name, _, of_name = self.name.partition("::")
        path, _, of_path = (self.path or "").partition("::")
        weights = of_path or of_name or self.weights
        if self.in_folder and name == self.library:
            name = Path(expanded(path)).absolute().name
        return replace(self, name=name, path=path or self.path, weights=weights)

    @property
    def in_folder(self) -> bool:
        """Whether `path` is a folder that the library saved the network to."""
        return self.library in FOLDERS and bool(self.path)

    def check(self) -> None:
        """Raise SettingError for an unknown library, or a layer without a name."""
        if not (isinstance(self.layer, str) and all(self.layer.split(","))):
            rule = "must be a name, a list of names, or auto"
            raise SettingError("classifier.layer", self.layer, rule)
        one_of("classifier.library", self.library, ("torchvision", *FOLDERS))
        one_of("classifier.output", self.output, OUTPUTS)


@dataclass
class DataSettings(Group):
    """Where images come from; `size` and `resize` concern image folders."""

    name: str = MISSING
    """The data set: `digits` (ships with the package), `mnist`, `cifar10` or `image_folder`."""
    root: str | None = None
    """The folder that it is in; null for what ships."""
    size: Any = 224
    """The side of images from a folder, in pixels, or [HEIGHT, WIDTH]; null: the classifier's own.
    """
    resize: str = "warp"
    """How such an image is brought to `size`: `warp`, as the authors do, or `crop`."""

    def __post_init__(self) -> None:
        self.root = home(self.root)

    def check(self) -> None:
        """Raise SettingError for an unknown way of resizing, or no size."""
        sides = self.size if isinstance(self.size, list | tuple) else [self.size] * 2
        if len(sides) != 2:
            raise SettingError(
                "data.size", self.size, "must be the side of a square, or [HEIGHT, WIDTH]"
            )
        for side in sides if self.size is not None else []:
            whole("data.size", side, 1, SIDE)
        one_of("data.resize", self.resize, ("warp", "crop"))

    @property
    def height_and_width(self) -> tuple[int, int] | None:
        """Of images from a folder, in pixels."""
        if self.size is None:
            return None
        height, width = self.size if isinstance(self.size, list | tuple) else [self.size] * 2
        return int(height), int(width)


@dataclass
class WandbSettings(Group):
    """Weights & Biases."""

    group = "wandb"
    mode: WandbMode = "offline"
    """`offline` (files in the run directory), `online` or `disabled`. Offline, for it needs no
    account."""
    project: str = "feature_collisions"
    """The W&B project that runs belong to."""
    entity: str | None = None
    """The account or team that the project belongs to; null: your own, or WANDB_ENTITY's."""
    name: str | None = None
    """What the run is called in W&B; null: the experiment, its images, its corners and what the
    command line overrides, which tells the jobs of a sweep apart."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run in W&B."""


@dataclass
class Settings(SearchSettings):
    """All settings of `train.py`."""

    name: str = MISSING
    """The experiment's name, which its runs' folder bears."""
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    """The network and its target layer."""
    output: OutputSettings = field(default_factory=OutputSettings)
    """What the user of an encoder does with its features."""
    data: DataSettings = field(default_factory=DataSettings)
    """Where images come from."""
    initial: Any = MISSING
    """The image every corner starts from: an index, CLASS or CLASS:N, or an image file."""
    target: Any = MISSING
    """The image whose features are matched, named in the same way."""
    corner: Any = "0..4"
    """Which of the target's inactive units are pushed down: one index, a list, or a..b with both
    ends."""
    rates: RateSettings = field(default_factory=RateSettings)
    """The optimiser's rates in this experiment."""
    wandb: WandbSettings = field(default_factory=WandbSettings)
    """Weights & Biases."""
    parameterisation: Annotated[str, OneOf("pixels", "composite")] = "pixels"
    """`pixels` (section 3), or `composite`: blends of patches of other images (section 4)."""
    patches: PatchSettings = field(default_factory=PatchSettings)
    """What composites are made of."""
    ckpt_path: str | None = None
    """A checkpoint to go on from; `last`: the newest run of this experiment, continued in place."""
    pairs: str | None = None
    """Many pairs in place of `initial` and `target`: FILE.csv, random:N or random:N:P; null: one.
    """
    networks: list[dict[str, str | None]] = field(default_factory=list)
    """The classifiers that a sweep goes over, so all of them draw the same pairs; the command
    line fills it in."""

    solver: Annotated[str, OneOf("gradient", "linear_program", "exact")] = "gradient"
    """`gradient`, or `linear_program`: exact corners, where the layer is affine in the pixels;
    `exact`: pictures that a linear first layer cannot tell from the target."""
    objective: Annotated[str, OneOf(*OBJECTIVES)] = "eq2"
    """What exact corners are. Of `linear_program`: `eq2`, `unit` (unit i alone), `random`
    directions or `near` (quadratic: nearest to the initial image). Of `exact`: `random` (far apart)
    or `near` (nearest to pictures), which is meant if it is left out."""

    def __post_init__(self) -> None:
        self.initial, self.target = home(self.initial), home(self.target)
        self.ckpt_path, self.pairs = home(self.ckpt_path), home(self.pairs)

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        super().check()
        check_output(self.classifier.output, self.output.threshold)
        if self.solver != "gradient" and self.parameterisation == "composite":
            raise SettingError(
                "parameterisation", "composite", "linear programs move pixels", "leave solver out"
            )
        if self.solver != "gradient" and self.ckpt_path:
            raise SettingError(
                "ckpt_path", self.ckpt_path, "linear programs keep no checkpoints", "leave it out"
            )
        self._check_networks()
        parse_corners(self.corner)

    def _check_networks(self) -> None:
        for each in self.networks:
            if strange := each.keys() - set(NETWORK):
                raise SettingError(
                    "networks",
                    None,
                    f"an entry has library, name, path and weights, not {strange.pop()}",
                )

    def classifiers(self) -> list[ClassifierSettings]:
        """The classifiers that get the same pairs: those of a survey, or this job's alone."""
        given: list[dict[str, Any]] = list(map(dict, self.networks)) or [{}]
        return [replace(self.classifier, **each).paired() for each in given]

    def paired(self) -> "Settings":
        """The same, where each network's weights are a setting: what a run keeps."""
        networks = [
            {key: getattr(each, key) for key in NETWORK}
            for each in (self.classifiers() if self.networks else [])
        ]
        return replace(self, classifier=self.classifier.paired(), networks=networks)


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
            raise SettingError("corner", text[:40], "no layer has as many units", _CORNER_RULE)
        if span and int(span[1]) > int(span[2]):
            raise SettingError(
                "corner", text, "a range must rise", f"write corner={span[2]}..{span[1]}"
            )
        if span and int(span[2]) - int(span[1]) >= _MOST:
            raise SettingError(
                "corner",
                text,
                f"names {int(span[2]) - int(span[1]) + 1:,} corners",
                f"a run takes {_MOST:,} at most; shorten the range",
            )
        if span:
            corners += range(int(span[1]), int(span[2]) + 1)
        elif text.isdecimal() and not isinstance(part, bool):
            corners.append(int(text))
        else:
            raise SettingError("corner", str(corner), _CORNER_RULE)
    if not corners:
        raise SettingError("corner", corner, "no corner is named", _CORNER_RULE)
    if len(set(corners)) < len(corners):
        raise SettingError("corner", corner, "a corner is named twice", "name each one once")
    return corners


_GROUPS = ("experiment", "classifier", "data", "optimizer", "trainer")


def check_arguments(arguments: list[str]) -> None:
    """Raise SettingError for what Hydra meets without its own message.

    These are a number that is too long to be read, and one in place of a choice.
    """
    for argument in arguments:
        group, _, choice = argument.lstrip("+").partition("=")
        if group in _GROUPS and re.fullmatch(r"[-+.\d]+|true|false|\{.*", choice.lower()):
            raise SettingError(
                argument, None, "is none of the choices", f"they are the files in conf/{group}/"
            )
        longest = max(map(len, re.findall(r"\d+", argument)), default=0)
        if longest > _LONGEST:
            raise SettingError(
                f"{argument[:40]}...",
                None,
                f"a number of {longest} digits",
                f"none may have more than {_LONGEST}",
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
