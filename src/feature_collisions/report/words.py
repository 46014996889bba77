"""How a report speaks of what a network's output says: of classes, or of an encoder's features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from ..hull.hull import Hull
from ..hull.outputs import Features
from ..runs.evaluation import Evaluation, Sample
from ..runs.records import Corner, Summary
from .tables import number


class Words(ABC):
    """The words of one kind of output.

    Args:
        names: one per class; of an encoder what its cosine is called.
    """

    figure: ClassVar[str]
    """What a sample has a histogram of."""
    chart: ClassVar[str]
    """What the histogram's file is called."""
    sample_columns: ClassVar[tuple[str, ...]]
    under_pictures: ClassVar[str]
    over_hull: ClassVar[str]
    explored: ClassVar[str]

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    @abstractmethod
    def pair(self, summary: Summary) -> tuple[str, str]:
        """What the initial image and the target are called."""

    @abstractmethod
    def of_initial(self, summary: Summary) -> str:
        """What the network says of the initial image."""

    @abstractmethod
    def of_target(self, summary: Summary) -> str:
        """What it says of the target."""

    @abstractmethod
    def corner_columns(self, summary: Summary) -> tuple[str, ...]:
        """What the columns of `corner_cells` are called."""

    @abstractmethod
    def corner_cells(self, entry: Corner) -> tuple[str, ...]:
        """What it says of a corner."""

    def of_corner(self, entry: Corner) -> str:
        """The same under its picture."""
        return ", ".join(self.corner_cells(entry))

    @abstractmethod
    def sample_cells(self, sample: Sample) -> tuple[str, ...]:
        """What it says of a sample's points."""

    @abstractmethod
    def of_image(self, hull: Hull, output: Tensor) -> str:
        """What it says of an image, whose output (1, D) is given."""

    @abstractmethod
    def of_worst(self, result: Evaluation) -> str:
        """What it says of the worst point, or nothing where none was searched."""

    @abstractmethod
    def histogram(self, result: Evaluation) -> tuple[str, float]:
        """What the histogram's axis is called, and where its line is."""


class ClassWords(Words):
    """Classes and probabilities."""

    figure, chart = "probability", "probabilities"
    sample_columns = ("accuracy", "at least (95 %)", "mean probability", "smallest")
    under_pictures = "Under a picture: its class, and its probability of the target's class."
    over_hull = (
        "Probability of the target's class at sampled points of the hull, for both samplers; the "
        "dashed line is the target's own. Bins are 0.02 wide."
    )
    explored = "Class and probability are not computed here: the classifier was asked"

    def pair(self, summary: Summary) -> tuple[str, str]:
        """Their classes."""
        return self.names[summary.initial_class], self.names[summary.target_class]

    def of_initial(self, summary: Summary) -> str:
        """Its class."""
        return self.names[summary.initial_class]

    def of_target(self, summary: Summary) -> str:
        """Its class, and the probability of that."""
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
        """The probability of the target's class, and the target's own."""
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
    explored = "The cosine is not computed here: the encoder was asked"

    def pair(self, summary: Summary) -> tuple[str, str]:
        """What they are: nothing else is known of them."""
        return "initial", "target"

    def of_initial(self, summary: Summary) -> str:
        """Its cosine."""
        return f"cosine {number(summary.initial_cosine, '.4f')}"

    def of_target(self, summary: Summary) -> str:
        """Nothing: its cosine is 1."""
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
        """The cosines, the largest error, and the share above the user's threshold."""
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
        """The cosine, and the initial image's."""
        return "cosine with the target", result.initial_cosine


def words_of(output: str, names: Sequence[str]) -> Words:
    """How a report speaks of an output.

    Args:
        output: `classes` or `features`.
        names: as `names_of` gives them.
    """
    return FeatureWords(names) if output == "features" else ClassWords(names)


def names_of(hull: Hull, of_data: Sequence[str], own: Sequence[str] = ()) -> Sequence[str]:
    """One name for each of a network's classes; of an encoder what its cosine is called."""
    if isinstance(hull.output, Features):
        return ("cosine with the target",)
    return classes_of(of_data, len(hull.output.target), own)


def unnamed(names: Sequence[str], of_data: Sequence[str]) -> str:
    """What to say where neither images nor network name the classes; empty where they do."""
    if names[:1] != ["class 0"]:
        return ""
    return (
        f"classes: the network has {len(names)} outputs, the images {len(of_data)} classes; if it "
        "is an encoder, set classifier.output=features"
    )


def classes_of(class_names: Sequence[str], count: int, own: Sequence[str] = ()) -> Sequence[str]:
    """One name for each of the `count` classes of a classifier.

    Where the data set's names differ from the classes in number they are not theirs. Classes then
    have the classifier's `own` names, where it has any, or are called by number.
    """
    numbers = [f"class {k}" for k in range(count)]
    return next(names for names in (class_names, own, numbers) if len(names) == count)
