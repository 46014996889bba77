"""The settings of `evaluate.py`: their schema and their checks."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from ..errors import SettingError
from ..paths import home
from .output import OutputSettings
from .rules import STEPS, AtLeast, Group, NonNegative, OneOf, Seed, Share, Steps, WandbMode, Whole

Samples = Annotated[int, Whole(1, 10**7)]


@dataclass
class DataPlace:
    """Where the run's data is now."""

    root: str | None = None
    """The folder of the run's data now; null: where the run found it."""

    def __post_init__(self) -> None:
        self.root = home(self.root)


@dataclass
class ClassifierPlace(Group):
    """Where the run's classifier is now."""

    group = "classifier"
    weights: Any = None
    """The file of the run's weights now; null: where the run found it. Of a survey a list: each
    network takes the one that its corners were found with."""
    path: Any = None
    """MODULE:NAME of the classifier's constructor, for a run with one of the user's own: a run
    directory is data, and names no code to execute. For a network of `transformers` or `timm` the
    folder that it is in now; null: where the run found it. Of a survey a list, one for each
    network; MODULE:NAME::FILE names weights, too."""

    def __post_init__(self) -> None:
        listed = isinstance(self.weights, list)
        self.weights = list(map(home, self.weights)) if listed else home(self.weights)

    def check(self) -> None:
        """Raise SettingError for what is neither text nor a list of texts."""
        for name, form in (("path", "MODULE:NAME"), ("weights", "FILE")):
            value = getattr(self, name)
            if not all(isinstance(text, str) for text in _listed(value)):
                raise SettingError(
                    f"classifier.{name}", value, f"give {form}, or a list of them for a survey"
                )

    @property
    def files(self) -> list[str]:
        """What `weights` names."""
        return _listed(self.weights)

    @property
    def paths(self) -> list[str]:
        """What `path` names."""
        return _listed(self.path)


def _listed(value: Any) -> list[Any]:
    """A setting that may be one value or several."""
    return value if isinstance(value, list) else [] if value is None else [value]


@dataclass
class WorstCaseSettings(Group):
    """The search for the worst point of the hull, by projected gradient over its weights."""

    group = "worst_case"
    starts: Annotated[int, Whole(0, 100_000)] = 32
    """Random points that projected gradient starts from, beside all corners and all edge midpoints.
    """
    steps: Steps = 50
    """Steps of each start."""


@dataclass
class PlainSettings(Group):
    """The hull of plain solutions of Eq. 1, as a baseline (Table 5)."""

    group = "plain"
    steps: Annotated[int, Whole(0, STEPS)] = 300
    """Adam steps, at most, for the hull of plain solutions of Eq. 1, which `hull` is compared with;
    they end when these fit the target as well as the hull's corners. 0 leaves it out."""


@dataclass
class EdgeSettings(Group):
    """How much of the hull's edges is walked."""

    group = "edges"
    share: Annotated[float | None, Share("1 walks every edge to its end")] = None
    """How much of each edge is walked, in [0, 1]; null: as far as `seconds` allow."""
    seconds: NonNegative = 10.0
    """Time for all edges together where `share` is not given."""
    precision: Annotated[int, OneOf(32, 64)] = 64
    """Bits of the arithmetic: 64, or 32, which is faster and rounds bends away."""
    memory: Annotated[float, AtLeast(0.001, 1024)] = 0.25
    """GiB for the values at all breakpoints of a chunk in any one layer; bounds take as much."""
    resume: bool = True
    """Whether a walk goes on from what an earlier evaluation has kept."""


@dataclass
class ProofSettings(Group):
    """What is proved of the whole hull."""

    group = "proof"
    seconds: NonNegative = 5.0
    """Time for each of two proofs, of the hull's class and of its collision; 0 asks for none."""
    depth: bool = True
    """Whether to compare the corners with Eq. 2's exact optimum, by linear programs."""


@dataclass
class SizeSettings(Group):
    """What a hull's size is measured in, beside pixels."""

    group = "sizes"
    judge: str | None = None
    """A network that the corners were not searched in, of the same classes: how far apart they are
    in its features, and how many it still gives the initial image's class. A name of torchvision's
    or MODULE:NAME, with ::FILE for its weights; null: none."""

    def __post_init__(self) -> None:
        self.judge = home(self.judge)


@dataclass
class WandbPlace(Group):
    """Weights & Biases, for runs that have been there."""

    group = "wandb"
    mode: WandbMode = "offline"
    """`offline`, `online` or `disabled`. Whatever the run was made with: a stranger's must not turn
    an upload on."""
    entity: str | None = None
    """The account or team that runs belong to; null: your own. Never one that a run names."""


@dataclass
class SurveySettings:
    """What a table over many networks holds beside what was measured."""

    extra: str | None = None
    """A CSV file of columns of the user's own, one line per network; null: none."""
    reference: str | None = None
    """The network that the others are compared to; null: the first by name."""

    def __post_init__(self) -> None:
        self.extra = home(self.extra)


@dataclass
class EvaluateSettings(Group):
    """All settings of `evaluate.py`."""

    run: str | None = None
    """A run's, a sweep's or a survey's directory; null: the newest."""
    samples: Samples = 2000
    """Points per sampling law on the corners themselves; 2000 of 2000 says 99.85 % at 95 %
    confidence, as in the paper."""
    samples_beside: Samples = 300
    """Points of each set that is measured beside these: the 8-bit corners' laws, balls and other
    hulls. 300 of 300 says 99 %."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's Trainer that say where to measure: accelerator, devices, precision.
    """
    seed: Seed = 0
    """Of the random points."""
    worst_case: WorstCaseSettings = field(default_factory=WorstCaseSettings)
    """The search for the worst point of the hull."""
    plain: PlainSettings = field(default_factory=PlainSettings)
    """The hull of plain Eq. 1 solutions (Table 5)."""
    edges: EdgeSettings = field(default_factory=EdgeSettings)
    """The exact walk along the hull's edges."""
    proof: ProofSettings = field(default_factory=ProofSettings)
    """What is proved of the whole hull."""
    sizes: SizeSettings = field(default_factory=SizeSettings)
    """What a hull's size is measured in, beside pixels."""
    data: DataPlace = field(default_factory=DataPlace)
    """Where the run's data is now."""
    classifier: ClassifierPlace = field(default_factory=ClassifierPlace)
    """Where the run's classifier is now."""
    output: OutputSettings = field(default_factory=OutputSettings)
    """What the user of an encoder does with its features; null: as the run has it."""
    survey: SurveySettings = field(default_factory=SurveySettings)
    """What a table over many networks holds beside."""
    wandb: WandbPlace = field(default_factory=WandbPlace)
    """Whether what is found is logged to the run's W&B run."""

    def __post_init__(self) -> None:
        self.run = home(self.run)

    @property
    def beside(self) -> int:
        """Points of each set beside the laws', which have the most."""
        return min(self.samples, self.samples_beside)
