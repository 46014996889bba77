"""What an evaluation found, in sentences and tables: sampled, searched, walked, proved.

With the tables of the paper (Tables 1 to 5), and this run beside them.
"""

from typing import Any, NamedTuple

from .tables import markdown_table, number


def claims(result: dict[str, Any], target: str) -> list[str]:
    """What the numbers show, and no more, from the weakest evidence to the strongest."""
    found = [f"Not measured: {name}: {why}." for name, why in result.get("failed", {}).items()]
    if "outcome" in result:
        why = f" ({'; '.join(result['outcome_reasons'])})" if result["outcome_reasons"] else ""
        found.append(f"Outcome: {result['outcome']}{why}.")
    if sample := result.get("dirichlet"):
        found.append(
            f"Sampled, not proved: of {sample['samples']} points drawn uniformly from the hull "
            f"{sample['accuracy']:.2%} are {target}, so at least "
            f"{sample['accuracy_lower_95']:.3%} of the hull are, at 95 % confidence "
            "(Clopper-Pearson)."
        )
    if "left_out" in result:
        found.append(f"One corner only, left out: {', '.join(result['left_out'])}.")
        return found
    if "worst_case_correct" in result:
        verdict = "still" if result["worst_case_correct"] else "not"
        found.append(
            f"Searched: the worst point that gradient search found is {verdict} {target}, with "
            f"probability {result['worst_case_probability']:.4f}."
        )
    if "edges" in result:
        found.append(_walked(result["edges"], target))
    return [*found, *_proved(result.get("proof", {}), target)]


def _walked(edges: dict[str, Any], target: str) -> str:
    if "reason" in edges:
        return f"Edges not walked: {edges['reason']}."
    share, bits = edges["share_proved"], edges["precision"]
    text = f"Walked exactly, float{bits}: {share:.4%} of the edges' length is proved to be {target}"
    first = next((edge for edge in edges["edges"] if edge["first_failure"]), None)
    if first is None:
        return f"{text}, up to rounding; no piece of another class was met."
    low, high = first["first_failure"]
    return (
        f"{text}, {edges['share_failed']:.4%} is not: first between corners {first['corners'][0]} "
        f"and {first['corners'][1]}, from {low:.6f} to {high:.6f} of the way."
    )


def _proved(proof: dict[str, Any], target: str) -> list[str]:
    found = []
    if collision := proof.get("collision"):
        found.append(_collision(collision))
    if of_class := proof.get("class"):
        found.append(_class(of_class, target))
    return found


def _collision(collision: dict[str, Any]) -> str:
    if "reason" in collision:
        return f"Collision not proved: {collision['reason']}. It is an empirical finding here."
    if collision["by"] == "affine":
        return (
            "Proved (section 2: the layer is affine, so the largest error over the hull is at a "
            "corner; of the corners as saved, float32, computed in float64): at every "
            f"point of the hull L_pos is at most {number(collision['positive_relative_max'])} of "
            f"||f(t)||, no inactive unit is "
            f"above {number(collision['inactive_max'])}, and no activation is off by more than "
            f"{collision['feature_error_max']:.4g}."
        )
    return (
        "Proved (bounds in float64, pieces of the hull: "
        f"{collision['pieces']}): at every point of the hull ||f(x) - f(t)|| is at most "
        f"{number(collision['feature_relative_max'])} of ||f(t)||, and no activation is off by "
        f"more than {collision['feature_error_max']:.4g}. The largest that was met is "
        f"{number(collision['feature_relative_seen'])} of ||f(t)||."
    )


def _class(of_class: dict[str, Any], target: str) -> str:
    share = of_class.get("share_proved", 0.0)
    proved = f"Bounds prove {share:.2%} of the hull's volume to be {target}"
    if of_class["outcome"] == "proved":
        return (
            f"Proved: every point of the hull is {target}; its logit is at least "
            f"{of_class['margin_min']:.4g} above any other, its probability at least "
            f"{of_class['probability_min']:.4f} (bounds in float64, pieces of the hull: "
            f"{of_class['pieces']})."
        )
    if of_class["outcome"] == "refuted":
        weights = ", ".join(f"{weight:.4f}" for weight in of_class["counter_example"]["weights"])
        why = f" ({of_class['reason']})" if "reason" in of_class else ""
        return f"Refuted{why}: the point of weights {weights} is not {target}. {proved}."
    if "reason" in of_class:
        return f"Class undecided: {of_class['reason']}."
    return f"Class undecided: {proved.lower()}; of the rest they say nothing."


def baselines_table(result: dict[str, Any]) -> str:
    """Table 5, and the other sets the hull is compared with."""
    rows = [
        ("the hull, Dirichlet(1)", result.get("dirichlet", {}).get("accuracy")),
        ("ball, any direction (appendix B)", result.get("ball_accuracy")),
        ("the same, clipped to [0, 1]", result.get("ball_clipped_accuracy")),
        ("ball in the corners' own span", result.get("ball_span_accuracy")),
        ("the corners' simplex, turned at random", result.get("random_simplex_accuracy")),
        ("hull of plain Eq. 1 solutions", result.get("plain_accuracy")),
    ]
    return markdown_table(
        ["points of", "target's class"], [[name, number(share, ".2%")] for name, share in rows]
    )


def edges_table(edges: dict[str, Any]) -> str:
    """One row an edge; empty where none could be walked."""
    if "edges" not in edges:
        return ""
    rows = [
        [
            "{} to {}".format(*edge["corners"]),
            f"{edge['walked']:.4%}",
            f"{edge['proved']:.4%}",
            str(edge["breakpoints"]),
            number(edge["margin_min"]),
            f"{edge['rounding']:.1e}",
        ]
        for edge in edges["edges"]
    ]
    header = ["edge", "walked", "class proved", "linear pieces", "smallest margin", "rounding"]
    return markdown_table(header, rows)


def sizes_table(result: dict[str, Any]) -> str:
    """How far apart the corners are, and how deep."""
    size = number(result.get("relative_size"), ".3f")
    if "relative_size_reason" in result:
        size += f" ({result['relative_size_reason']})"
    least = number(result.get("corner_distance_min"), ",.2f")
    rows = [
        ["distance between corners over the data set's", size],
        ["smallest distance between two corners", least],
        ["share of it that 8x8 pixels' averages keep", number(result.get("macro_share"), ".3f")],
        ["SSIM between corners", number(result.get("corner_ssim_mean"))],
        ["SSIM to the initial image", number(result.get("ssim_to_initial"))],
        ["SSIM to the target", number(result.get("ssim_to_target"))],
        ["LPIPS between corners", number(result.get("corner_lpips_mean"))],
    ]
    if result.get("total_variation") is not None:
        rows.append(["R(P), mean over the corners", number(result["total_variation"], ",.0f")])
    shares = result.get("depth", {}).get("share")
    if shares:
        text = ", ".join(number(share, ".3f") for share in shares)
        rows.append(["L_neg over Eq. 2's exact optimum, each corner", text])
    return markdown_table(["", "this run"], rows)


class Case(NamedTuple):
    """One row of the paper's tables; distances are L2, on its own pixel scale."""

    name: str
    images_distance: float
    corners_distance: float
    accuracy: float
    target_probability: float
    sampled_probability: float
    ball_accuracy: float | None = None


_IMAGENET = 37_538.22
_MNIST = (Case("paper, Table 1 (Figure 2): 3 to 7", 10.21, 1.28, 1.0, 1.0, 1.0),)
_PIXELS = (
    Case("paper, Table 2 (Figure 3a): home theater to jeep", _IMAGENET, 4906.56, 1, 0.993, 0.995),
    Case("paper, Table 2 (Figure 3b): spaniel to goldfish", _IMAGENET, 8959.69, 1, 0.999, 0.999),
)
_MACRO = (
    Case("paper, Table 3 (Figure 7a): trimaran to obelisk",
         _IMAGENET, 5909.37, 1, 0.997, 0.992, 0.248),
    Case("paper, Table 3 (Figure 7b): eggnog to eraser",
         _IMAGENET, 6074.86, 1, 0.579, 0.585, 0.035),
    Case("paper, Table 4 (Figure 8): church", _IMAGENET, 8597.34, 1, 0.952, 0.877, 0.092),
    Case("paper, Table 4 (Figure 9): cleaver", _IMAGENET, 9587.92, 1, 0.999, 0.8, 0.0),
)  # fmt: skip

CASES = {
    "mnist": _MNIST,
    "vgg_pixel": _PIXELS,
    "squeezenet_pixel": _PIXELS,
    "vgg_macro": _MACRO,
    "squeezenet_macro": _MACRO,
}
"""The rows of the paper that an experiment stands for; other experiments have none."""


def comparison(experiment: str, result: dict[str, Any], target: str) -> str:
    """Tables 1 to 5 as one: this run, and the paper's rows of the same experiment."""
    sample = result.get("dirichlet", {})
    unknown = float("nan")
    here = Case(
        "this run",
        result.get("dataset_distance_mean", unknown),
        result.get("corner_distance_mean", unknown),
        sample.get("accuracy", unknown),
        result["target_probability"],
        sample.get("probability_mean", unknown),
        result.get("ball_accuracy"),
    )
    header = [
        "",
        "distance between images of the data set",
        "distance between corners",
        f"interpolations that are {target}",
        "probability, target",
        "probability, interpolations",
        "ball of that size (Table 5)",
    ]
    return markdown_table(header, [_row(case) for case in (here, *CASES.get(experiment, ()))])


def _row(case: Case) -> list[str]:
    """Shares as percentages, everything else to four places; the paper's as it prints them."""
    probability = ".4f" if case.name == "this run" else ""
    forms = (",.2f", ",.2f", ".2%", probability, probability, ".1%")
    values = [None if value != value else value for value in case[1:]]
    return [case.name, *(number(v, form) for v, form in zip(values, forms, strict=True))]
