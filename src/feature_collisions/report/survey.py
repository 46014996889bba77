"""The files of a survey: `survey.html`, `survey.md`, `survey.csv`, its differences and figure."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from ..data.files import write_text
from ..escaping import for_markdown
from ..evaluation.survey import COLUMNS, Figures, Interval, differences, means
from .figures import save_figure, survey_figure
from .page import survey_page
from .tables import Table, as_csv, as_markdown, number

Found = Mapping[str, Mapping[str, Interval | None]]
"""By network and column: a mean over the pairs, or of differences."""
_NAMES = {
    "relative_size": ("relative size", ".3f"),
    "pooled_size": ("8x8 pixels averaged", ".3f"),
    "blind_share": ("blind units", ".1%"),
    "feature_relative_max": ("feature error", ".3f"),
    "accuracy": ("accuracy", ".2%"),
    "probability_mean": ("mean probability", ".3f"),
    "target_probability": ("target's probability", ".3f"),
    "worst_case_probability": ("worst found", ".3f"),
    "cosine_min": ("least cosine", ".4f"),
    "worst_case_cosine": ("worst cosine found", ".4f"),
    "share_proved": ("share proved", ".0%"),
    "relative_size_proved": ("size proved", ".3f"),
    "judge_size": ("size to the judge", ".3f"),
    "judge_kept": ("initial class kept", ".0%"),
    "seconds": ("seconds", ",.1f"),
}
_NOTE = (
    "Means over the same pairs. Relative size: mean distance between corners over that between two "
    "images of the data set, the same after averaging 8x8 pixels; feature error: the largest "
    "||f(x) - f(t)|| over ||f(t)||; accuracy, probabilities: sampled in the hull, the worst point "
    "searched, the share proved to be the target's class by bounds; size proved: the relative size "
    "of the hull shrunk about its centroid until all of it is proved."
)
_WARNING = (
    "An interval covers 95 % of what resampled pairs give; of twenty that stand beside each "
    "other one leaves 0 out by chance. From few pairs it is rough itself."
)


def write_survey(
    directory: Path,
    figures: Figures,
    pairs: Sequence[str],
    reference: str,
    extra: Mapping[str, Mapping[str, float]],
    budget: str,
    unproved: Sequence[str],
    seed: int = 0,
) -> list[Table]:
    """Write the survey's files; gives its tables.

    Args:
        directory: where.
        figures: what was measured, by network.
        pairs: their names, in the order of the figures' entries.
        reference: the network that the others are compared with.
        extra: the user's own columns, by network.
        budget: the settings that all searches shared.
        unproved: of which networks nothing is proved, and why.
        seed: of the bootstrap.
    """
    found = means(figures, seed)
    against = {
        name: differences(figures, name, reference, seed) for name in figures if name != reference
    }
    columns = list(next(iter(extra.values()), {}))
    note = " ".join([f"{_NOTE} All: {budget}.", *(f"{line}." for line in unproved)])
    note += _of_judge(found) + _unequal(found)
    overview = _overview(found, extra, columns, len(pairs), note)
    paired = _paired(against, reference, _errors(found))
    figure = survey_figure(figures, found, extra)
    for ending in ("png", "pdf"):
        save_figure(figure, directory / f"survey.{ending}")
    tables = [overview, paired]
    parts = [
        "# " + for_markdown(overview.heading),
        as_markdown(overview),
        "![relative sizes](survey.png)",
    ]
    parts += ["## " + for_markdown(paired.heading), as_markdown(paired)]
    write_text(directory / "survey.md", "\n\n".join(parts) + "\n")
    write_text(directory / "survey.html", survey_page(directory.name, tables, figure))
    write_text(directory / "survey.csv", _means_csv(found, extra, columns))
    write_text(directory / "survey_pairs.csv", _pairs_csv(figures, pairs))
    write_text(directory / "survey_differences.csv", _differences_csv(figures, seed))
    return tables


def _shown(found: Found) -> list[str]:
    """The columns of what was measured at all: without a judge, or of features, some are empty."""
    return [name for name in COLUMNS if any(each[name] is not None for each in found.values())]


def _of_judge(found: Found) -> str:
    """What the columns of a judge say; empty without one."""
    if "judge_size" not in _shown(found):
        return ""
    return (
        " Size to the judge: distance between corners in the features of sizes.judge, over that "
        "between two images of the data set; initial class kept: the share of corners to which it "
        "gives the class of their initial image."
    )


_SIZES = ("relative_size", "pooled_size", "relative_size_proved")
_UNEQUAL = 2.0  # times the smallest feature error


def _errors(found: Found) -> dict[str, float]:
    """Each network's mean feature error, where it was measured."""
    every = {network: entries["feature_relative_max"] for network, entries in found.items()}
    return {network: each.mean for network, each in every.items() if each is not None}


def _unequal(found: Found) -> str:
    """Names the networks whose sizes are of a larger feature error than the others'.

    A looser tolerance lets a hull be larger, so such sizes say nothing of the networks.
    """
    errors = _errors(found)
    least = min(errors.values(), default=0.0)
    above = [name for name, error in errors.items() if error > _UNEQUAL * least]
    if not above:
        return ""
    said = ", ".join(f"{name} ({errors[name]:.3f})" for name in above)
    return (
        f" Sizes of {said} are at feature errors more than {_UNEQUAL:g} times the smallest "
        f"({least:.3f}): do not compare them."
    )


def _overview(
    found: Found,
    extra: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
    pairs: int,
    note: str,
) -> Table:
    rows, shown = [], _shown(found)
    for network, entries in found.items():
        cells = [_mean(name, entries[name]) for name in shown]
        rows.append([network, *cells, *(number(extra[network][name]) for name in columns)])
    heading = f"{len(found)} networks, {pairs} pair{'s' if pairs > 1 else ''}"
    names = [_NAMES[name][0] for name in shown]
    return Table(heading, ["network", *names, *columns], rows, note)


def _mean(name: str, interval: Interval | None) -> str:
    return "-" if interval is None else number(interval.mean, _NAMES[name][1])


def _paired(against: Found, reference: str, errors: Mapping[str, float]) -> Table:
    shown = [name for name in _shown(against) if name != "seconds"]
    rows = []
    for network, entries in against.items():
        pair = sorted(errors.get(name, 0.0) for name in (network, reference))
        unequal = pair[1] > _UNEQUAL * pair[0]
        rows.append([
            network,
            *("errors differ" if unequal and name in _SIZES else _signed(name, entries[name])
              for name in shown),
        ])  # fmt: skip
    heading = f"Differences to {reference}, pair by pair"
    note = (
        "* the interval excludes 0. Sizes at feature errors that differ by more than a factor of "
        f"{_UNEQUAL:g} are not compared. {_WARNING}"
    )
    return Table(heading, ["network", *(_NAMES[name][0] for name in shown)], rows, note)


def _signed(name: str, interval: Interval | None) -> str:
    if interval is None:
        return "-"
    form = "+" + _NAMES[name][1]
    text = number(interval.mean, form)
    if interval.low is None:
        return text
    star = " *" if interval.decides else ""
    return f"{text} [{number(interval.low, form)}, {number(interval.high, form)}]{star}"


def _means_csv(
    found: Found,
    extra: Mapping[str, Mapping[str, float]],
    columns: Sequence[str],
) -> str:
    """A line per network."""
    rows = [
        [network, *_all_ends(entries), *(extra[network][name] for name in columns)]
        for network, entries in found.items()
    ]
    return as_csv(["network", *_ends(COLUMNS), *columns], rows)


def _pairs_csv(figures: Figures, pairs: Sequence[str]) -> str:
    """A line per hull."""
    rows = [
        [network, pair, *(entry[name] for name in COLUMNS)]
        for network, entries in figures.items()
        for pair, entry in zip(pairs, entries, strict=True)
    ]
    return as_csv(["network", "pair", *COLUMNS], rows)


def _differences_csv(figures: Figures, seed: int) -> str:
    """A line for every two networks."""
    rows = [
        [second, first, *_all_ends(differences(figures, second, first, seed))]
        for first, second in combinations(figures, 2)
    ]
    return as_csv(["network", "other", *_ends(COLUMNS)], rows)


def _all_ends(entries: Mapping[str, Interval | None]) -> list[float | None]:
    return [end for name in COLUMNS for end in entries[name] or (None, None, None)]


def _ends(names: Iterable[str]) -> list[str]:
    return [name + ending for name in names for ending in ("", "_low_95", "_high_95")]
