"""`evaluation.json` as typed records; docs/reference/run.md describes the entries.

A new entry is one line here. Unknown entries, for example of a later version, are kept.
"""

from typing import Annotated, Self

from pydantic import Field

from .records import Count, OpenRecord, Text

Figure = Annotated[float, Field(allow_inf_nan=False)]


class Found(OpenRecord):
    """Result of a measurement."""


class Sample(Found):
    """Points of a sampler, on the float corners or on the saved PNGs."""

    samples: Count = 0
    accuracy: Figure = 0.0
    accuracy_lower_95: Figure = 0.0
    probability_mean: Figure = 0.0
    probability_min: Figure = 0.0
    probability_histogram: list[Count] = Field(default_factory=list)
    cosine_mean: Figure = 0.0
    cosine_min: Figure = 0.0
    cosine_histogram: list[Count] = Field(default_factory=list)
    output_relative_max: Figure | None = None
    same: Figure | None = None
    same_lower_95: Figure | None = None
    feature_relative_max: Figure | None = None
    positive_relative_max: Figure | None = None
    inactive_kept: Figure | None = None
    kl_mean: Figure = 0.0
    kl_max: Figure = 0.0
    logit_change_max: Figure | None = None


class CounterExample(Found):
    """A point of the hull to which the model gives another class."""

    weights: list[Figure]
    class_: Count = Field(alias="class")


class Checked(Found):
    """What a certificate shows to the checker; `reason` is why not all that it claims."""

    share_proved: Figure = 0.0
    scale_proved: Figure = 0.0
    subdomains: Count = 0
    bounds: Count = 0
    seconds: Figure = 0.0
    reason: str | None = None


class Proof(Found):
    """Entries of both statements about the whole hull; `reason` says why nothing is proved."""

    by: Text | None = None
    share_proved: Figure = 0.0
    scale_proved: Figure | None = None
    relative_size_proved: Figure | None = None
    pieces: Count = 0
    seconds: Figure = 0.0
    reason: str | None = None
    checked: Checked | None = None


class ClassProof(Proof):
    """Whether every point is of the target's class, or `no class` for an encoder."""

    outcome: Text = "undecided"
    margin_min: Figure | None = None
    probability_min: Figure | None = None
    counter_example: CounterExample | None = None


class CollisionProof(Proof):
    """Bounds on the distance of any point's features from the target's."""

    feature_relative_max: Figure | None = None
    feature_error_max: Figure | None = None
    positive_relative_max: Figure | None = None
    inactive_max: Figure | None = None
    feature_relative_seen: Figure | None = None


class Part(Found):
    """A part of a triangle: `proved`, `refuted` or `undecided`."""

    state: Text
    vertices: list[list[Figure]]


class Triangle(Found):
    """A triangle of three corners, and the status of its parts."""

    corners: list[Count]
    share_proved: Figure
    parts: list[Part]


class Faces(Found):
    """The hull's triangles."""

    share_proved: Figure = 0.0
    triangles: list[Triangle] = Field(default_factory=list)
    reason: str | None = None


class Proofs(Found):
    """The entry `proof`."""

    class_: ClassProof | None = Field(default=None, alias="class")
    collision: CollisionProof | None = None
    faces: Faces | None = None


class Edge(Found):
    """An edge of the hull; positions are from 0 at its first corner to 1 at its second."""

    corners: list[Count]
    walked: Figure = 0.0
    failed: Figure = 0.0
    held: Figure = 0.0
    proved: Figure = 0.0
    first_failure: list[Figure] | None = None
    margin_min: Figure | None = None
    pieces: Count = 0
    rounding: Figure = 0.0
    unconfirmed: Figure | None = None


class Edges(Found):
    """The hull's edges, or the `reason` why they cannot be walked."""

    precision: Count = 64
    share_proved: Figure = 0.0
    share_held: Figure = 0.0
    share_failed: Figure = 0.0
    edges: list[Edge] = Field(default_factory=list)
    reason: str | None = None


class Box(Found):
    """A region: its upper left pixel, its size, and its share of the corners' variance."""

    row: Count
    column: Count
    height: Count
    width: Count
    share: Figure


class OtherImages(Found):
    """Feature errors of images of the data set, over ||f(t)||: how many are `within` the line."""

    images: Count
    within: Count
    nearest: Figure
    median: Figure


class Depth(Found):
    """L_neg of the corners as a share of Eq. 2's optimum, or the `reason` why it is unknown."""

    optimum: list[Figure] = Field(default_factory=list)
    share: list[Figure | None] = Field(default_factory=list)
    reason: str | None = None


class Rounding(Found):
    """Effect of rounding on an exact hull's values at the first layer, relative to ||W t||."""

    float64: Figure | None = None
    float32: Figure = 0.0
    uint8: Figure = 0.0
    amplification: Figure | None = None


class Judged(Found):
    """Figures of the corners in another network (`sizes.judge`)."""

    network: Text
    size: Figure | None = None
    corners: Count
    initial_class: Count
    initial_kept: Count
    target_given: Count


class Evaluation(Found):
    """All that evaluate.py found of a hull, or what one measurement adds to that (`|`)."""

    output: Text = "classes"
    target_class: Count = -1  # -1 for an encoder, as is `target_probability`
    target_probability: Figure = 0.0
    initial_cosine: Figure = 0.0
    threshold: Figure | None = None
    distance_scale: Count = 1
    activation: Text = "unknown"
    past: list[Text] = Field(default_factory=list)

    dirichlet: Sample | None = None
    dirichlet_uint8: Sample | None = None
    stick_breaking: Sample | None = None
    stick_breaking_uint8: Sample | None = None
    outcome: Text | None = None
    outcome_reasons: list[str] = Field(default_factory=list)
    hull_relative: Figure | None = None
    feature_relative_max: Figure | None = None
    dataset_features: OtherImages | None = None

    dataset_distance_mean: Figure | None = None
    dataset_distances_pooled: dict[str, Figure | None] = Field(default_factory=dict)
    corner_distance_mean: Figure | None = None
    mean_width: Figure | None = None
    relative_width: Figure | None = None
    corner_distance_min: Figure | None = None
    initial_distance_mean: Figure | None = None
    relative_size: Figure | None = None
    relative_size_reason: str | None = None
    pooled_sizes: dict[str, Figure] = Field(default_factory=dict)
    degenerate: bool = False
    macro_share: Figure | None = None
    total_variation: Figure | None = None
    ssim_to_target: Figure | None = None
    ssim_to_initial: Figure | None = None
    outline_of_target: Figure | None = None
    outline_of_initial: Figure | None = None
    corner_ssim_mean: Figure | None = None
    corner_lpips_mean: Figure | None = None
    corner_lpips_reason: str | None = None
    boxes: list[Box] = Field(default_factory=list)

    # A baseline's other entries (_samples, _accuracy_lower_95; of an encoder _cosine_min, _same)
    # are kept as unknown ones.
    ball_radius: Figure | None = None
    ball_accuracy: Figure | None = None
    ball_clipped_accuracy: Figure | None = None
    ball_span_accuracy: Figure | None = None
    random_simplex_accuracy: Figure | None = None
    plain_accuracy: Figure | None = None
    ball_feature_relative_max: Figure | None = None
    ball_clipped_feature_relative_max: Figure | None = None
    ball_span_feature_relative_max: Figure | None = None
    random_simplex_feature_relative_max: Figure | None = None
    plain_feature_relative_max: Figure | None = None
    plain_probability_mean: Figure | None = None
    plain_corner_error_relative_max: Figure | None = None
    plain_corner_distance_mean: Figure | None = None

    worst_feature_relative: Figure | None = None
    worst_feature_weights: list[Figure] | None = None
    worst_case_probability: Figure | None = None
    worst_case_correct: bool | None = None
    worst_case_class: Count | None = None
    worst_case_cosine: Figure | None = None
    worst_case_output_relative: Figure | None = None
    worst_case_weights: list[Figure] | None = None
    edges: Edges | None = None
    proof: Proofs = Proofs()
    depth: Depth | None = None
    judge: Judged | None = None
    pixel_dimensions: Count = 0
    seen_dimensions: Count = 0
    hidden_dimensions: Count | None = None
    hidden_dimensions_exact: bool = False
    rounding: Rounding | None = None

    failed: dict[str, str] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    unfinished: list[str] = Field(default_factory=list)

    def with_failure(self, name: str, reason: str) -> Self:
        """A copy with a failed measurement."""
        return self | Evaluation(failed=self.failed | {name: reason})
