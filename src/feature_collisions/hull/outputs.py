"""Outputs of a network: classes, or the features of an encoder.

All code that depends on the kind of output is here: figures of an image, the margin of a point,
statistics of a sample, and the outcome.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.devices import device_for
from ..graph.target import TargetFeatures
from ..runs.evaluation import Sample
from ..runs.records import Corner, Summary
from .statistics import CLASS, FEATURES, NEITHER, HullStatistics, Outcome, clopper_pearson_lower

_BINS = 50
_NEAR = 0.05  # largest difference between mean probability and the target's


class Output(ABC):
    """Compares a network's outputs (B, D) with its output for the target, (D,)."""

    kind: ClassVar[str]
    compared: ClassVar[tuple[str, ...]]
    """Entries of a sample that baselines keep."""
    otherwise: ClassVar[str]
    """Outcome if all points have the target's output, but the feature error is too large."""
    target_class = -1
    """Class of the target; None for an encoder."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def to(self, place: torch.device) -> Self:
        """A copy on another device."""
        copy = type(self).__new__(type(self))
        copy.__dict__ |= self.__dict__ | {"target": self.target.to(place)}
        return copy

    @abstractmethod
    def of_pair(self, initial: Tensor) -> Summary:
        """What `summary.json` says of the initial image, whose output (D,) is given, and target.

        Its other entries are not set.
        """

    @abstractmethod
    def of_images(self, outputs: Tensor) -> list[Corner]:
        """What is said of each corner, or of another image; other entries are not set."""

    def takes(self, image: Corner) -> bool | None:
        """Whether an image, of which this is said, is taken for the target; None: no rule says."""
        return None

    @abstractmethod
    def margin(self, outputs: Tensor) -> Tensor:
        """(B,) objective that the search for the worst point minimises, with gradients."""

    @abstractmethod
    def goodness(self, outputs: Tensor) -> Tensor:
        """(B,) smallest at the worst point."""

    @abstractmethod
    def unlike(self, outputs: Tensor, limit: float) -> dict[str, Tensor]:
        """Images (B,) with which a search must not end, by reason; `{}` is their placeholder."""

    @abstractmethod
    def statistics(self, target: TargetFeatures) -> HullStatistics:
        """Statistics that give the entries of a sampler in `evaluation.json`."""

    @abstractmethod
    def reasons(self, sample: Sample) -> list[str]:
        """Reasons why a sample's points do not all have the target's output; may be empty."""

    @abstractmethod
    def bars(self, outputs: Tensor) -> Tensor:
        """(B, k) in [0, 1], the bars of the page's explorer."""

    def outcome(self, sample: Sample, limit: float, at_corners: float | None = None) -> Outcome:
        """The outcome of a hull; it is sampled, not proved.

        Args:
            sample: from `HullStatistics.compute`.
            limit: of the feature error ||f(x) - f(t)|| / ||f(t)||.
            at_corners: largest feature error of a corner, if known: samples are rarely near one.

        Example:
            >>> sample = Sample(accuracy=1.0, probability_mean=0.7, feature_relative_max=0.4)
            >>> Classes(torch.zeros(2), 0, 0.7).outcome(sample, limit=0.3)
            Outcome(name='class only', reasons=['feature error 0.400 ||f(t)||, the limit is 0.3'])
        """
        reasons = self.reasons(sample)
        name, largest = NEITHER if reasons else self.otherwise, sample.feature_relative_max
        if largest is None:
            reasons.append("the target has no active unit, so there is no ||f(t)|| to compare with")
        elif not largest <= limit:
            reasons.append(f"feature error {largest:.3f} ||f(t)||, the limit is {limit:g}")
        elif at_corners is not None and not at_corners <= limit:
            reasons.append(
                f"feature error {at_corners:.3f} ||f(t)|| at a corner, the limit is {limit:g}"
            )
        return Outcome(name if reasons else FEATURES, reasons)


class Classes(Output):
    """Logits (B, classes): the target's class, right or wrong, and its probability.

    Args:
        target: (classes,) the target's logits.
        target_class: None for the class of these logits.
        probability: of that class at the target; None for that of these logits.
    """

    kind = "classes"
    compared = ("accuracy", "samples", "accuracy_lower_95", "feature_relative_max")
    otherwise = CLASS

    def __init__(
        self, target: Tensor, target_class: int | None = None, probability: float | None = None
    ) -> None:
        super().__init__(target)
        self.target_class = int(target.argmax()) if target_class is None else target_class
        own = float(target.softmax(0)[self.target_class])
        self.probability = own if probability is None else probability

    def of_pair(self, initial: Tensor) -> Summary:
        """The classes of both, and the target's probability."""
        return Summary.model_construct(
            initial_class=int(initial.argmax()),
            target_class=self.target_class,
            target_probability=self.probability,
        )

    def of_images(self, outputs: Tensor) -> list[Corner]:
        """The class, and the probability of the target's class."""
        of_target = outputs.softmax(1)[:, self.target_class].tolist()
        return [
            Corner.model_construct(predicted_class=predicted, probability=probability)
            for predicted, probability in zip(outputs.argmax(1).tolist(), of_target, strict=True)
        ]

    def takes(self, image: Corner) -> bool:
        """Whether it is of the target's class."""
        return image.predicted_class == self.target_class

    def margin(self, outputs: Tensor) -> Tensor:
        """Logit of the target's class minus the largest other one."""
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        others = wide.clone()
        others[:, self.target_class] = -torch.inf
        return wide[:, self.target_class] - others.amax(1)

    def goodness(self, outputs: Tensor) -> Tensor:
        """Probability of the target's class, plus 1 if it is predicted."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        probability = outputs.to(wide).softmax(1)[:, self.target_class]
        return probability + (outputs.argmax(1) == self.target_class)

    def unlike(self, outputs: Tensor, limit: float) -> dict[str, Tensor]:
        """Images of another class, and those with a probability not within `limit`."""
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        off = (wide.softmax(1)[:, self.target_class] - self.probability).abs()
        reason = f"the probability of corners {{}} is not within stop.probability={limit:g} "
        return {
            "corners {} are not of the target's class": outputs.argmax(1) != self.target_class,
            reason + "of the target's": ~(off <= limit),
        }

    def statistics(self, target: TargetFeatures) -> HullStatistics:
        """Accuracy, probability and divergence."""
        return OfClasses(target, self)

    def reasons(self, sample: Sample) -> list[str]:
        """Points of another class, and a mean probability far from the target's."""
        found, mean = [], sample.probability_mean
        if sample.accuracy < 1:
            wrong = sample.samples - round(sample.accuracy * sample.samples)
            found.append(f"{wrong} of {sample.samples} interpolations are of another class")
        if not abs(mean - self.probability) <= _NEAR:
            found.append(f"mean probability {mean:.3f}, the target's is {self.probability:.3f}")
        return found

    def bars(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        return outputs.softmax(1)


class Features(Output):
    """Features (B, D) of an encoder, which has no classes: their cosine and relative error.

    Args:
        target: (D,) the encoder's output for the target.
        threshold: cosine above which two images count as the same; None if unknown.
    """

    kind = "features"
    compared = ("cosine_min", "samples", "same", "same_lower_95", "feature_relative_max")
    otherwise = NEITHER

    def __init__(self, target: Tensor, threshold: float | None = None) -> None:
        super().__init__(target)
        self.threshold = threshold

    def of_pair(self, initial: Tensor) -> Summary:
        """Cosine between both, and the threshold."""
        cosine = float(self.cosines(initial[None])[0])
        found = Summary.model_construct(output=self.kind, initial_cosine=cosine)
        return found if self.threshold is None else found | {"threshold": self.threshold}

    def of_images(self, outputs: Tensor) -> list[Corner]:
        """Cosine with the target's features, and relative distance from them."""
        errors, norm = self.errors(outputs).tolist(), float(self.target.norm())
        return [
            Corner.model_construct(cosine=cosine, output_relative=error / norm if norm else None)
            for cosine, error in zip(self.cosines(outputs).tolist(), errors, strict=True)
        ]

    def cosines(self, outputs: Tensor) -> Tensor:
        """Cosines (B,) with the target's features, in float64 if the device supports it."""
        wide = torch.float64 if device_for(outputs.device) == outputs.device else torch.float32
        target = self.target.to(wide)[None]
        cosines: Tensor = F.cosine_similarity(outputs.to(wide), target, eps=1e-30)
        return cosines

    def errors(self, outputs: Tensor) -> Tensor:
        """Distances (B,) from the target's features."""
        errors: Tensor = (outputs - self.target).norm(dim=1)
        return errors

    def margin(self, outputs: Tensor) -> Tensor:
        """The cosine."""
        return F.cosine_similarity(outputs, self.target[None])

    goodness = cosines

    def unlike(self, outputs: Tensor, limit: float) -> dict[str, Tensor]:
        """Empty: an encoder's search depends only on its features."""
        return {}

    def statistics(self, target: TargetFeatures) -> HullStatistics:
        """Cosine, relative error, and the share above the threshold."""
        return OfFeatures(target, self)

    def reasons(self, sample: Sample) -> list[str]:
        """Empty: an encoder's outcome depends only on its features."""
        return []

    def bars(self, outputs: Tensor) -> Tensor:
        """The cosine; 0 if negative."""
        return self.cosines(outputs)[:, None].clamp(0, 1)


class OfClasses(HullStatistics):
    """Accuracy, and the probability of the target's class."""

    correct: Tensor
    probability_sum: Tensor
    probability_min: Tensor
    kl_sum: Tensor
    kl_max: Tensor
    logit_change_max: Tensor
    histogram: Tensor

    def __init__(self, target: TargetFeatures, output: Classes, **kwargs: Any) -> None:
        super().__init__(target, **kwargs)
        self.target_class = output.target_class
        self.target_logits = output.target.to(self.place).double()
        self.target_log = self.target_logits.log_softmax(0)
        for name in ("correct", "probability_sum", "kl_sum"):
            self.add_sum(name, whole=name == "correct")
        self.add_state("histogram", torch.zeros(_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_least("probability_min")
        self.add_largest("kl_max")
        self.add_largest("logit_change_max")
        self.to(self.place)

    def update(self, outputs: Tensor, preactivation: Tensor) -> None:
        """Add points: logits (B, classes), pre-activations (B, N)."""
        super().update(outputs, preactivation)
        logits = outputs.to(self.place).double()
        log = logits.log_softmax(1)
        probability = log[:, self.target_class].exp()
        divergence = (self.target_log.exp() * (self.target_log - log)).sum(1)
        given = outputs.to(self.place).argmax(1) == self.target_class
        self.correct += (given & probability.isfinite()).sum()  # argmax returns NaN as the largest
        self.probability_sum += probability.sum()
        count_in_bins(self.histogram, probability)
        self.probability_min = torch.minimum(self.probability_min, probability.min())
        self.kl_sum += divergence.sum()
        self.kl_max = torch.maximum(self.kl_max, divergence.max())
        change = (logits - self.target_logits).abs().max()
        self.logit_change_max = torch.maximum(self.logit_change_max, change)

    def compute(self) -> Sample:
        """Add the share of the target's class, and its probability.

        `kl_mean` and `kl_max` are KL(target || point) of the class probabilities, in nats.
        `logit_change_max` is the largest difference of a logit from the target's.
        `probability_histogram` counts points by the probability of the target's class, in equal
        bins from 0 to 1.
        """
        samples, correct = int(self.samples), int(self.correct)
        return super().compute() | Sample(
            accuracy=correct / samples,
            accuracy_lower_95=clopper_pearson_lower(correct, samples),
            probability_mean=float(self.probability_sum) / samples,
            probability_min=float(self.probability_min),
            probability_histogram=self.histogram.tolist(),
            kl_mean=float(self.kl_sum) / samples,
            kl_max=float(self.kl_max),
            logit_change_max=float(self.logit_change_max),
        )


class OfFeatures(HullStatistics):
    """Cosine with, and distance from, the target's features."""

    cosine_sum: Tensor
    cosine_min: Tensor
    error_max: Tensor
    same: Tensor
    histogram: Tensor

    def __init__(self, target: TargetFeatures, output: Features, **kwargs: Any) -> None:
        super().__init__(target, **kwargs)
        self.output = output.to(self.place)
        self.add_sum("cosine_sum")
        self.add_sum("same", whole=True)
        self.add_state("histogram", torch.zeros(_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_least("cosine_min")
        self.add_largest("error_max")
        self.to(self.place)

    def update(self, outputs: Tensor, preactivation: Tensor) -> None:
        """Add points: features (B, D), pre-activations (B, N) at the target layer."""
        super().update(outputs, preactivation)
        outputs = outputs.to(self.place)
        cosine = self.output.cosines(outputs).double()
        if self.output.threshold is not None:
            self.same += (cosine > self.output.threshold).sum()
        self.cosine_sum += cosine.sum()
        count_in_bins(self.histogram, cosine)
        self.cosine_min = torch.minimum(self.cosine_min, cosine.min())
        self.error_max = torch.maximum(self.error_max, self.output.errors(outputs).max().double())

    def compute(self) -> Sample:
        """Add the cosine with the target's output, and its largest relative error.

        `cosine_histogram` counts points by cosine in equal bins from 0 to 1, negative ones in the
        first. `same` is the share above the threshold.
        """
        samples, same, norm = int(self.samples), int(self.same), float(self.output.target.norm())
        found = super().compute() | Sample(
            cosine_mean=float(self.cosine_sum) / samples,
            cosine_min=float(self.cosine_min),
            cosine_histogram=self.histogram.tolist(),
            output_relative_max=float(self.error_max) / norm if norm else None,
        )
        if self.output.threshold is None:
            return found
        lower = clopper_pearson_lower(same, samples)
        return found | Sample(same=same / samples, same_lower_95=lower)


def count_in_bins(histogram: Tensor, values: Tensor) -> None:
    """Add values (B,) to the counts of equal bins from 0 to 1."""
    bins = (values * _BINS).long().clamp(0, _BINS - 1)  # NaN also goes to a bin
    histogram.index_add_(0, bins, torch.ones_like(bins))


def output_of(
    kind: str,
    target: Tensor,
    threshold: float | None = None,
    target_class: int | None = None,
    probability: float | None = None,
) -> Output:
    """Make the Output of a target.

    Args:
        kind: `classes` or `features`.
        target: (D,) the network's output for the target.
        threshold: see `Features`.
        target_class: see `Classes`.
        probability: of that class at the target, if known.
    """
    if kind == "features":
        return Features(target, threshold)
    return Classes(target, target_class, probability)
