"""Terms of a report for a network's output: classes, or an encoder's features."""

from collections.abc import Sequence
from pathlib import Path

from ..hull.hull import Hull
from ..hull.outputs import Features
from ..percent import percent
from ..runs.evaluation import Evaluation, Sample
from ..runs.records import Corner, Summary
from .tables import number


class Words:
    """Terms for classes and probabilities; `words_of` gives those for features, too.

    Attributes:
        names: one per class; for an encoder those of the initial image and the target.
        figure: entry of a sample with the histogram.
        chart: name of the histogram's file.
    """

    figure, chart = "probability", "probabilities"
    sample_columns = ("accuracy", "at least (95 %)", "mean probability", "smallest")
    under_pictures = "Under a picture: its class, and its probability of the target's class."
    over_hull = (
        "Probability of the target's class at sampled points of the hull, for both samplers; the "
        "dashed line is the target's own. Bins are 0.02 wide."
    )
    explored = "Class and probability are not computed here: the classifier was run"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def pair(self, summary: Summary) -> tuple[str, str]:
        """Names of the initial image and the target."""
        return self.names[summary.initial_class], self.names[summary.target_class]

    def of_initial(self, summary: Summary) -> str:
        """Output for the initial image."""
        return self._seen(summary.initial_class, summary.initial_label)

    def of_target(self, summary: Summary) -> str:
        """Output for the target; empty for an encoder, whose cosine is 1."""
        seen = self._seen(summary.target_class, summary.target_label)
        return f"{seen}, {summary.target_probability:.4f}"

    def _seen(self, found: int, label: int | None) -> str:
        """The network's class of an image, after the data set's where they differ."""
        if label is None or label == found or label >= len(self.names):
            return self.names[found]
        return f"{self.names[label]}, classified as {self.names[found]}"

    def of_corner(self, entry: Corner) -> str:
        """Output for a corner, or another image."""
        return ", ".join(self.corner_cells(entry))

    def of_worst_points(self, result: Evaluation) -> dict[str, str]:
        """Captions of the worst points found, by their pictures; empty if there is none."""
        error = result.worst_feature_relative
        of_features = "" if error is None else f"feature error {error:.3g} of ||f(t)||"
        return {"worst_case": self.of_worst(result), "worst_features": of_features}

    def of_worst(self, result: Evaluation) -> str:
        """Output for the worst point; empty if there is none."""
        if result.worst_case_class is None:
            return ""
        return (
            f"{self.names[result.worst_case_class]}; probability of the target's class "
            f"{result.worst_case_probability:.4f}"
        )

    def corner_columns(self, summary: Summary) -> tuple[str, ...]:
        """Headings of `corner_cells`."""
        return "class", f"probability of {self.names[summary.target_class]}"

    def corner_cells(self, entry: Corner) -> tuple[str, ...]:
        """Cells with the output for a corner."""
        return self.names[entry.predicted_class], f"{entry.probability:.4f}"

    def sample_cells(self, sample: Sample) -> tuple[str, ...]:
        """Cells of a sample, below `sample_columns`."""
        shares = percent(sample.accuracy), percent(sample.accuracy_lower_95)
        return (*shares, f"{sample.probability_mean:.4f}", f"{sample.probability_min:.4f}")

    def histogram(self, result: Evaluation) -> tuple[str, float]:
        """Label of the histogram's axis, and position of its line."""
        return f"probability of {self.names[result.target_class]}", result.target_probability


class _OfFeatures(Words):
    """Cosines and relative errors: an encoder has no classes."""

    figure, chart = "cosine", "cosines"
    sample_columns = ("mean cosine", "least", "relative error of the output", "same")
    under_pictures = "Under a picture: the cosine of its features with the target's."
    over_hull = (
        "Cosine with the target's features at sampled points of the hull, for both samplers; the "
        "dashed line is the initial image's. Bins are 0.02 wide."
    )
    explored = "The cosine is not computed here: the encoder was run"

    def pair(self, summary: Summary) -> tuple[str, str]:
        return self.names[0], self.names[1]

    def of_initial(self, summary: Summary) -> str:
        return f"cosine {number(summary.initial_cosine, '.4f')}"

    def of_target(self, summary: Summary) -> str:
        return ""

    def of_corner(self, entry: Corner) -> str:
        return f"cosine {number(entry.cosine, '.4f')}"

    def of_worst(self, result: Evaluation) -> str:
        cosine = result.worst_case_cosine
        return "" if cosine is None else f"cosine {cosine:.4f}"

    def corner_columns(self, summary: Summary) -> tuple[str, ...]:
        return "cosine with the target", "relative error of the output"

    def corner_cells(self, entry: Corner) -> tuple[str, ...]:
        return number(entry.cosine, ".4f"), number(entry.output_relative, ".3g")

    def sample_cells(self, sample: Sample) -> tuple[str, ...]:
        cosines = f"{sample.cosine_mean:.4f}", f"{sample.cosine_min:.4f}"
        return (*cosines, number(sample.output_relative_max, ".3g"), number(sample.same, "%"))

    def histogram(self, result: Evaluation) -> tuple[str, float]:
        return "cosine with the target", result.initial_cosine


def words_of(output: str, names: Sequence[str]) -> Words:
    """The Words of a kind of output.

    Args:
        output: `classes` or `features`.
        names: from `names_of`.
    """
    return _OfFeatures(names) if output == "features" else Words(names)


def names_of(
    hull: Hull,
    of_data: Sequence[str],
    own: Sequence[str] = (),
    pictures: Sequence[object] = ("initial", "target"),
) -> Sequence[str]:
    """One name per class of a network; for an encoder those of the initial image and the target.

    Args:
        hull: of the network.
        of_data: names of the data set's classes.
        own: names of the classifier's.
        pictures: the settings `initial` and `target`.
    """
    if isinstance(hull.output, Features):
        return [_picture(str(each), of_data) for each in pictures]
    return classes_of(of_data, len(hull.output.target), own)


def _picture(choice: str, of_data: Sequence[str]) -> str:
    """The name of a class, with the image's number, or of a file."""
    name, colon, rank = choice.partition(":")
    numbered = {str(k): each for k, each in enumerate(of_data)}
    if name in of_data or name in numbered:
        return (name if name in of_data else numbered[name]) + colon + rank
    return Path(choice).name


def unnamed(names: Sequence[str], of_data: Sequence[str]) -> str:
    """Message if neither images nor network name the classes; otherwise empty."""
    if names[:1] != ["class 0"]:
        return ""
    return (
        f"classes: the network has {len(names)} outputs, the images {len(of_data)} classes; if it "
        "is an encoder, set classifier.output=features"
    )


def classes_of(class_names: Sequence[str], count: int, own: Sequence[str] = ()) -> Sequence[str]:
    """One name for each of the `count` classes of a classifier.

    If the data set has another number of names, the classifier's `own` names are used, otherwise
    numbers.
    """
    numbers = [f"class {k}" for k in range(count)]
    return next(names for names in (class_names, own, numbers) if len(names) == count)
