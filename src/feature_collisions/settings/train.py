"""The settings of a run, their checks, and the parser of `corner`.

YAML files in `conf/` contain values; these dataclasses define the keys and the allowed values.
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
"""The settings of `classifier` that identify the network."""
RANDOM = "random"
"""The `classifier.weights` of an untrained network of a library."""
UNTRAINED = " (untrained)"
"""What reports add to the name of such a network."""
FOLDERS = ("timm", "transformers")
"""Libraries whose networks can be loaded from a folder, `classifier.path`."""


@dataclass
class ClassifierSettings(Group):
    """A network, its weights, and the layer whose features collide."""

    name: str = MISSING
    """`mnist_mlp`, `file` (imported from `path`), or a name that `library` knows. With a folder as
    `path` it is the network's name in reports; by default the folder's name."""
    weights: str | None = None
    """File of weights, or FILE::ENTRY for one entry of a checkpoint, such as an average (EMA).
    `random`: a library's initial weights, always the same; the network is then untrained. null: the
    library's default weights, which may have to be downloaded."""
    layer: Any = MISSING
    """The target layer, or a list of layers that everything flows through together. `auto`: the
    last layer in the last third of the network that everything flows through and that feeds an
    activation with a flat side; if there is none, the input of the final linear layer."""
    path: str | None = None
    """MODULE:NAME of a constructor on PYTHONPATH, for `name=file`. For `transformers` and `timm`, a
    folder with config.json and model.safetensors. In a sweep, `path` and `name` can include the
    weights of each network: MODULE:NAME::FILE."""
    train: bool = False
    """Whether to train mnist_mlp on the data, with the run's seed, instead of using the bundled
    weights."""
    library: str = "torchvision"
    """Library of `name`: `torchvision` or `timm`. `transformers` (Hugging Face) loads folders
    only."""
    output: str = "classes"
    """What the network returns: logits of `classes`, or the `features` (B, D) of an encoder, which
    has no classes."""

    def __post_init__(self) -> None:
        self.weights = home(self.weights)
        if isinstance(self.layer, list | tuple):
            self.layer = ",".join(map(str, self.layer))

    def paired(self) -> "ClassifierSettings":
        """Move weights from ...::FILE of the name or path to `weights`."""
        name, _, of_name = self.name.partition("::")
        path, _, of_path = (self.path or "").partition("::")
        weights = of_path or of_name or self.weights
        if self.in_folder and name == self.library:
            name = Path(expanded(path)).absolute().name
        return replace(self, name=name, path=path or self.path, weights=weights)

    @property
    def in_reports(self) -> str:
        """The network's name in reports: MODULE:NAME if it is the user's own."""
        name = self.path if self.name == "file" and self.path else self.name
        return name + UNTRAINED if self.weights == RANDOM else name

    @property
    def in_folder(self) -> bool:
        """Whether `path` is a folder of a saved network."""
        return self.library in FOLDERS and bool(self.path)

    def validate(self) -> None:
        """Raise SettingError for an unknown library, or a layer without a name."""
        if not (isinstance(self.layer, str) and all(self.layer.split(","))):
            rule = "must be a name, a list of names, or auto"
            raise SettingError("classifier.layer", self.layer, rule)
        one_of("classifier.library", self.library, ("torchvision", *FOLDERS))
        one_of("classifier.output", self.output, OUTPUTS)


@dataclass
class DataSettings(Group):
    """The source of images; `size` and `resize` apply to image folders."""

    name: str = MISSING
    """The data set: `digits` (ships with the package), `mnist`, `cifar10` or `image_folder`."""
    root: str | None = None
    """Folder of the data set; null: the bundled digits."""
    size: Any = 224
    """Side of images from a folder in pixels, or [HEIGHT, WIDTH]; null: the classifier's size."""
    resize: str = "warp"
    """How such images are resized to `size`: `warp`, as the authors do, or `crop`."""

    def __post_init__(self) -> None:
        self.root = home(self.root)

    def validate(self) -> None:
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
        """Size of images from a folder, in pixels."""
        if self.size is None:
            return None
        height, width = self.size if isinstance(self.size, list | tuple) else [self.size] * 2
        return int(height), int(width)


@dataclass
class WandbSettings(Group):
    """Weights & Biases."""

    group = "wandb"
    mode: WandbMode = "offline"
    """`offline` (files in the run directory; needs no account), `online` or `disabled`."""
    project: str = "feature_collisions"
    """The W&B project of the runs."""
    entity: str | None = None
    """Account or team of the project; null: your own, or that of WANDB_ENTITY."""
    name: str | None = None
    """Name of the run in W&B; null: the experiment, images, corners and overrides, so that jobs of
    a sweep have different names."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run in W&B."""


@dataclass
class Settings(SearchSettings):
    """All settings of `train.py`."""

    name: str = MISSING
    """Name of the experiment and of its runs' folder."""
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    """The network and its target layer."""
    output: OutputSettings = field(default_factory=OutputSettings)
    """Use of an encoder's features."""
    data: DataSettings = field(default_factory=DataSettings)
    """The source of images."""
    initial: Any = MISSING
    """The image that every corner starts from: an index, CLASS or CLASS:N, or an image file."""
    target: Any = MISSING
    """The image whose features are matched, named in the same way."""
    corner: Any = "0..4"
    """Which of the target's inactive units are pushed down: one index, a list, or a..b (both
    included)."""
    rates: RateSettings = field(default_factory=RateSettings)
    """Rates of the optimisers in this experiment."""
    wandb: WandbSettings = field(default_factory=WandbSettings)
    """Weights & Biases."""
    parameterisation: Annotated[str, OneOf("pixels", "composite")] = "pixels"
    """`pixels` (section 3), or `composite`: blends of patches of other images (section 4)."""
    patches: PatchSettings = field(default_factory=PatchSettings)
    """The patches of composites."""
    ckpt_path: str | None = None
    """Checkpoint to resume; `last`: the newest run of this experiment, resumed in place."""
    pairs: str | None = None
    """Many pairs instead of `initial` and `target`: FILE.csv, random:N or random:N:P; null: one."""
    networks: list[dict[str, str | None]] = field(default_factory=list)
    """All classifiers of a sweep, so that they get the same pairs; filled in by the command
    line."""

    solver: Annotated[str, OneOf("gradient", "linear_program", "exact")] = "gradient"
    """`gradient`; `linear_program`: exact corners for a layer that is affine in the pixels;
    `exact`: pictures with the target's values at a linear first layer."""
    objective: Annotated[str, OneOf(*OBJECTIVES)] = "eq2"
    """Objective of exact corners. For `linear_program`: `eq2`, `unit` (only unit i), `random`
    directions, or `near` (nearest to the initial image, a quadratic program). For `exact`: `random`
    (far apart) or `near` (nearest to pictures, the default)."""

    def __post_init__(self) -> None:
        self.initial, self.target = home(self.initial), home(self.target)
        self.ckpt_path, self.pairs = home(self.ckpt_path), home(self.pairs)

    def validate(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        super().validate()
        check_output(self.classifier.output, self.output.threshold)
        if self.solver != "gradient" and self.parameterisation == "composite":
            raise SettingError(
                "parameterisation", "composite", "linear programs move pixels", "leave solver out"
            )
        if self.solver != "gradient" and self.ckpt_path:
            raise SettingError(
                "ckpt_path", self.ckpt_path, "linear programs write no checkpoints", "leave it out"
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
        """The classifiers that get the same pairs: those of a survey, or only this job's."""
        given: list[dict[str, Any]] = list(map(dict, self.networks)) or [{}]
        return [replace(self.classifier, **each).paired() for each in given]

    def paired(self) -> "Settings":
        """Settings with each network's weights in `weights`, as a run saves them."""
        networks = [
            {key: getattr(each, key) for key in NETWORK}
            for each in (self.classifiers() if self.networks else [])
        ]
        return replace(self, classifier=self.classifier.paired(), networks=networks)


def to_settings(config: DictConfig) -> Any:
    """Turn a composed config into its checked dataclass.

    Raises:
        SettingError: if a setting is missing or breaks its rule.
    """
    try:
        settings: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise SettingError(in_plain_words(error)) from None
    settings.validate()
    return settings


_INDICES = re.compile(r"(\d+)(?:\.\.(\d+))?")
_LONGEST = 300  # digits, of the largest float
_MOST = 100_000  # corners of a run
_DIGITS = 18  # of a corner's number
_CORNER_RULE = (
    "corner counts the target's inactive units from 0; write one index (2), a list ([0,3,7]) "
    "or a range with both ends (0..4)"
)


def parse_corners(corner: Any) -> list[int]:
    """Read `corner`: one index, a list of indices or ranges, or `a..b` (both included).

    Raises:
        SettingError: if it is negative, empty, decreasing, repeated or not numeric.

    Example:
        >>> parse_corners(["0..2", 7])
        [0, 1, 2, 7]
    """
    parts = corner if isinstance(corner, list | tuple | range) else [corner]
    corners: list[int] = []
    for part in parts:
        text = str(part).strip()
        if any(len(digits) > _DIGITS for digits in re.findall(r"\d+", text)):
            raise SettingError("corner", text[:40], "no layer has as many units", _CORNER_RULE)
        found = _INDICES.fullmatch(text)
        if not found or isinstance(part, bool):
            raise SettingError("corner", str(corner), _CORNER_RULE)
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            remedy = f"write corner={last}..{first}"
            raise SettingError("corner", text, "a range must increase", remedy)
        if last - first >= _MOST:
            rule = f"names {last - first + 1:,} corners"
            remedy = f"a run has at most {_MOST:,}; shorten the range"
            raise SettingError("corner", text, rule, remedy)
        corners += range(first, last + 1)
    if not corners:
        raise SettingError("corner", corner, "no corner is named", _CORNER_RULE)
    if len(set(corners)) < len(corners):
        raise SettingError("corner", corner, "a corner is named twice", "name each once")
    return corners


_GROUPS = ("experiment", "classifier", "data", "optimizer", "trainer")


def check_arguments(arguments: list[str]) -> None:
    """Raise SettingError for errors that Hydra does not report well.

    These are a number with too many digits, and a number for a config group.
    """
    for argument in arguments:
        group, _, choice = argument.lstrip("+").partition("=")
        if group in _GROUPS and re.fullmatch(r"[-+.\d]+|true|false|\{.*", choice.lower()):
            raise SettingError(
                argument, None, "is not one of the choices", f"they are the files in conf/{group}/"
            )
        longest = max(map(len, re.findall(r"\d+", argument)), default=0)
        if longest > _LONGEST:
            raise SettingError(
                f"{argument[:40]}...",
                None,
                f"a number of {longest} digits",
                f"numbers may have at most {_LONGEST}",
            )


def overrides_first(arguments: list[str]) -> list[str]:
    """Put overrides before flags: Hydra accepts no other order.

    Example:
        >>> overrides_first(["corner=0..1", "-m", "data.root=DIR"])
        ['corner=0..1', 'data.root=DIR', '-m']
    """
    return sorted(arguments, key=lambda argument: not _is_override(argument))


def _is_override(argument: str) -> bool:
    return argument[:1] == "~" or ("=" in argument and argument[:1] != "-")


def expand_corner_sweep(arguments: list[str]) -> list[str]:
    """With `-m`, turn `corner=0..4` into `corner=0,1,2,3,4`, which any sweeper understands."""
    return [_expand(argument) for argument in arguments] if is_sweep(arguments) else arguments


def is_sweep(arguments: list[str]) -> bool:
    """Whether the arguments start several jobs."""
    return not {"-m", "--multirun", "hydra.mode=MULTIRUN"}.isdisjoint(arguments)


def _expand(argument: str) -> str:
    key, _, value = argument.partition("=")
    value = value.strip("'\"")
    if key == "corner" and ".." in value and _INDICES.fullmatch(value):
        return "corner=" + ",".join(map(str, parse_corners(value)))
    return argument
