"""The files of a survey: `survey.html`, `survey.md`, `survey.csv`, its differences and figure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from ..data.files import write_text
from ..evaluation.survey import FEWEST, MEASURED, Interval, Rows, differences, means
from ..runs.rows import Row
from .figures import survey_figure
from .runs import COLUMNS, cell, rows_csv, write_tables
from .tables import Table, as_csv, number

OF_HULLS = ("network", "pair", *MEASURED)
Found = Mapping[str, Mapping[str, Interval | None]]
"""Mean over the pairs, or of differences, by network and column."""
_MEANINGS = {
    "relative_size": "mean distance between corners, over that between two images of the data set",
    "pooled_size": "the same after averaging squares of 8x8 pixels",
    "blind_share": "share of the layer's units that are inactive in the target",
    "feature_relative_max": "the largest ||f(x) - f(t)|| over ||f(t)|| of sampled points",
    "worst_feature_relative": "the largest that a search in the hull found",
    "accuracy": "share of sampled points of the target's class",
    "probability_mean": "of sampled points, for the target's class",
    "target_probability": "of the target image itself",
    "worst_case_probability": "the smallest probability that a search in the hull found",
    "cosine_min": "the least cosine between features of a sampled point and the target's",
    "worst_case_cosine": "the least cosine that a search in the hull found",
    "share_proved": "share of the hull's volume proved to be of the target's class within "
    "proof.seconds",
    "relative_size_proved": "relative size of the hull shrunk about its centroid until all of it "
    "is proved",
    "judge_size": "distance between corners in the features of sizes.judge, over that between two "
    "images of the data set",
    "judge_kept": "share of corners to which sizes.judge gives the class of their initial image",
    "seconds": "of one search",
}
_WARNING = (
    "* the interval excludes 0. Intervals cover 95 % of the means of resampled pairs; one of "
    "twenty excludes 0 by chance. With few pairs they are rough."
)
_TOO_FEW = (
    f"No intervals and no stars: {FEWEST} pairs or more are needed, because resampling fewer says "
    "too little of other pairs."
)


def write_survey(
    directory: Path,
    rows: Rows,
    reference: str,
    extra: Mapping[str, Mapping[str, float]],
    budget: Mapping[str, str],
    seed: int = 0,
) -> list[Table]:
    """Write the survey's files; gives its tables.

    Args:
        directory: where.
        rows: what was measured, by network.
        reference: the network that the others are compared with.
        extra: the user's own columns, by network.
        budget: the settings that all searches shared.
        seed: of the bootstrap.
    """
    found = means(rows, seed)
    against = {name: differences(rows, name, reference, seed) for name in rows if name != reference}
    unproved = (line for name, hulls in rows.items() for line in _unproved(name, hulls))
    pushes = _pushes(rows)
    unlike = [*_unequal(found), *_unlike(pushes)]
    note = " ".join(["Means over the same pairs.", *unproved, *unlike])
    few = len(rows[reference]) < FEWEST
    tables = [
        _overview(found, extra, len(rows[reference]), note),
        _paired(against, reference, _errors(found), pushes, few),
        Table("Settings of all searches", ["setting", "value"], list(budget.items())),
    ]
    figure = ("survey", survey_figure(rows, found, extra), "relative sizes of the networks' hulls")
    write_tables(directory, "survey", f"Survey of {len(rows)} networks", tables, figure)
    every = [row for hulls in rows.values() for row in hulls]
    write_text(directory / "survey_pairs.csv", rows_csv(OF_HULLS, every))
    columns = list(next(iter(extra.values()), {}))
    lines = [[name, *_ends(each), *extra.get(name, {}).values()] for name, each in found.items()]
    write_text(directory / "survey.csv", as_csv(["network", *_HEADER, *columns], lines))
    lines = [
        [second, first, *_ends(differences(rows, second, first, seed))]
        for first, second in combinations(rows, 2)
    ]
    write_text(directory / "survey_differences.csv", as_csv(["network", "other", *_HEADER], lines))
    return tables


_HEADER = [name + ending for name in MEASURED for ending in ("", "_low_95", "_high_95")]


def _ends(entries: Mapping[str, Interval | None]) -> list[float | None]:
    return [end for name in MEASURED for end in entries[name] or (None, None, None)]


def _unproved(name: str, hulls: Sequence[Row]) -> list[str]:
    """Why nothing of a network's hulls is proved, by how many there are of each reason."""
    counts = Counter(row.unproved for row in hulls if row.unproved)
    return [
        f"{name}: nothing proved for {count} of {len(hulls)} hulls ({reason})."
        for reason, count in counts.most_common()
    ]


def _shown(found: Found) -> list[str]:
    """The columns with values: some are empty without a judge or for encoders."""
    return [name for name in MEASURED if any(each[name] is not None for each in found.values())]


_SIZES = ("relative_size", "pooled_size", "relative_size_proved", "judge_size")
_UNEQUAL = 2.0  # times the smallest feature error


def _errors(found: Found) -> dict[str, float]:
    """Mean feature error of each network, if measured."""
    every = {network: entries["feature_relative_max"] for network, entries in found.items()}
    return {network: each.mean for network, each in every.items() if each is not None}


def _unequal(found: Found) -> list[str]:
    """Name the networks with a larger feature error than the others: it allows larger hulls."""
    errors = _errors(found)
    least = min(errors.values(), default=0.0)
    above = [name for name, error in errors.items() if error > _UNEQUAL * least]
    if not above:
        return []
    said = ", ".join(f"{name} ({errors[name]:.3f})" for name in above)
    return [
        f"Sizes of {said} are at feature errors more than {_UNEQUAL:g} times the smallest "
        f"({least:.3f}): a larger error allows a larger hull."
    ]


def _pushes(rows: Rows) -> dict[str, str]:
    """How the corners of each network were kept apart."""
    return {name: " or ".join(sorted({row.push for row in hulls})) for name, hulls in rows.items()}


def _unlike(pushes: Mapping[str, str]) -> list[str]:
    """Name the networks by how their corners were kept apart, if they differ in it."""
    kinds = sorted(set(pushes.values()))
    if len(kinds) < 2:
        return []
    said = ", ".join(
        f"{kind} for {' and '.join(name for name in pushes if pushes[name] == kind)}"
        for kind in kinds
    )
    return [f"loss.push was {said}: sizes do not compare between them."]


def _overview(
    found: Found,
    extra: Mapping[str, Mapping[str, float]],
    pairs: int,
    note: str,
) -> Table:
    rows, shown, columns = [], _shown(found), list(next(iter(extra.values()), {}))
    for network, entries in found.items():
        cells = [cell(name, each and each.mean) for name in shown for each in [entries[name]]]
        rows.append([network, *cells, *map(number, extra.get(network, {}).values())])
    heading = f"{len(found)} networks, {pairs} pair{'s' if pairs > 1 else ''}"
    names = [COLUMNS[name][0] for name in shown]
    meanings = [(COLUMNS[name][0], _MEANINGS[name]) for name in shown]
    return Table(heading, ["network", *names, *columns], rows, note, meanings)


def _paired(
    against: Found,
    reference: str,
    errors: Mapping[str, float],
    pushes: Mapping[str, str],
    few: bool,
) -> Table:
    shown = [name for name in _shown(against) if name != "seconds"]
    rows = []
    for network, entries in against.items():
        own, other = (
            round(errors.get(name, 0.0), 3) for name in (network, reference)
        )  # as printed
        alike = pushes[network] == pushes[reference]
        cells = (_signed(name, entries[name], own, other, alike) for name in shown)
        rows.append([network, *cells])
    heading = f"Differences to {reference}, pair by pair"
    note = (
        "Not comparable: the larger size has the larger feature error, which allows a larger hull, "
        "or corners were kept apart in another way (loss.push). "
        f"{_TOO_FEW if few else _WARNING}"
    )
    return Table(heading, ["network", *(COLUMNS[name][0] for name in shown)], rows, note)


def _signed(
    name: str, interval: Interval | None, error: float, of_reference: float, alike: bool
) -> str:
    """A difference; of sizes only if the larger one has the smaller feature error, or an equal.

    Nor of sizes of corners that were kept apart in another way, not `alike`.
    """
    if interval is None:
        return "-"
    if name in _SIZES and (not alike or interval.mean * (error - of_reference) > 0):
        return "not comparable"
    mean, low, high = (cell(name, end, "+") for end in interval)
    if interval.low is None:
        return mean
    return f"{mean} [{low}, {high}]" + (" *" if interval.decides else "")
