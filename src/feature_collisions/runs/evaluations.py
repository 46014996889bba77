"""What `evaluation.json` holds, as typed records; docs/reference/run.md says what each entry is."""

from pydantic import Field

from .records import Record


class Sample(Record):
    """Points of a hull, as `HullStatistics` sees them."""

    samples: int
    accuracy: float
    accuracy_lower_95: float
    probability_mean: float
    probability_min: float
    probability_histogram: list[int]
    feature_relative_max: float | None
    positive_relative_max: float | None
    inactive_kept: float | None
    kl_mean: float
    kl_max: float


class CounterExample(Record):
    """A point of another class: the corners' weights there, and what it is taken for."""

    weights: list[float]
    of_class: int = Field(alias="class")


class Proof(Record):
    """What bounds say of a whole hull, or the `reason` why nothing."""

    outcome: str | None = None  # proved, refuted or undecided: of the class
    by: str | None = None
    share_proved: float = 0.0
    reason: str | None = None
    margin_min: float | None = None
    probability_min: float | None = None
    counter_example: CounterExample | None = None
    feature_relative_max: float | None = None
    feature_error_max: float | None = None
    feature_relative_seen: float | None = None
    positive_relative_max: float | None = None
    inactive_max: float | None = None
    pieces: int | None = None
    seconds: float | None = None


class Part(Record):
    """A piece of a triangle: proved, refuted or undecided."""

    state: str
    vertices: list[list[float]]


class Triangle(Record):
    """Three corners, and what is proved between them."""

    corners: list[int]
    share_proved: float
    parts: list[Part]


class Faces(Record):
    """The triangles of a hull, or the `reason` why they were not tried."""

    share_proved: float = 0.0
    reason: str | None = None
    triangles: list[Triangle] = Field(default_factory=list)

    @property
    def states(self) -> list[str]:
        """What is known of each part of each triangle."""
        return [part.state for each in self.triangles for part in each.parts]

    @property
    def is_settled(self) -> bool:
        """Whether some part of a triangle is proved or refuted."""
        return any(state != "undecided" for state in self.states)


class Proofs(Record):
    """All that was tried to be proved of a hull."""

    of_class: Proof | None = Field(default=None, alias="class")
    collision: Proof | None = None
    faces: Faces = Field(default_factory=Faces)


class EdgeFigures(Record):
    """An edge; places go from 0 at its first corner to 1 at its second (`proofs.edges.Edge`)."""

    corners: list[int]
    walked: float
    failed: float
    first_failure: list[float] | None
    margin_min: float | None
    pieces: int
    rounding: float
    unconfirmed: float | None
    proved: float


class Edges(Record):
    """The edges of a hull, or the `reason` why they cannot be walked."""

    reason: str | None = None
    precision: int | None = None
    share_proved: float = 0.0
    share_failed: float = 0.0
    edges: list[EdgeFigures] = Field(default_factory=list)


class Depth(Record):
    """L_neg over Eq. 2's exact optimum, per corner, or the `reason` why it is unknown."""

    optimum: list[float] = Field(default_factory=list)
    share: list[float | None] = Field(default_factory=list)
    reason: str | None = None


class Box(Record):
    """Where corners differ: its upper left pixel, its size, its share of their variance."""

    row: int
    column: int
    height: int
    width: int
    share: float


class Evaluation(Record):
    """`evaluation.json`; what was not measured is not set."""

    target_class: int = 0
    target_probability: float = 0.0
    activation: str = "unknown"
    past: list[str] = Field(default_factory=list)
    dirichlet: Sample | None = None
    stick_breaking: Sample | None = None
    dirichlet_uint8: Sample | None = None
    stick_breaking_uint8: Sample | None = None
    outcome: str | None = None
    outcome_reasons: list[str] = Field(default_factory=list)
    hull_relative: float | None = None

    dataset_distance_mean: float | None = None
    corner_distance_mean: float | None = None
    corner_distance_min: float | None = None
    initial_distance_mean: float | None = None
    degenerate: bool = False
    relative_size: float | None = None
    relative_size_reason: str = ""
    corner_ssim_mean: float | None = None
    corner_lpips_mean: float | None = None
    corner_lpips_reason: str = ""
    boxes: list[Box] = Field(default_factory=list)
    macro_share: float | None = None
    total_variation: float | None = None
    ssim_to_target: float | None = None
    ssim_to_initial: float | None = None
    outline_of_target: float | None = None
    outline_of_initial: float | None = None

    ball_radius: float | None = None
    ball_accuracy: float | None = None
    ball_samples: int | None = None
    ball_accuracy_lower_95: float | None = None
    ball_feature_relative_max: float | None = None
    ball_clipped_accuracy: float | None = None
    ball_clipped_samples: int | None = None
    ball_clipped_accuracy_lower_95: float | None = None
    ball_clipped_feature_relative_max: float | None = None
    ball_span_accuracy: float | None = None
    ball_span_samples: int | None = None
    ball_span_accuracy_lower_95: float | None = None
    ball_span_feature_relative_max: float | None = None
    random_simplex_accuracy: float | None = None
    random_simplex_samples: int | None = None
    random_simplex_accuracy_lower_95: float | None = None
    random_simplex_feature_relative_max: float | None = None
    plain_accuracy: float | None = None
    plain_samples: int | None = None
    plain_accuracy_lower_95: float | None = None
    plain_feature_relative_max: float | None = None
    plain_probability_mean: float | None = None
    plain_corner_error_relative_max: float | None = None
    plain_corner_distance_mean: float | None = None

    worst_case_probability: float | None = None
    worst_case_correct: bool = False
    worst_case_class: int | None = None
    worst_case_weights: list[float] | None = None
    edges: Edges | None = None
    proof: Proofs = Field(default_factory=Proofs)
    depth: Depth | None = None

    failed: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    unfinished: list[str] = Field(default_factory=list)
