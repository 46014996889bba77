"""The settings of `evaluate.py`: their schema and their checks."""

from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingError
from .rules import SEED, STEPS, at_least, one_of, whole


@dataclass
class DataPlace:
    """Where the run's data lies now, if not where the run found it."""

    root: str | None = None


@dataclass
class ClassifierPlace:
    """Where the run's weights lie now, and the import path of a classifier of the user's own."""

    weights: str | None = None
    path: str | None = None


@dataclass
class WorstCaseSettings:
    """Projected gradient from all corners, all edge midpoints and `starts` random points."""

    starts: int = 32
    steps: int = 50

    def check(self) -> None:
        """Raise SettingError for a negative number."""
        whole("worst_case.starts", self.starts, 0, 100_000)
        whole("worst_case.steps", self.steps, 1, STEPS)


@dataclass
class PlainSettings:
    """Adam steps for the hull of plain Eq. 1 solutions; 0 leaves it out."""

    steps: int = 300

    def check(self) -> None:
        """Raise SettingError for a negative number."""
        whole("plain.steps", self.steps, 0, STEPS)


@dataclass
class EdgeSettings:
    """How much of the hull's edges is walked exactly.

    Each edge up to `share` of it; when that is left out, as far as `seconds` allow in all.
    `memory` is in GiB, for the values at all breakpoints of a chunk in any one layer.
    """

    share: float | None = None
    seconds: float = 10.0
    precision: int = 64
    memory: float = 0.25
    resume: bool = True

    def check(self) -> None:
        """Raise SettingError for a share beyond the edge, or another number out of range."""
        if self.share is not None:
            at_least("edges.share", self.share, 0)
            if self.share > 1:
                raise SettingError(
                    f"edges.share={self.share}: must be in [0, 1]; 1 walks every edge to its end"
                )
        at_least("edges.seconds", self.seconds, 0)
        at_least("edges.memory", self.memory, 0.001, 1024)
        if self.precision not in (32, 64):
            raise SettingError(f"edges.precision={self.precision}: must be 32 or 64")


@dataclass
class ProofSettings:
    """What is proved of the whole hull.

    Attributes:
        seconds: for each of two statements, of its class and of its collision.
        depth: whether to compare the corners with Eq. 2's exact optimum.
    """

    seconds: float = 5.0
    depth: bool = True

    def check(self) -> None:
        """Raise SettingError for a negative time."""
        at_least("proof.seconds", self.seconds, 0)


@dataclass
class WandbMode:
    """Weights & Biases, for runs that have been there: `offline`, `online` or `disabled`.

    What a run was made with decides nothing: a stranger's must not turn an upload on.
    """

    mode: str = "offline"

    def check(self) -> None:
        """Raise SettingError for an unknown mode."""
        one_of("wandb.mode", self.mode, ("online", "offline", "disabled"))


@dataclass
class SurveySettings:
    """A CSV file of the user's own columns, one line per network; which one others are compared to.

    `reference` is the first network's name where it is left out.
    """

    extra: str | None = None
    reference: str | None = None


@dataclass
class EvaluateSettings:
    """Everything `evaluate.py` can be told.

    `samples` points of each sampling law on the corners themselves; `samples_beside` of each set
    that is measured beside these: the 8-bit corners' laws, balls and other hulls.
    """

    run: str | None = None
    samples: int = 2000
    samples_beside: int = 300
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    worst_case: WorstCaseSettings = field(default_factory=WorstCaseSettings)
    plain: PlainSettings = field(default_factory=PlainSettings)
    edges: EdgeSettings = field(default_factory=EdgeSettings)
    proof: ProofSettings = field(default_factory=ProofSettings)
    data: DataPlace = field(default_factory=DataPlace)
    classifier: ClassifierPlace = field(default_factory=ClassifierPlace)
    survey: SurveySettings = field(default_factory=SurveySettings)
    wandb: WandbMode = field(default_factory=WandbMode)

    @property
    def beside(self) -> int:
        """Points of each set beside the laws', which have the most."""
        return min(self.samples, self.samples_beside)

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        whole("samples", self.samples, 1, 10**7)
        whole("samples_beside", self.samples_beside, 1, 10**7)
        whole("seed", self.seed, 0, SEED)
        for part in (self.worst_case, self.plain, self.edges, self.proof, self.wandb):
            part.check()
