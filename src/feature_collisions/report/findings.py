"""Results of an evaluation as rows, shown by report.md, report.html and the terminal.

Add the row of a new measurement here: a single number of `evaluation.json` is a line of `SIZES` or
`BASELINES`; anything else is a function in `CLAIMS` that reads entries and yields rows.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, Self

from ..evaluation.paper import CASES, Case
from ..hull.statistics import CLASS, FEATURES, NEITHER, limit_of
from ..percent import percent, share_of
from ..runs.evaluation import Edges, Evaluation, Faces, Sample
from ..runs.records import Summary
from ..settings.search import StopSettings
from ..simplex import SAMPLERS
from .tables import Table, number
from .words import words_of


class Evidence(StrEnum):
    """Kinds of evidence for a finding, each with its `meaning`."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> Self:
        """A kind that is equal to its name."""
        kind = str.__new__(cls, name)
        kind._value_, kind.meaning = name, meaning
        return kind

    PROVED = "proved", "holds at every point of the stated set, not only at samples"
    REFUTED = "refuted", "a counter-example is shown"
    WALKED = "walked", "along edges, up to rounding: exactly, or by bounds between points"
    SEARCHED = "searched", "the worst point that a gradient search found; there may be a worse one"
    SAMPLED = "sampled", "of random points; other points may differ"
    MEASURED = "measured", "computed from the pictures themselves"
    COMPUTED = "computed", "follows from the network's weights and the target, in float64"
    NOT_PROVED = "not proved", "tried without success: here the finding is empirical"
    NOT_MEASURED = "not measured", "failed, or left out"


_HEADLINES = {
    FEATURES: ": features collide",
    CLASS: ": same class, different features",
    NEITHER: ": no collision",
    None: "",
}
_IN_WORDS = {
    FEATURES: "every sampled mix of the corners has the target's class, with a mean probability "
    "within 0.05 of the target's; no feature error beyond the limit was seen",
    CLASS: "every sampled mix of the corners has the target's class, with a mean probability "
    "within 0.05 of the target's; a feature error beyond the limit was seen",
    NEITHER: "some sampled mix of the corners has another class, or their mean probability is "
    "more than 0.05 from the target's",
}

_OF_FEATURES = {
    FEATURES: "no mix of the corners with a feature error beyond the limit was seen",
    NEITHER: "a mix of the corners with a feature error beyond the limit was seen",
}

_RETURNS = {
    "probabilities": "The network returns probabilities; their logarithm is taken as logits"
}
_NOT_CONVERGED = "Some corners did not converge."

SAMPLER_WORDS = {
    "dirichlet": "uniform on the simplex",
    "stick_breaking": "stick-breaking (the authors')",
}
_EIGHT_BIT = "_uint8"
POINTS = {
    sampler + suffix: SAMPLER_WORDS[sampler] + words
    for sampler in SAMPLERS
    for suffix, words in (("", ""), (_EIGHT_BIT, ", 8-bit corners"))
}
"""Names of the samplers, by their keys in `evaluation.json`."""


class Finding(NamedTuple):
    """One row: subject, result, evidence and note."""

    label: str
    value: str
    known: Evidence
    note: str = ""


class Description(NamedTuple):
    """All text of a report about a hull, in order."""

    experiment: str
    headline: str
    lead: str
    warning: str
    claims: list[Finding]
    tables: list[Table]


def describe(summary: Summary, result: Evaluation, class_names: Sequence[str]) -> Description:
    """Describe a hull.

    Args:
        summary: content of `summary.json`.
        result: content of `evaluation.json`.
        class_names: one per class.
    """
    words = words_of(summary.output, class_names)
    initial, target = words.pair(summary)
    alone = _without_initial(summary)
    pair = f"What the first layer cannot see at {target}" if alone else f"{initial} → {target}"
    notes = _RETURNS.get(summary.returns), few_steps(summary)
    warnings = same_class_line(summary), "" if summary.converged else _NOT_CONVERGED
    count = len(summary.corners)
    tables = [
        *([comparison(summary.experiment, result, target)] if "target_class" in result else []),
        corners_table(summary, class_names),
        _points_table(result, class_names),
        _table("How large the hull is", _numbers(SIZES, result, Evidence.MEASURED)),
        _table("What it is compared with (Table 5)", _numbers(BASELINES, result, Evidence.SAMPLED)),
        _edges_table(result.edges),
    ]
    return Description(
        experiment=summary.experiment,
        headline=f"{pair}{_HEADLINES[result.outcome]}{_too_wide(result)}",
        lead=f"{summary.classifier}, layer {summary.layer}, {count} corner"
        f"{'s' * (count > 1)}, {effort(summary)}." + "".join(f" {note}." for note in notes if note),
        warning=" ".join(filter(None, warnings)),
        claims=[row for claim in CLAIMS for row in claim(result, class_names)],
        tables=[table for table in tables if table.rows],
    )


_NOTICEABLE = 0.01  # share of a data set's images within the limit that makes it too wide


def _too_wide(result: Evaluation) -> str:
    """Part of a headline: ordinary images have features within the limit, so it says little."""
    images = result.dataset_features
    if result.outcome != FEATURES or not images or images.within < _NOTICEABLE * images.images:
        return ""
    return (
        f"; but the limit is too wide for this network: {images.within} of {images.images} images "
        "of the data set are within it"
    )


def same_class_line(summary: Summary) -> str:
    """Warning that the initial image is of the target's class already; otherwise empty."""
    if _without_initial(summary) or summary.output != "classes":
        return ""
    if summary.get("initial_class") != summary.get("target_class"):
        return ""
    return "The initial image already has this class; the class says nothing here."


def _without_initial(summary: Summary) -> bool:
    """Whether the corners depend on the target alone."""
    return summary.solver == "exact" and summary.objective == "random"


def effort(summary: Summary) -> str:
    """Steps and time of the search, or time of an exact solution."""
    if summary.solver != "gradient":
        return f"solved in {summary.seconds:.2f} s, without a search"
    return f"{summary.steps} steps; search {summary.seconds:.2f} s"


def few_steps(summary: Summary) -> str:
    """Note on a search over pixels with fewer steps than its experiment takes; otherwise empty."""
    composite = any(entry.total_variation is not None for entry in summary.corners)
    usual = summary.usual_steps or StopSettings.max_steps
    if summary.solver != "gradient" or composite or summary.steps >= usual:
        return ""
    return (
        f"size: {summary.steps} steps were taken; with fewer than {usual} the size may not have "
        "levelled off, and more steps may enlarge it"
    )


def unmet_line(summary: Summary) -> str:
    """The limits of `stop` that were not met, next to the limit of a collision."""
    unmet = "; ".join(summary.unmet) or "see the warning above"
    error, limit = summary.corner_feature_relative_max, limit_of(summary)
    if error is None or error > limit:
        return f"not converged: {unmet}"
    return f"not converged, but the features collide ({error:.2g} of {limit:g}). Not met: {unmet}"


def _exact_to(summary: Summary) -> str:
    if (residual := summary.residual) is None:
        return ""
    return f" (as saved in float32; as found in float64 {residual:.1g} of ||W t||)"


def claims_table(claims: Sequence[Finding], notes: bool = True) -> Table:
    """The rows as one table, with or without notes."""
    return _table("What is claimed, and how it is known", claims, notes)


def _table(heading: str, findings: Sequence[Finding], notes: bool = True) -> Table:
    columns = ("", "found", "how known", "note")
    notes = notes and any(finding.note for finding in findings)
    count = 4 if notes else 3
    return Table(heading, columns[:count], [finding[:count] for finding in findings])


def corners_table(summary: Summary, class_names: Sequence[str]) -> Table:
    """One row per corner."""
    words, entries = words_of(summary.output, class_names), summary.corners
    clipped = any(entry.side == "above" for entry in entries)  # otherwise all are below 0
    pushed = summary.push == "unit"
    of_unit = ("unit", *(("side",) if clipped else ())) if pushed else ()
    value = ("pre-activation of the unit",) if pushed else ()
    columns = ("corner", *of_unit, "L_pos", "L_pos over ||f(t)||", *value,
               *words.corner_columns(summary))  # fmt: skip
    rows = [
        (
            str(entry.corner),
            *((str(entry.unit),) if pushed else ()),
            *((entry.side or "below",) if clipped else ()),
            f"{entry.positive:.4g}",
            number(entry.positive_relative, ".2g"),
            *((f"{entry.unit_preactivation:.1f}",) if pushed else ()),
            *words.corner_cells(entry),
        )
        for entry in entries
    ]
    note = "Side: where the activation hides the unit, below 0 or above its ceiling."
    return Table("The corners", columns, rows, note if clipped else "")


def collision_line(summary: Summary) -> str:
    """Feature error of the corners, with its limit; empty if not measured."""
    if (error := summary.corner_feature_relative_max) is None:
        return ""
    limit = limit_of(summary)
    said = "the corners collide" if error <= limit else "the corners do not collide"
    said += "; evaluate.py measures the hull between them"
    return (
        f"features: corners are at most {error:.2g} of ||f(t)|| from the target's, the limit is "
        f"{limit:g}: {said}{_exact_to(summary)}"
    )


def distance_line(summary: Summary, of_images: float | None = None) -> str:
    """Distance between the corners, with its unit; empty if not measured.

    Args:
        summary: of the run.
        of_images: mean distance between two images of the data set, pixels in [0, 1], if known.
    """
    if (mean := summary.corner_distance_mean) is None:
        return ""
    scale = summary.distance_scale
    line = f"distance: corners are {mean:,.4g} apart on average (L2, pixels in 0..{scale})"
    if not of_images:
        return f"{line}; evaluate.py compares that with the data set"
    return f"{line}, {mean / scale / of_images:.2f} times as far as two images of the data set"


# Claims: each reads its entries of evaluation.json, and yields nothing if they are missing.


def _not_measured(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    left_out = {"needs two corners": ", ".join(result.left_out)} if result.left_out else {}
    for label, reason in (result.failed | left_out).items():
        yield Finding(label, reason, Evidence.NOT_MEASURED)


def _outcome(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if not (value := result.outcome):
        return
    meaning = _OF_FEATURES if result.output == "features" else _IN_WORDS
    reasons = "; ".join(result.outcome_reasons)
    note = meaning[value] + (f" ({reasons})" if reasons else "")
    if (error := _largest_error(result)) is not None:
        limit = number(result.hull_relative, "g")
        value += f"; feature error {error} of ||f(t)||, the limit is {limit}"
        note += _rounded(_seen(result), result.at(_BOUND), ".2g")
    if (found := _another_class(result, names)) and result.outcome != NEITHER:
        note += f"; but a search found a mix that is {found}"
    if images := result.dataset_features:
        note += (
            f". Of {images.images} random images of the data set {images.within or 'none'} are "
            f"within the limit: nearest {images.nearest:.2g}, median {images.median:.2g}"
        )
    yield Finding("outcome", value, Evidence.SAMPLED, note)


_BOUND = "proof.collision.feature_relative_max"


def _seen(result: Evaluation) -> float | None:
    """The largest feature error of sampled points, of corners, and of the search."""
    uniform = result.dirichlet.feature_relative_max if result.dirichlet else None
    sampled = uniform if result.feature_relative_max is None else result.feature_relative_max
    known = [each for each in (sampled, result.worst_feature_relative) if each is not None]
    return max(known, default=None)


def _largest_error(result: Evaluation) -> str | None:
    """The largest feature error seen and a proved bound, each with how it is known."""
    if (error := _seen(result)) is None:
        return None
    how = "sampled" if result.worst_feature_relative is None else "searched"
    if (bound := result.at(_BOUND)) is None or bound > 1:
        return f"{error:.2g} ({how})"
    proved = f"at most {bound:.2g} (proved)"
    return proved if bound < error else f"{error:.2g} ({how}), {proved}"


def _sampled(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if (sample := result.dirichlet) is None:
        return
    yield from _classes(sample, result, names) if "accuracy" in sample else _cosines(sample, result)
    if (error := sample.feature_relative_max) is not None:
        yield Finding(
            "features of those mixes",
            f"at most {error:.3g} of ||f(t)|| from the target's",
            Evidence.SAMPLED,
            _seen_behind(result) + _rounded(error, result.at(_BOUND), ".3g"),
        )


def _cosines(sample: Sample, result: Evaluation) -> Iterator[Finding]:
    """For an encoder: cosines of the mixes, and the share above the threshold."""
    yield Finding(
        "cosine of mixes with the target",
        f"{sample.cosine_min:.4f} at least, {sample.cosine_mean:.4f} on average, of "
        f"{sample.samples}",
        Evidence.SAMPLED,
        f"of what the encoder returns, whose largest relative error is "
        f"{number(sample.output_relative_max, '.3g')}; the initial image's cosine is "
        f"{result.initial_cosine:.4f}",
    )
    if "same" in sample:
        yield Finding(
            "mixes that are the same as the target",
            _of_all(sample.same, sample.same_lower_95, sample),
            Evidence.SAMPLED,
            f"to a user who takes a cosine above {result.threshold:g} for the same; drawn "
            "uniformly from the hull, at 95 % confidence (Clopper-Pearson)",
        )


def _classes(sample: Sample, result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    """For a classifier: share of mixes of the target's class, and its probability."""
    target = names[result.target_class]
    least, of_class = sample.probability_min, result.proof.class_
    proved = of_class.probability_min if of_class and of_class.outcome == "proved" else None
    yield Finding(
        f"mixes of the corners that are {target}",
        _of_all(sample.accuracy, sample.accuracy_lower_95, sample),
        Evidence.SAMPLED,
        "drawn uniformly from the hull; at 95 % confidence (Clopper-Pearson)",
    )
    yield Finding(
        f"their probability of {target}",
        f"{sample.probability_mean:.4f} on average, {least:.4f} at least",
        Evidence.SAMPLED,
        f"the target's own is {result.target_probability:.4f}"
        + _rounded(-least, None if proved is None else -proved, ".7f"),
    )


def _of_all(share: float | None, least: float | None, sample: Sample) -> str:
    """A share of a sample, and what follows for all points."""
    sampled = share_of(share or 0.0, str(sample.samples))
    return f"{sampled}, so at least {percent(least or 0.0)} of all"


def _rounded(sampled: float | None, proved: float | None, form: str) -> str:
    """Note that a sample beyond a proved upper bound is rounding in float32."""
    if sampled is None or proved is None or sampled <= proved:
        return ""
    return (
        f"; samples are of float32 arithmetic, which rounds ({abs(sampled):{form}}); the proof is "
        f"of exact arithmetic ({abs(proved):{form}})"
    )


def _past(result: Evaluation) -> str:
    """Note that a statement is only about the layer, if a branch bypasses it."""
    return "at the layer, which is not all that later layers see: " if result.past else ""


def _seen_behind(result: Evaluation) -> str:
    """Meaning of the feature error: all that later layers see, unless a branch bypasses it."""
    if past := result.past:
        return f"largest ||f(x) - f(t)|| at the layer; later layers also see {', '.join(past[:3])}"
    if result.activation == "unknown":
        return "largest ||f(x) - f(t)||; that a ReLU follows was only checked numerically"
    return "largest ||f(x) - f(t)||: all that later layers see"


def _other_laws(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    key, form, what = "cosine_min", ".4f", "cosine of mixes with the target"
    if "target_class" in result:
        key, form, what = "accuracy", "%", f"mixes that are {names[result.target_class]}"
    others = {POINTS[k]: result[k][key] for k in POINTS if k in result and k != "dirichlet"}
    if others:
        least = min(others.values())
        yield Finding(
            f"{what}, with other samplers",
            f"{number(least, form)}{' or more' * (least < 1)} of each sample",
            Evidence.SAMPLED,
            "; ".join(f"{sampler}: {number(figure, form)}" for sampler, figure in others.items()),
        )


def _worst_case(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if (cosine := result.worst_case_cosine) is not None:
        yield Finding(
            "worst mix found", f"a cosine of {cosine:.4f} with the target", Evidence.SEARCHED
        )
    if result.worst_case_class is None:
        return
    target, seen = names[result.target_class], _another_class(result, names)
    yield Finding(
        "worst mix found",
        f"{'not' if seen else 'still'} {target}, with probability "
        f"{result.worst_case_probability:.4f}",
        Evidence.SEARCHED,
        f"its class is {seen}" if seen else "",
    )


def _another_class(result: Evaluation, names: Sequence[str]) -> str | None:
    """Class of the worst mix found, if it is not the target's."""
    if result.worst_case_correct or result.worst_case_class is None:
        return None
    return names[result.worst_case_class]


def _worst_features(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if (error := result.worst_feature_relative) is None:
        return
    sampled = result.feature_relative_max
    yield Finding(
        "worst features found",
        f"{error:.3g} of ||f(t)|| from the target's",
        Evidence.SEARCHED,
        "" if sampled is None else f"sampled points and corners show at most {sampled:.3g}",
    )


def _edges(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if not (edges := result.edges):
        return
    label, target = "edges between corners", names[result.target_class]
    if edges.reason:
        yield Finding(label, f"not walked: {edges.reason}", Evidence.NOT_PROVED)
        return
    share, failed, proved = edges.share_held, edges.share_failed, edges.share_proved
    if not share + failed:
        yield Finding(label, "not walked: not reached in edges.seconds", Evidence.NOT_PROVED)
        return
    value = f"{target} on {share_of(share, 'their length')}"
    rounding = f"rounding bounded on {percent(proved)}" if proved else "rounding sampled"
    walk = f"float{edges.precision}, {rounding}"
    note = f"{walk}; no part of another class was found"
    first = next((edge for edge in edges.edges if edge.first_failure), None)
    if first and first.first_failure:
        value += f", another class on {percent(failed, up=True)}"
        (one, other), (low, high) = first.corners, first.first_failure
        note = (
            f"{walk}; another class first between corners {one} and {other}, from {low:.6f} to "
            f"{high:.6f} of the way"
        )
    if share + failed < 1 - 1e-9:
        others = f"another class on {percent(failed, up=True)}" if first else f"all {target}"
        value = f"{percent(share + failed)} walked, {others}; the rest was not reached"
    yield Finding(label, value, Evidence.WALKED, note)


def _features_proof(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if not (proof := result.proof.collision):
        return
    label = "features of every mix"
    if proof.reason:
        yield Finding(label, proof.reason, Evidence.NOT_PROVED)
    elif (bound := proof.feature_relative_max) is not None and bound > 1:
        note = f"the bound is {bound:.3g} of ||f(t)||, and 1 is as far as no features at all"
        yield Finding(label, "no useful bound", Evidence.NOT_PROVED, note)
    else:
        off, where = f"{proof.feature_error_max:.4g}", ""
        note = (
            f"{_past(result)}no activation differs by more than {off}; the largest found is "
            f"{number(proof.feature_relative_seen, '.3g')} of ||f(t)|| (bounds in float64, pieces "
            f"of the hull: {proof.pieces})"
        )
        if proof.by == "linear":
            where = " at the first layer"
            note = (
                "the layer is linear and hides the difference: what is left is the rounding of the "
                f"corners as saved, at most {off} of any value (intervals in float64)"
            )
        elif proof.by == "affine":
            note = (
                f"{_past(result)}no inactive unit is above {number(proof.inactive_max)}, no "
                f"activation differs by more than {off} (section 2: the layer is affine, so L_pos "
                "and inactive units are largest at corners; of the corners as saved, in float64)"
            )
        value = f"at most {number(bound, '.3g')} of ||f(t)|| from the target's{where}"
        yield Finding(label, value, Evidence.PROVED, note)


def _hidden(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if (hidden := result.hidden_dimensions) is None:
        return
    exact, seen = result.hidden_dimensions_exact, result.seen_dimensions
    affine = result.at("proof.collision.by") in ("affine", "linear")
    yield Finding(
        "directions of the pixels",
        f"of {result.pixel_dimensions:,} the layer sees {'' if exact else 'at least '}{seen:,}"
        + ("" if affine else ", to first order at the target"),
        Evidence.COMPUTED,
        f"it hides {'' if exact else 'at most '}{hidden:,} at the target (the rank of its active "
        "units' values as a function of the pixels, in float64)",
    )


def _rounding(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    """Effect of rounding on an exact hull."""
    if not (found := result.rounding):
        return
    what = "outputs" if result.at("dirichlet.output_relative_max") is not None else "logits"
    key = "output_relative_max" if what == "outputs" else "logit_change_max"
    off = [number(result.at(f"dirichlet{suffix}.{key}"), ".2g") for suffix in ("", _EIGHT_BIT)]
    unit = " of the target's norm" if what == "outputs" else ""
    yield Finding(
        "first layer's values at the corners",
        f"residual {number(found.float64, '.1g')} of ||W t|| in float64, as found, "
        f"{found.float32:.2g} in float32, as saved, {found.uint8:.2g} in 8-bit PNGs",
        Evidence.MEASURED,
        f"{what} of sampled mixes differ by at most {off[0]} in float32 and {off[1]} in 8 bits"
        f"{unit}; {_amplified(result, found.amplification)}",
    )


def _amplified(result: Evaluation, measured: float | None) -> str:
    """What later layers make of the first layer's residual: proved, or measured, and why."""
    times = f"at the PNGs later layers multiply relative changes by up to {number(measured, '.2g')}"
    proof = result.proof.class_
    if proof and proof.outcome == "proved":
        return f"{times}; the class is proved of all that the float32 residual allows"
    why = f": {proof.reason}" if proof and proof.reason else ""
    return f"{times}; what they make of the residual at most has no bound here{why}"


def _class_proof(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if not (proof := result.proof.class_):
        return
    label, target = "class of every mix", names[result.target_class]
    tried = proof.pieces or proof.share_proved or proof.outcome != "undecided"
    if not (tried or proof.reason):
        yield Finding(label, "not tried: no time (proof.seconds)", Evidence.NOT_PROVED)
        return
    whole = f"the hull's {'weights' if result.degenerate else 'volume'}"  # if corners coincide
    share = f"{target} on {share_of(proof.share_proved, whole)}"
    if proof.outcome == "proved":
        yield Finding(
            label,
            f"{target}; its logit is at least {proof.margin_min:.4g} above any other, its "
            f"probability at least {proof.probability_min:.4f}",
            Evidence.PROVED,
            f"bounds in float64, pieces of the hull: {proof.pieces}",
        )
    elif proof.outcome == "refuted" and (example := proof.counter_example):
        weights = ", ".join(f"{weight:.4g}" for weight in example.weights)
        yield Finding(
            label,
            f"not all {target}: the mix of weights {weights} is {names[example.class_]}",
            Evidence.REFUTED,
            proof.reason or f"bounds in float64 prove {share}",
        )
    elif proof.reason:
        yield Finding(label, proof.reason, Evidence.NOT_PROVED)
    else:
        note = "the bounds leave the rest open"
        yield Finding(label, f"undecided: proved {share}", Evidence.NOT_PROVED, note)


def _proved_size(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    """Share to which the hull can be shrunk about its centroid such that a statement holds."""
    line = number(result.hull_relative, "g")
    statements = {"collision": f"features within {line} of ||f(t)||"}
    if "target_class" in result:
        statements = {"class": names[result.target_class]} | statements
    for name, statement in statements.items():
        if not (scale := result.at(f"proof.{name}.scale_proved")):
            continue
        size = result.at(f"proof.{name}.relative_size_proved")
        shrunk = f"the hull shrunk about its centroid to {percent(scale)}"
        yield Finding(
            f"proved size ({name})",
            f"{statement} on {'the whole hull' if scale == 1 else shrunk}",
            Evidence.PROVED,
            "" if size is None else f"relative size {size:.3g}",
        )


def _checked(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    """What the proofs' certificates show to the checker."""
    for name in ("collision", "class"):
        if (checked := result.at(f"proof.{name}.checked")) is None:
            continue
        label = f"certificate of the proof ({name})"
        if not checked.share_proved:
            reason = checked.reason or "it shows nothing"
            yield Finding(label, f"not checked: {reason}", Evidence.NOT_PROVED)
            continue
        value = "checked on the whole hull"
        if checked.share_proved < 1:
            value = (
                f"checked on {percent(checked.share_proved)} of the hull's volume, and on all of "
                f"the hull shrunk to {percent(checked.scale_proved)}"
            )
        yield Finding(
            label,
            value,
            Evidence.NOT_PROVED if checked.reason else Evidence.PROVED,
            f"by code that shares none with the search for the proof: {checked.subdomains} "
            f"subdomains, {checked.bounds} bounds, {checked.seconds:.1f} s"
            + (f"; {checked.reason}" if checked.reason else ""),
        )


def _faces(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if (faces := result.proof.faces) is None:
        return
    label, reason = "class of mixes of three corners", faces.reason
    if reason and reason != result.at("proof.class.reason"):
        yield Finding(label, reason, Evidence.NOT_PROVED)
    elif faces.triangles:
        count, refuted = len(faces.triangles), _states(faces).count("refuted")
        area = share_of(faces.share_proved, "the triangles' area")
        value = f"{names[result.target_class]} on {area}"
        note = f"bounds in float64 over {count} triangle{'s' * (count > 1)}"
        if refuted:
            value += f", not so in the middle of {refuted} parts"
        if not settled(faces):
            note += "; they settle no part in the time they have: there is nothing to draw"
        whole = set(_states(faces)) == {"proved"}
        known = Evidence.REFUTED if refuted else Evidence.PROVED if whole else Evidence.NOT_PROVED
        yield Finding(label, value, known, note)


def _states(faces: Faces) -> list[str]:
    """Status of each part of each triangle (`prove_faces`)."""
    return [part.state for each in faces.triangles for part in each.parts]


def settled(faces: Faces) -> bool:
    """Whether some part of a triangle is proved or refuted."""
    return any(state != "undecided" for state in _states(faces))


def _distances(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    if (mean := result.corner_distance_mean) is None:
        return
    value, note = f"{mean:,.2f} apart on average", result.relative_size_reason or ""
    if (size := result.relative_size) is not None:
        value = f"relative size {size:.2f}{_coarse_and_proved(result)}: {value}, two images of "
        value += f"the data set {result.dataset_distance_mean:,.2f}"
    if scale := result.distance_scale:
        value += f" (L2, pixels in 0..{scale})"
    if (coarse := result.pooled_sizes.get("8")) is not None:
        note = ", ".join(f"{n}x{n} {each:.2f}" for n, each in result.pooled_sizes.items())
        note = (
            f"relative sizes after averaging squares of pixels: {note}; {_COARSE[coarse >= COARSE]}"
        )
    yield Finding("how different the corners are", value, Evidence.MEASURED, note)


COARSE = 0.5  # relative size after averaging 8x8 pixels above which not only fine detail differs
_COARSE = {
    True: "the corners differ after averaging 8x8 pixels; whether a person recognises anything is "
    "not measured",
    False: f"below {COARSE} at 8x8: most of the difference is within squares of 8x8 pixels",
}


def _coarse_and_proved(result: Evaluation) -> str:
    """The sizes that qualify the relative size: after averaging, and proved."""
    of_class, of_features = (
        result.at(f"proof.{name}.relative_size_proved") or None for name in ("class", "collision")
    )
    both = of_class is not None and of_class == of_features
    sizes = [
        (result.pooled_sizes.get("8"), "after averaging 8x8 pixels"),
        (of_class, "proved" if both else "proved of the class"),
        (None if both else of_features, "proved of the features"),
    ]
    said = "; ".join(f"{size:.2f} {words}" for size, words in sizes if size is not None)
    return f" ({said})" if said else ""


def _judge(result: Evaluation, names: Sequence[str]) -> Iterator[Finding]:
    """Figures of the corners in another network."""
    if not (judge := result.judge):
        return
    said = f"{judge.initial_kept} of {judge.corners} corners are {{}}, as the initial image"
    value = said.format(names[judge.initial_class])
    if (size := judge.size) is not None:
        value = f"relative size {size:.2f} in its features; {value}"
    note = f"{judge.target_given} are {names[result.target_class]}, as the target is here"
    yield Finding(f"to {judge.network}", value, Evidence.MEASURED, note)


Claim = Callable[[Evaluation, Sequence[str]], Iterator[Finding]]
CLAIMS: tuple[Claim, ...] = (
    _outcome, _distances, _judge, _not_measured, _features_proof, _rounding, _hidden,
    _class_proof, _proved_size, _checked, _faces, _edges, _worst_case, _worst_features, _sampled,
    _other_laws,
)  # fmt: skip


class Entry(NamedTuple):
    """A number of `evaluation.json` that is a row: label, key and format."""

    label: str
    key: str
    form: str = ".4g"


SIZES = (
    Entry("relative size: distance between corners over that between images of the data set",
          "relative_size", ".3f"),
    Entry("mean width of the hull over that of two images of the data set; five equally distant "
          "corners: 2.1 times their relative size", "relative_width", ".3f"),
    Entry("smallest distance between two corners", "corner_distance_min", ",.2f"),
    Entry("mean distance of a corner from the initial image", "initial_distance_mean", ",.2f"),
    Entry("share of the distance that 8x8 pixels' averages keep", "macro_share", ".3f"),
    Entry("SSIM between corners", "corner_ssim_mean"),
    Entry("SSIM to the initial image", "ssim_to_initial"),
    Entry("SSIM to the target", "ssim_to_target"),
    Entry("correlation with the initial image, low-passed", "outline_of_initial", ".3f"),
    Entry("correlation with the target, low-passed", "outline_of_target", ".3f"),
    Entry("LPIPS between corners", "corner_lpips_mean"),
    Entry("R(P), mean over the corners", "total_variation", ",.0f"),
    Entry("L_neg over Eq. 2's exact optimum, per corner", "depth.share", ".3f"),
)  # fmt: skip
SETS = {
    "ball": "ball, any direction (appendix B)",
    "ball_clipped": "the same, clipped to [0, 1]",
    "ball_span": "ball in the corners' span",
    "random_simplex": "the corners' simplex, turned at random",
    "plain": "hull of plain Eq. 1 solutions",
}
"""What a hull is compared with (Table 5), by the beginning of its keys."""
BASELINES = tuple(
    Entry(label + more, prefix + key, form)
    for key, more, form in (("cosine_min", ": least cosine", ".4f"), ("accuracy", "", "%"))
    for prefix, label in (
        ("dirichlet.", "the hull, uniform"),
        *((f"{name}_", label) for name, label in SETS.items()),
    )
)


def _numbers(entries: Sequence[Entry], result: Evaluation, known: Evidence) -> list[Finding]:
    """One row per entry; entries without a value or reason are left out."""
    rows = []
    for label, key, form in entries:
        value, reason = result.at(key), result.at(f"{key.removesuffix('_mean')}_reason")
        values = value if isinstance(value, list) else [value]
        if reason or values != [None]:
            shown = ", ".join(number(each, form) for each in values)
            kind, note = (
                (Evidence.NOT_MEASURED, reason) if reason else (known, _counted(result, key))
            )
            rows.append(Finding(label, shown, kind, note))
    return rows


def _counted(result: Evaluation, key: str) -> str:
    """Number of points behind a share, and the bound that follows."""
    samples = result.at(key.removesuffix("accuracy") + "samples")
    least = result.at(f"{key}_lower_95")
    if samples is None or least is None:
        return ""
    error = result.at(key.removesuffix("accuracy") + "feature_relative_max")
    features = "" if error is None else f"; feature error at most {error:.3g} of ||f(t)||"
    return f"of {samples:,} points; at least {percent(least)}, at 95 % confidence{features}"


def _points_table(result: Evaluation, names: Sequence[str]) -> Table:
    """One row per sampler."""
    said = words_of(result.output, names)
    rows = [
        (
            words,
            str(sample.samples),
            *said.sample_cells(sample),
            number(sample.feature_relative_max),
            number(sample.positive_relative_max),
            number(sample.inactive_kept),
        )
        for key, words in POINTS.items()
        if (sample := result.get(key))
    ]
    columns = ("points", "samples", *said.sample_columns, "feature error over ||f(t)||",
               "L_pos over ||f(t)||", "inactive units kept")  # fmt: skip
    return Table("Points of the hull", columns, rows)


def _edges_table(edges: Edges | None) -> Table:
    """One row per edge; no rows if no edge could be walked."""
    rows = [
        (
            "{} to {}".format(*edge.corners),
            percent(edge.walked),
            percent(edge.held),
            percent(edge.proved) if edge.proved or edge.unconfirmed is not None else "not checked",
            str(edge.pieces),
            number(edge.margin_min),
            f"{edge.rounding:.1e}",
        )
        if edge.walked
        else ("{} to {}".format(*edge.corners), "not walked", *["-"] * 5)
        for edge in (edges.edges if edges and any(each.walked for each in edges.edges) else ())
    ]
    columns = ("edge", "walked", "class holds", "rounding bounded on", "pieces", "margin at least",
               "rounding")  # fmt: skip
    return Table("Its edges", columns, rows)


def comparison(experiment: str, result: Evaluation, target: str) -> Table:
    """Tables 1 to 5 in one: this run, and the paper's rows of the same experiment."""
    here = Case(
        "this run",
        result.dataset_distance_mean,
        result.corner_distance_mean,
        result.at("dirichlet.accuracy"),
        result.target_probability,
        result.at("dirichlet.probability_mean"),
        result.ball_accuracy,
    )
    columns = ("", "distance between images of the data set", "distance between corners",
               f"mixes that are {target}", "probability, target", "probability, mixes",
               "ball of that size (Table 5)")  # fmt: skip
    rows = [_row(case) for case in (here, *CASES.get(experiment, ()))]
    note = (
        "Tables 1 to 5: L2 distances, mixes of the corners, and a ball as large as the hull. The "
        "paper's rows are for its images and networks: compare distances only with the same."
    )
    return Table("Next to the paper's numbers", columns, rows, note)


def _row(case: Case) -> list[str]:
    """Shares as percentages, other figures to four places; the paper's as printed."""
    probability = ".4f" if case.name == "this run" else ""
    forms = (",.2f", ",.2f", "%", probability, probability, "%")
    return [case.name, *(number(v, form) for v, form in zip(case[1:], forms, strict=True))]
