"""Terms of a report for a network's output: classes, or an encoder's features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from ..hull.hull import Hull
from ..hull.outputs import Features
from ..runs.evaluation import Evaluation, Sample
from ..runs.records import Corner, Summary
from .tables import number


class Words(ABC):
    """Terms for one kind of output.

    Args:
        names: one per class; for an encoder those of the initial image and the target.
    """

    figure: ClassVar[str]
    """Entry of a sample with the histogram."""
    chart: ClassVar[str]
    """Name of the histogram's file."""
    sample_columns: ClassVar[tuple[str, ...]]
    under_pictures: ClassVar[str]
    over_hull: ClassVar[str]
    explored: ClassVar[str]

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    @abstractmethod
    def pair(self, summary: Summary) -> tuple[str, str]:
        """Names of the initial image and the target."""

    @abstractmethod
    def of_initial(self, summary: Summary) -> str:
        """Output for the initial image."""

    @abstractmethod
    def of_target(self, summary: Summary) -> str:
        """Output for the target."""

    @abstractmethod
    def corner_columns(self, summary: Summary) -> tuple[str, ...]:
        """Headings of `corner_cells`."""

    @abstractmethod
    def corner_cells(self, entry: Corner) -> tuple[str, ...]:
        """Cells with the output for a corner."""

    def of_corner(self, entry: Corner) -> str:
        """Caption of a corner."""
        return ", ".join(self.corner_cells(entry))

    @abstractmethod
    def sample_cells(self, sample: Sample) -> tuple[str, ...]:
        """Cells of a sample."""

    @abstractmethod
    def of_image(self, hull: Hull, output: Tensor) -> str:
        """Caption of an image with output (1, D)."""

    @abstractmethod
    def of_worst(self, result: Evaluation) -> str:
        """Caption of the worst point; empty if there is none."""

    @abstractmethod
    def histogram(self, result: Evaluation) -> tuple[str, float]:
        """Label of the histogram's axis, and position of its line."""


class ClassWords(Words):
    """Classes and probabilities."""

    figure, chart = "probability", "probabilities"
    sample_columns = ("accuracy", "at least (95 %)", "mean probability", "smallest")
    under_pictures = "Under a picture: its class, and its probability of the target's class."
    over_hull = (
        "Probability of the target's class at sampled points of the hull, for both samplers; the "
        "dashed line is the target's own. Bins are 0.02 wide."
    )
    explored = "Class and probability are not computed here: the classifier was run"

    def pair(self, summary: Summary) -> tuple[str, str]:
        """Their classes."""
        return self.names[summary.initial_class], self.names[summary.target_class]

    def of_initial(self, summary: Summary) -> str:
        """Its class."""
        return self.names[summary.initial_class]

    def of_target(self, summary: Summary) -> str:
        """Its class and probability."""
        return f"{self.names[summary.target_class]}, {summary.target_probability:.4f}"

    def corner_columns(self, summary: Summary) -> tuple[str, ...]:
        """Its class, and the probability of the target's."""
        return "class", f"probability of {self.names[summary.target_class]}"

    def corner_cells(self, entry: Corner) -> tuple[str, ...]:
        """Its class, and the probability of the target's."""
        return self.names[entry.predicted_class], f"{entry.probability:.4f}"

    def sample_cells(self, sample: Sample) -> tuple[str, ...]:
        """The share of the target's class, and its probability."""
        return (
            f"{sample.accuracy:.2%}",
            f"{sample.accuracy_lower_95:.3%}",
            f"{sample.probability_mean:.4f}",
            f"{sample.probability_min:.4f}",
        )

    def of_image(self, hull: Hull, output: Tensor) -> str:
        """Its class, and the probability of the target's."""
        said = hull.output.of_images(output)[0]
        return f"{self.names[said.predicted_class]}, {said.probability:.4f}"

    def of_worst(self, result: Evaluation) -> str:
        """Its class, and the probability of the target's."""
        if result.worst_case_class is None:
            return ""
        return (
            f"{self.names[result.worst_case_class]}; probability of the target's class "
            f"{result.worst_case_probability:.4f}"
        )

    def histogram(self, result: Evaluation) -> tuple[str, float]:
        """The probability of the target's class; the line is the target's."""
        target = self.names[result.target_class]
        return f"probability of {target}", result.target_probability


class FeatureWords(Words):
    """Cosines and relative errors of features."""

    figure, chart = "cosine", "cosines"
    sample_columns = ("mean cosine", "least", "relative error of the output", "same")
    under_pictures = "Under a picture: the cosine of its features with the target's."
    over_hull = (
        "Cosine with the target's features at sampled points of the hull, for both samplers; the "
        "dashed line is the initial image's. Bins are 0.02 wide."
    )
    explored = "The cosine is not computed here: the encoder was run"

    def pair(self, summary: Summary) -> tuple[str, str]:
        """What the settings call them: there are no classes."""
        return self.names[0], self.names[1]

    def of_initial(self, summary: Summary) -> str:
        """Its cosine."""
        return f"cosine {number(summary.initial_cosine, '.4f')}"

    def of_target(self, summary: Summary) -> str:
        """Empty: its cosine is 1."""
        return ""

    def corner_columns(self, summary: Summary) -> tuple[str, ...]:
        """Its cosine, and its output's relative error."""
        return "cosine with the target", "relative error of the output"

    def corner_cells(self, entry: Corner) -> tuple[str, ...]:
        """Its cosine, and its output's relative error."""
        return number(entry.cosine, ".4f"), number(entry.output_relative, ".3g")

    def of_corner(self, entry: Corner) -> str:
        """Its cosine."""
        return f"cosine {number(entry.cosine, '.4f')}"

    def sample_cells(self, sample: Sample) -> tuple[str, ...]:
        """The cosines, the largest error, and the share above the threshold."""
        return (
            f"{sample.cosine_mean:.4f}",
            f"{sample.cosine_min:.4f}",
            number(sample.output_relative_max, ".3g"),
            number(sample.same, ".2%"),
        )

    def of_image(self, hull: Hull, output: Tensor) -> str:
        """Its cosine."""
        return f"cosine {hull.output.of_images(output)[0].cosine:.4f}"

    def of_worst(self, result: Evaluation) -> str:
        """Its cosine."""
        cosine = result.worst_case_cosine
        return "" if cosine is None else f"cosine {cosine:.4f}"

    def histogram(self, result: Evaluation) -> tuple[str, float]:
        """The cosine; the line is the initial image's."""
        return "cosine with the target", result.initial_cosine


def words_of(output: str, names: Sequence[str]) -> Words:
    """The Words of a kind of output.

    Args:
        output: `classes` or `features`.
        names: from `names_of`.
    """
    return FeatureWords(names) if output == "features" else ClassWords(names)


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
