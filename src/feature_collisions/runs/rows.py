"""A hull as one row: what every table over many hulls (pairs, sweeps, surveys) is made of."""

from pydantic import Field

from .evaluation import Evaluation, Figure
from .records import Count, Record, Size, Summary, Text

FAILED = "not measured"


class Row(Record):
    """What was run and what was found; an entry that was not measured is None or not set.

    `outcome` is one of the three, or why there is none.
    """

    run: Text = ""
    network: Text = ""
    pair: Text = ""
    initial: Text = ""
    target: Text = ""
    outcome: str
    reasons: list[str] = Field(default_factory=list)
    experiment: Text = ""
    classifier: Text = ""
    layer: Text = ""
    push: Text = ""
    loss: dict[str, int | float] = Field(default_factory=dict)
    corners: Count = 0
    steps: Count = 0
    seconds: Size | None = None
    unmet: list[Text] = Field(default_factory=list)

    samples: Count = 0
    accuracy: Figure | None = None
    accuracy_lower_95: Figure | None = None
    probability_mean: Figure | None = None
    target_probability: Figure | None = None
    cosine_min: Figure | None = None
    same: Figure | None = None
    feature_relative_max: Figure | None = None
    worst_feature_relative: Figure | None = None
    worst_case_probability: Figure | None = None
    worst_case_cosine: Figure | None = None
    corner_distance_mean: Figure | None = None
    distance_scale: Count = 0
    relative_size: Figure | None = None
    pooled_size: Figure | None = None
    initial_distance_mean: Figure | None = None
    blind_share: Figure | None = None
    share_proved: Figure | None = None
    relative_size_proved: Figure | None = None
    unproved: str | None = None
    judge_size: Figure | None = None
    judge_kept: Figure | None = None

    @property
    def verdict(self) -> str:
        """The outcome and why it is no better; where there is none, why."""
        reasons = "; ".join(self.reasons)
        if self.outcome == FAILED:
            return reasons
        return f"{self.outcome} ({reasons})" if reasons else self.outcome


def row_of(
    summary: Summary, result: Evaluation, **known: str | float | dict[str, int | float]
) -> Row:
    """The row of a hull.

    Args:
        summary: of its search.
        result: what was measured of it, all or some.
        known: entries that neither has: how it is called, and its loss.
    """
    sources = (summary, *([result.dirichlet] if result.dirichlet else []), result)
    found = {name: each[name] for each in sources for name in Row.model_fields if name in each}
    reasons = list(result.outcome_reasons)
    if summary.limits and reasons:
        reasons.append(summary.limits)
    row = Row.model_validate(
        found
        | {
            "outcome": _outcome(result),
            "reasons": reasons,
            "corners": len(summary.corners),
            "pooled_size": result.pooled_sizes.get("8"),
        }
        | known
    )
    if proof := result.proof.class_:
        row.share_proved, row.relative_size_proved = proof.share_proved, proof.relative_size_proved
        row.unproved = None if proof.share_proved else proof.reason
    if judge := result.judge:
        row.judge_size, row.judge_kept = judge.size, judge.initial_kept / judge.corners
    return row


def _outcome(result: Evaluation) -> str:
    """One of the three, or what could not be measured."""
    if failed := result.failed:
        return f"{FAILED}: " + "; ".join(f"{name}: {why}" for name, why in failed.items())
    return str(result.outcome)
