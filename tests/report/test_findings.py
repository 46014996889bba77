"""One description, three renderings: the same rows in Markdown, HTML and on the terminal."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from feature_collisions.escaping import for_line
from feature_collisions.evaluation.evaluate import OF_TWO_CORNERS, SAMPLED
from feature_collisions.report.findings import (
    Evidence,
    claims_table,
    describe,
    effort,
    few_steps,
    unmet_line,
)
from feature_collisions.report.report import write_report
from feature_collisions.report.tables import as_text
from feature_collisions.report.words import words_of
from feature_collisions.runs.evaluation import Evaluation
from feature_collisions.runs.records import Summary
from helpers.hulls import NASTY, evaluated, made_hull

NAMES = ("three", NASTY, "a|b *c* _d_ <i>", "seven")


class Tables(HTMLParser):
    """The cells of every table, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.depth = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.depth = 1
        elif self.depth and tag == "small":
            self.rows[-1].append("")  # the fine print is a cell in Markdown

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.depth = 0

    def handle_data(self, data):
        if self.depth:
            self.rows[-1][-1] += data


def words(cells):
    return sorted(for_line(cell) for cell in cells if cell)


@pytest.fixture
def hull():
    return made_hull(3, (1, 12, 12))


@pytest.mark.usefixtures("undrawn")
def test_markdown_html_and_terminal_hold_the_same_rows(hull, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    result = evaluated(hull, tmp_path)
    write_report(tmp_path, hull, result, NAMES)
    description = describe(hull.summary, result, NAMES)
    markdown = MarkdownIt("commonmark").enable("table").render((tmp_path / "report.md").read_text())
    tables = [claims_table(description.claims), *description.tables]
    expected = [words(row) for table in tables for row in table.rows]
    for page in (markdown, (tmp_path / "report.html").read_text()):
        found = [words(row) for row in Tables(page).rows]
        for row in expected:
            assert row in found
    shown = as_text(claims_table(description.claims, notes=False)).splitlines()
    for line, claim in zip(shown[2:], description.claims, strict=True):
        assert [for_line(part) for part in claim[:3]] == [p.strip() for p in cut(line, shown[1])]


def test_the_corners_say_on_which_side_a_unit_is_hidden_where_the_layer_has_two(hull):
    def table():
        found = next(t for t in describe(hull.summary, RESULT, NAMES).tables if "unit" in t.columns)
        return found, [dict(zip(found.columns, row, strict=True)) for row in found.rows]

    found, rows = table()
    assert "side" not in rows[0]
    assert not found.note
    for entry, side in zip(hull.summary["corners"], ("below", "above", "below"), strict=True):
        entry["side"] = side
    found, rows = table()
    assert [row["side"] for row in rows] == ["below", "above", "below"]
    assert "above its ceiling" in found.note


RESULT = Evaluation(target_class=1, target_probability=0.5)


def cut(line, rule):
    """The cells of a line, by the dashes under the columns' names."""
    start, parts = 0, []
    for dashes in rule.split("  "):
        parts.append(line[start : start + len(dashes)])
        start += len(dashes) + 2
    return parts


def test_every_measurement_has_a_row(hull, tmp_path):
    """What a measurement adds to evaluation.json changes what the report says."""
    result = evaluated(hull, tmp_path)
    whole = describe(hull.summary, result, NAMES)
    entries = {
        "distances": (
            "corner_distance_mean",
            "relative_size",
            "initial_distance_mean",
            "pooled_sizes",
        ),
        "looks": ("corner_distance_min", "corner_ssim_mean"),
        "balls": ("ball_accuracy", "ball_span_accuracy", "ball_clipped_accuracy"),
        "simplices": ("random_simplex_accuracy",),
        "plain": ("plain_accuracy",),
        "worst_case": ("worst_case_class",),
        "edges": ("edges",),
        "collision_proof": ("proof",),
        "collision_check": ("proof",),
        "class_proof": ("proof",),
        "class_check": ("proof",),
        "faces": ("proof",),
        "depth": ("depth",),
        **{name: (name,) for name in SAMPLED},  # the outcome among them
        "worst_features": ("worst_feature_relative",),
        "hidden": ("hidden_dimensions",),
    }
    assert result["pooled_sizes"].keys() == {"1", "2"}
    assert result["pooled_sizes"]["1"] == pytest.approx(result["relative_size"])
    result = Evaluation.model_validate(
        result.entries()
        | {
            "pooled_sizes": {"1": 1.0, "8": 0.6},
            "rounding": {"float64": 1e-15, "float32": 1e-8, "uint8": 1e-3},
            "plain_accuracy": 0.5,
            "depth": {"share": [0.5, 0.5, 0.5]},
        }
    )
    whole = describe(hull.summary, result, NAMES)
    assert set(OF_TWO_CORNERS) | set(SAMPLED) <= set(entries)
    for keys in entries.values():
        for key in keys:
            without = {k: v for k, v in result.entries().items() if k != key}
            found = Evaluation.model_validate(without)
            assert describe(hull.summary, found, NAMES) != whole, key


@pytest.mark.parametrize(("size", "sees"), [(0.49, False), (0.5, True)])
def test_pictures_are_called_different_where_their_averages_are(hull, tmp_path, size, sees):
    result = evaluated(hull, tmp_path) | {"pooled_sizes": {"1": 1.5, "8": size}}
    notes = " ".join(claim.note for claim in describe(hull.summary, result, NAMES).claims)
    assert ("differ after averaging 8x8 pixels; whether a person" in notes) == sees
    assert ("is within squares" in notes) != sees


def described(changed=None, **entries):
    summary = {
        "experiment": "mnist", "classifier": "c", "layer": "l", "initial_class": 0,
        "target_class": 3, "steps": 1, "seconds": 1.0, "converged": False, "corners": [],
    }  # fmt: skip
    result = Evaluation.model_validate({"target_class": 3, "target_probability": 0.9} | entries)
    return describe(Summary.of(summary | (changed or {})), result, NAMES)


def claims_of(**entries):
    found = described(**entries)
    assert found.warning
    return {claim.label: claim for claim in found.claims}


COLLIDES = {
    "outcome": "features collide",
    "hull_relative": 0.2,
    "dirichlet": {"samples": 10, "accuracy": 1.0, "accuracy_lower_95": 0.7, "probability_min": 0.5,
                  "feature_relative_max": 4.6e-7},
}  # fmt: skip


@pytest.mark.parametrize(
    ("within", "outcome", "wide"),
    [(2, "features collide", True), (1, "features collide", False), (9, "class only", False)],
)
def test_a_line_that_ordinary_images_are_within_is_called_too_wide(within, outcome, wide):
    images = {"images": 200, "within": within, "nearest": 0.125, "median": 0.75}
    found = described(**COLLIDES | {"outcome": outcome, "dataset_features": images})
    said = f"the limit is too wide for this network: {within} of 200 images of the data set"
    assert (said in found.headline) == wide
    claims = {claim.label: claim for claim in found.claims}
    said = f"Of 200 random images of the data set {within} are within the limit: nearest 0.12, "
    assert f"{said}median 0.75" in claims["outcome"].note


def test_a_pair_of_one_class_is_warned_of():
    said = "The initial image already has this class; the class says nothing here."
    assert said in described({"initial_class": 3}).warning
    assert said not in described().warning
    assert said not in described({"initial_class": -1, "target_class": -1, "output": "features",
                                  "initial_cosine": 0.5}, output="features").warning  # fmt: skip


def test_what_is_proved_takes_precedence_over_samples_that_round():
    proof = {"by": "affine", "feature_relative_max": 6.95e-9, "feature_error_max": 1e-9,
             "inactive_max": 0.0}  # fmt: skip
    of_class = {"outcome": "proved", "margin_min": 1.0, "probability_min": 0.50001}
    claims = claims_of(**COLLIDES, proof={"collision": proof, "class": of_class})
    assert "feature error at most 7e-09 (proved) of ||f(t)||" in claims["outcome"].value
    for label in ("outcome", "features of those mixes", "their probability of seven"):
        assert "samples are of float32 arithmetic" in claims[label].note, label
    loose = proof | {"feature_relative_max": 0.1}
    claims = claims_of(**COLLIDES, proof={"collision": loose})
    assert "feature error 4.6e-07 (sampled), at most 0.1 (proved) of" in claims["outcome"].value
    assert "float32" not in claims["outcome"].note


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "feature error 4.6e-07 (sampled) of"),
        ({"worst_feature_relative": 0.15}, "feature error 0.15 (searched) of"),
        ({"worst_feature_relative": 0.15, "proof": {"collision": {
            "feature_relative_max": 0.19, "feature_error_max": 1.0, "by": "bounds"}}},
         "feature error 0.15 (searched), at most 0.19 (proved) of"),
        ({"worst_feature_relative": 0.15, "proof": {"collision": {"feature_relative_max": 7.0}}},
         "feature error 0.15 (searched) of"),
    ],
)  # fmt: skip
def test_the_outcome_says_how_its_feature_error_is_known(known, said):
    claims = claims_of(**COLLIDES, **known)
    assert said in claims["outcome"].value
    if "worst_feature_relative" in known:
        assert claims["worst features found"].known == "searched"


def test_the_first_size_comes_with_those_that_qualify_it():
    claims = claims_of(
        corner_distance_mean=3.0, dataset_distance_mean=2.0, relative_size=1.5,
        pooled_sizes={"1": 1.5, "8": 0.09},
        proof={"class": {"relative_size_proved": 0.37}},
    )  # fmt: skip
    value = claims["how different the corners are"].value
    assert value.startswith(
        "relative size 1.50 (0.09 after averaging 8x8 pixels; 0.37 proved of the class): "
    )
    assert [claim for claim in claims.values() if "0.09 after averaging" in claim.value] == [
        claims["how different the corners are"]
    ]


@pytest.mark.parametrize(("by", "first"), [("affine", False), ("bounds", True)])
def test_what_a_layer_sees_is_to_first_order_unless_it_is_affine(by, first):
    proof = {"by": by, "feature_relative_max": 0.1, "feature_error_max": 0.1}
    claim = claims_of(
        pixel_dimensions=3072, seen_dimensions=62, hidden_dimensions=3010,
        hidden_dimensions_exact=True, proof={"collision": proof},
    )["directions of the pixels"]  # fmt: skip
    assert claim.known is Evidence.COMPUTED
    assert ("to first order at the target" in claim.value) == first


def test_a_whole_share_is_said_without_digits():
    whole = COLLIDES["dirichlet"]
    claims = claims_of(dirichlet=whole, stick_breaking=whole)
    assert claims["mixes that are seven, with other samplers"].value == "100 % of each sample"
    assert claims["mixes of the corners that are seven"].value.startswith("100 % of 10")
    nearly = whole | {"accuracy": 0.99999}
    claims = claims_of(dirichlet=nearly, stick_breaking=nearly)
    assert claims["mixes that are seven, with other samplers"].value.startswith("99.999 % or more")


def test_edges_that_were_not_reached_have_no_table():
    edge = {"corners": [0, 1]}
    edges = {"share_held": 0.0, "share_failed": 0.0, "edges": [edge, edge]}
    found = described(edges=edges)
    assert "Its edges" not in [table.heading for table in found.tables]
    (claim,) = found.claims
    assert claim.value == "not walked: not reached in edges.seconds"
    assert claim.note == ""
    walked = {"corners": [0, 2], "walked": 1.0, "held": 1.0}
    found = described(edges=edges | {"share_held": 0.5, "edges": [edge, walked]})
    (table,) = (table for table in found.tables if table.heading == "Its edges")
    assert [row[1] for row in table.rows] == ["not walked", "100 %"]


def test_what_the_check_of_a_certificate_shows_is_said():
    """All, a part with its size, or why not: the latter two are not proved."""
    proof = {"outcome": "proved", "share_proved": 1.0, "margin_min": 1.0, "probability_min": 0.9}
    found = {"share_proved": 1.0, "scale_proved": 1.0, "subdomains": 48, "bounds": 70}
    label = "certificate of the proof (class)"

    def claim(**changed):
        checked = found | {"seconds": 3.21} | changed
        return claims_of(proof={"class": proof | {"checked": checked}})[label]

    assert claim().value == "checked on the whole hull"
    assert claim().known is Evidence.PROVED
    assert claim().note.endswith("48 subdomains, 70 bounds, 3.2 s")
    part = claim(share_proved=0.75, scale_proved=0.5, reason="loose")
    assert (
        part.value == "checked on 75 % of the hull's volume, and on all of the hull shrunk to 50 %"
    )
    assert part.known is Evidence.NOT_PROVED
    assert part.note.endswith("; loose")
    assert claim(share_proved=0.0, reason="gelu").value == "not checked: gelu"


def test_what_is_proved_of_a_share_is_said_of_that_share():
    proof = {"outcome": "undecided", "share_proved": 0.25, "pieces": 7}
    claim = claims_of(proof={"class": proof})["class of every mix"]
    assert claim.known is Evidence.NOT_PROVED
    assert claim.value == "undecided: proved seven on 25 % of the hull's volume"
    claim = claims_of(proof={"class": proof}, degenerate=True)["class of every mix"]
    assert claim.value.endswith("of the hull's weights")
    claim = claims_of(proof={"class": proof | {"share_proved": 0.0}})["class of every mix"]
    assert claim.known is Evidence.NOT_PROVED


def test_a_counter_example_is_shown():
    example = {"weights": [0.25, 0.75], "class": 0}
    proof = {"outcome": "refuted", "share_proved": 0.5, "pieces": 7, "counter_example": example}
    claim = claims_of(proof={"class": proof})["class of every mix"]
    assert claim.known is Evidence.REFUTED
    assert claim.value == f"not all seven: the mix of weights 0.25, 0.75 is {NAMES[0]}"
    assert claim.note == "bounds in float64 prove seven on 50 % of the hull's volume"


def test_features_are_bounded_where_the_layer_is_not_affine():
    proof = {"by": "bounds", "feature_relative_max": 0.05, "feature_error_max": 0.25,
             "feature_relative_seen": 0.0125, "pieces": 9, "seconds": 1.0}  # fmt: skip
    claim = claims_of(proof={"collision": proof})["features of every mix"]
    assert claim.value == "at most 0.05 of ||f(t)|| from the target's"
    assert "0.0125 of ||f(t)||" in claim.note


@pytest.mark.parametrize("by", ["affine", "bounds"])
def test_a_bound_above_one_is_no_useful_bound(by):
    proof = {"by": by, "feature_relative_max": 7.16, "feature_error_max": 9.0, "inactive_max": 1.0,
             "feature_relative_seen": 0.01, "pieces": 9, "seconds": 1.0}  # fmt: skip
    claim = claims_of(proof={"collision": proof})["features of every mix"]
    assert claim.known is Evidence.NOT_PROVED
    assert claim.value == "no useful bound"


@pytest.mark.parametrize("part", ["class", "collision"])
def test_what_is_not_proved_says_why(part):
    proof = {"reason": "the layer bends", "outcome": "undecided", "share_proved": 0.0}
    (claim,) = claims_of(proof={part: proof}).values()
    assert claim.known is Evidence.NOT_PROVED
    assert claim.value == "the layer bends"


def test_edges_that_fail_are_named():
    edge = {"corners": [0, 2], "first_failure": [0.25, 0.5], "walked": 1.0, "proved": 0.75,
            "pieces": 4, "margin_min": -1.0, "rounding": 1e-12}  # fmt: skip
    edges = {
        "precision": 64,
        "share_held": 0.75,
        "share_proved": 0,
        "share_failed": 0.25,
        "edges": [edge],
    }
    (claim,) = claims_of(edges=edges).values()
    assert claim.value == "seven on 75 % of their length, another class on 25 %"
    assert "rounding sampled" in claim.note
    (claim,) = claims_of(edges=edges | {"share_proved": 0.5}).values()
    assert "rounding bounded on 50 %" in claim.note
    assert "between corners 0 and 2, from 0.250000 to 0.500000" in claim.note
    (claim,) = claims_of(edges=edges | {"share_failed": 0.125}).values()
    assert claim.value == "87.5 % walked, another class on 12.5 %; the rest was not reached"
    clean = edges | {"share_held": 0.303, "share_failed": 0.0}
    (claim,) = claims_of(edges=clean | {"edges": [edge | {"first_failure": None}]}).values()
    assert claim.value == "30.3 % walked, all seven; the rest was not reached"
    (claim,) = claims_of(edges=edges | {"share_held": 0, "share_failed": 0}).values()
    assert claim.known is Evidence.NOT_PROVED
    (claim,) = claims_of(edges={"reason": "GELU bends everywhere"}).values()
    assert claim.known is Evidence.NOT_PROVED
    assert claim.value == "not walked: GELU bends everywhere"


def test_a_worst_point_of_another_class_is_named():
    found = claims_of(worst_case_class=0, worst_case_correct=False, worst_case_probability=0.1)
    assert found["worst mix found"].value == "not seven, with probability 0.1000"
    assert found["worst mix found"].note == "its class is three"
    worst = {"worst_case_class": 0, "worst_case_correct": False, "worst_case_probability": 0.1}
    said = "; but a search found a mix that is three"
    assert said in claims_of(**COLLIDES, **worst)["outcome"].note
    same = worst | {"worst_case_class": 1, "worst_case_correct": True}
    assert said not in claims_of(**COLLIDES, **same)["outcome"].note


def test_each_way_of_knowing_is_explained():
    assert all(kind.meaning for kind in Evidence)
    assert Evidence("proved") is Evidence.PROVED


def test_the_proved_size_is_said_where_there_is_one():
    part = {"outcome": "undecided", "share_proved": 0.25, "pieces": 7, "scale_proved": 0.61999,
            "relative_size_proved": 0.31}  # fmt: skip
    whole = {"by": "bounds", "feature_relative_max": 0.05, "feature_error_max": 0.25, "pieces": 9,
             "feature_relative_seen": 0.0125, "scale_proved": 1.0}  # fmt: skip
    claims = claims_of(proof={"class": part, "collision": whole}, hull_relative=0.2)
    assert claims["proved size (class)"].known is Evidence.PROVED
    assert claims["proved size (class)"].value.endswith("shrunk about its centroid to 61.9 %")
    assert claims["proved size (class)"].note == "relative size 0.31"
    assert "0.2 of ||f(t)|| on the whole" in claims["proved size (collision)"].value
    claims = claims_of(proof={"class": part | {"scale_proved": 0.0}})
    assert "proved size (class)" not in claims


def test_a_search_that_missed_only_a_stricter_limit_collides_nevertheless(hull):
    late = hull.summary | {"unmet": ["L_pos of corners [0] is late"], "hull_relative": 0.2}
    near, far = (late | {"corner_feature_relative_max": error} for error in (0.17, 0.21))
    assert "but the features collide (0.17 of 0.2). Not met: L_pos of" in unmet_line(near)
    assert unmet_line(far) == "not converged: L_pos of corners [0] is late"


def test_few_steps_are_said_to_leave_the_size_open(hull):
    few, enough = (hull.summary | {"steps": steps} for steps in (499, 500))
    assert "499 steps" in few_steps(few)
    assert few_steps(few) in describe(few, RESULT, NAMES).lead
    assert few_steps(enough) == ""
    assert "fewer than 1000" in few_steps(enough | {"usual_steps": 1000})
    assert few_steps(few | {"usual_steps": 400}) == ""
    for entry in few.corners:
        entry.total_variation = 0.1  # a composite: other budgets are usual
    assert few_steps(few) == ""


def test_exact_corners_far_apart_are_named_after_the_target_alone(hull):
    exact = hull.summary | {"solver": "exact", "objective": "random"}
    assert describe(exact, RESULT, NAMES).headline.startswith("What the first layer cannot see at")
    assert "steps" not in effort(exact)
    assert few_steps(exact) == ""
    near = exact | {"objective": "near"}
    assert " → " in describe(near, RESULT, NAMES).headline


def test_rounding_that_nobody_checked_is_not_a_share_of_zero():
    edge = {"corners": [0, 1], "walked": 1.0, "held": 1.0, "unconfirmed": None}
    unlike = edge | {"corners": [0, 2], "unconfirmed": 1.0}
    found = described(edges={"share_held": 1.0, "share_failed": 0.0, "edges": [edge, unlike]})
    (table,) = (table for table in found.tables if table.heading == "Its edges")
    column = table.columns.index("rounding bounded on")
    assert table.rows[0][column] == "not checked"
    assert table.rows[1][column].startswith("0")


@pytest.mark.parametrize(
    ("label", "said"),
    [(0, "airplane, classified as ship"), (1, "ship"), (None, "ship"), (9, "ship")],
)
def test_a_picture_that_is_classified_wrongly_has_both_classes(label, said):
    entries = {"initial_class": 1, "initial_label": label, "target_class": 1,
               "target_label": label, "target_probability": 0.5}  # fmt: skip
    words, summary = words_of("classes", ("airplane", "ship")), Summary.of(entries)
    assert words.of_initial(summary) == said
    assert words.of_target(summary) == f"{said}, 0.5000"
