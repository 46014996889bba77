"""The settings of `evaluate.py` and their checks."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from ..errors import SettingError
from ..paths import home
from .output import OutputSettings
from .rules import STEPS, AtLeast, Group, NonNegative, OneOf, Seed, Share, Steps, WandbMode, Whole

Samples = Annotated[int, Whole(1, 10**7)]


@dataclass
class DataPlace:
    """Current location of the run's data."""

    root: str | None = None
    """Folder of the run's data; null: as in the run."""

    def __post_init__(self) -> None:
        self.root = home(self.root)


@dataclass
class ClassifierPlace(Group):
    """Current location of the run's classifier."""

    group = "classifier"
    weights: Any = None
    """File of the run's weights; null: as in the run. For a survey, a list of files; each network
    gets the one that its corners were found with."""
    path: Any = None
    """MODULE:NAME of the classifier's constructor, for a run with the user's own network. It must
    be given here: a run directory is data, and names no code to execute. For a network of
    `transformers` or `timm`, its folder; null: as in the run. For a survey, a list with one entry
    per network; MODULE:NAME::FILE also names weights."""

    def __post_init__(self) -> None:
        listed = isinstance(self.weights, list)
        self.weights = list(map(home, self.weights)) if listed else home(self.weights)

    def validate(self) -> None:
        """Raise SettingError unless values are text or lists of text."""
        for name, form in (("path", "MODULE:NAME"), ("weights", "FILE")):
            value = getattr(self, name)
            if not all(isinstance(text, str) for text in _listed(value)):
                raise SettingError(
                    f"classifier.{name}", value, f"give {form}, or a list of them for a survey"
                )

    @property
    def files(self) -> list[str]:
        """`weights` as a list."""
        return _listed(self.weights)

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return _listed(self.path)


def _listed(value: Any) -> list[Any]:
    """A setting of one value or several as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


@dataclass
class WorstCaseSettings(Group):
    """Searches for the largest feature error and the worst output, by gradients over weights."""

    group = "worst_case"
    starts: Annotated[int, Whole(0, 100_000)] = 32
    """Number of random starting points, in addition to all corners and edge midpoints."""
    steps: Steps = 50
    """Steps of each start."""


@dataclass
class PlainSettings(Group):
    """The hull of plain solutions of Eq. 1, as a baseline (Table 5)."""

    group = "plain"
    steps: Annotated[int, Whole(0, STEPS)] = 300
    """Largest number of Adam steps for the hull of plain solutions of Eq. 1, a baseline. They end
    when these fit the target as well as the hull's corners. 0 skips the baseline."""


@dataclass
class EdgeSettings(Group):
    """Exact walk along the hull's edges."""

    group = "edges"
    share: Annotated[float | None, Share("1 walks whole edges")] = None
    """Share of each edge that is walked, in [0, 1]; null: as far as `seconds` allow."""
    seconds: NonNegative = 10.0
    """Seconds for all edges together, if `share` is null."""
    precision: Annotated[int, OneOf(32, 64)] = 64
    """Bits of the arithmetic: 64, or 32, which is faster and misses some breakpoints."""
    memory: Annotated[float, AtLeast(0.001, 1024)] = 0.25
    """GiB for one layer's values at all breakpoints of a chunk; bounds take as much again."""
    resume: bool = True
    """Whether a walk continues from the saved one of an earlier evaluation."""


@dataclass
class ProofSettings(Group):
    """Proofs about the whole hull."""

    group = "proof"
    seconds: NonNegative = 5.0
    """Seconds for each of two proofs, of the hull's class and of its collision; 0 skips them."""
    check: bool = False
    """Whether the certificates in the run directory are checked, by code that shares none with the
    search for proofs: exact arithmetic for the subdomains, affine arithmetic for their bounds."""
    depth: bool = True
    """Whether to compare the corners with Eq. 2's exact optimum, by linear programs."""


@dataclass
class SizeSettings(Group):
    """Measures of a hull's size other than pixels."""

    group = "sizes"
    judge: str | None = None
    """Another network with the same classes. It measures how far apart the corners are in its
    features, and how many of them keep the initial image's class. A name of torchvision or
    MODULE:NAME, with ::FILE for its weights; null: none."""

    def __post_init__(self) -> None:
        self.judge = home(self.judge)


@dataclass
class WandbPlace(Group):
    """Weights & Biases, for runs that were logged there."""

    group = "wandb"
    mode: WandbMode = "offline"
    """`offline`, `online` or `disabled`. The run's own setting is ignored: someone else's run must
    not turn on an upload."""
    entity: str | None = None
    """Account or team of the runs; null: your own. The run's own setting is ignored."""


@dataclass
class SurveySettings:
    """The table of a survey over many networks."""

    extra: str | None = None
    """CSV file with additional columns, one line per network; null: none."""
    reference: str | None = None
    """Network to which the others are compared; null: the first by name."""

    def __post_init__(self) -> None:
        self.extra = home(self.extra)


@dataclass
class EvaluateSettings(Group):
    """All settings of `evaluate.py`."""

    run: str | None = None
    """Directory of a run, a sweep or a survey; null: the newest."""
    samples: Samples = 2000
    """Number of points per sampler for the float corners. 2000 of 2000 means at least 99.85 % at
    95 % confidence, as in the paper."""
    samples_beside: Samples = 300
    """Number of points for each other set: the samplers on 8-bit corners, balls and baseline hulls.
    300 of 300 means at least 99 %."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's Trainer for the device: accelerator, devices, precision."""
    seed: Seed = 0
    """Seed of the random points."""
    worst_case: WorstCaseSettings = field(default_factory=WorstCaseSettings)
    """Search for the worst point of the hull."""
    plain: PlainSettings = field(default_factory=PlainSettings)
    """Hull of plain solutions of Eq. 1 (Table 5)."""
    edges: EdgeSettings = field(default_factory=EdgeSettings)
    """Exact walk along the edges."""
    proof: ProofSettings = field(default_factory=ProofSettings)
    """What is proved of the whole hull."""
    sizes: SizeSettings = field(default_factory=SizeSettings)
    """Measures of a hull's size other than pixels."""
    data: DataPlace = field(default_factory=DataPlace)
    """Current location of the run's data."""
    classifier: ClassifierPlace = field(default_factory=ClassifierPlace)
    """Current location of the run's classifier."""
    output: OutputSettings = field(default_factory=OutputSettings)
    """Use of an encoder's features; null: as in the run."""
    survey: SurveySettings = field(default_factory=SurveySettings)
    """Additional columns and baseline of a survey's table."""
    wandb: WandbPlace = field(default_factory=WandbPlace)
    """Logging of results to the run's W&B run."""

    def __post_init__(self) -> None:
        self.run = home(self.run)

    @property
    def beside(self) -> int:
        """Number of points for each set other than the samplers."""
        return min(self.samples, self.samples_beside)
