"""Outputs of a network: classes, or the features of an encoder.

All code that depends on the kind of output is here: figures of an image, the margin of a point,
statistics of a sample, and the outcome.
"""

from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.devices import device_for
from ..runs.evaluation import Sample
from ..runs.records import Corner, Summary
from .statistics import CLASS, FEATURES, NEITHER, Outcome, clopper_pearson_lower

_BINS = 50
_NEAR = 0.05  # largest difference between mean probability and the target's


class Classes:
    """Logits (B, classes): the target's class, right or wrong, and its probability.

    Args:
        target: (classes,) the target's logits.
        target_class: None for the class of these logits.
        probability: of that class at the target; None for that of these logits.

    Attributes:
        compared: entries of a sample that baselines keep.
        otherwise: outcome if all points have the target's output, but the feature error is too
            large.
    """

    kind = "classes"
    compared = ("accuracy", "samples", "accuracy_lower_95", "feature_relative_max")
    otherwise = CLASS

    def __init__(
        self, target: Tensor, target_class: int | None = None, probability: float | None = None
    ) -> None:
        self.target = target
        self.target_class = int(target.argmax()) if target_class is None else target_class
        own = float(target.softmax(0)[self.target_class])
        self.probability = own if probability is None else probability

    def of_pair(self, initial: Tensor) -> Summary:
        """What `summary.json` says of the initial image, whose output (D,) is given, and target."""
        return Summary.model_construct(
            initial_class=int(initial.argmax()),
            target_class=self.target_class,
            target_probability=self.probability,
        )

    def of_images(self, outputs: Tensor) -> list[Corner]:
        """What is said of each image: its class, and the probability of the target's class."""
        of_target = outputs.softmax(1)[:, self.target_class].tolist()
        return [
            Corner.model_construct(predicted_class=predicted, probability=probability)
            for predicted, probability in zip(outputs.argmax(1).tolist(), of_target, strict=True)
        ]

    def takes(self, image: Corner) -> bool:
        """Whether it is of the target's class."""
        return image.predicted_class == self.target_class

    def margin(self, outputs: Tensor) -> Tensor:
        """(B,) objective of the search for the worst point, with gradients.

        It is the logit of the target's class minus the largest other one.
        """
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        others = wide.clone()
        others[:, self.target_class] = -torch.inf
        return wide[:, self.target_class] - others.amax(1)

    def goodness(self, outputs: Tensor) -> Tensor:
        """(B,) smallest at the worst point: probability, plus 1 if the class is predicted."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        probability = outputs.to(wide).softmax(1)[:, self.target_class]
        return probability + (outputs.argmax(1) == self.target_class)

    def unlike(self, outputs: Tensor, limit: float) -> dict[str, Tensor]:
        """Images (B,) with which a search must not end, by reason; `{}` is their placeholder."""
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        off = (wide.softmax(1)[:, self.target_class] - self.probability).abs()
        reason = f"the probability of corners {{}} is not within stop.probability={limit:g} "
        return {
            "corners {} are not of the target's class": outputs.argmax(1) != self.target_class,
            reason + "of the target's": ~(off <= limit),
        }

    def figures(self, outputs: Tensor) -> dict[str, Tensor]:
        """Figures of points with these outputs (B, D), named as in `HullStatistics`."""
        logits, target = outputs.double(), self.target.double()
        log, target_log = logits.log_softmax(1), target.log_softmax(0)
        probability = log[:, self.target_class].exp()
        divergence = (target_log.exp() * (target_log - log)).sum(1)
        given = outputs.argmax(1) == self.target_class
        return {
            "correct_sum": (given & probability.isfinite()).sum(),  # argmax returns NaN as largest
            "probability_sum": probability.sum(),
            "probability_min": probability.min(),
            "histogram_sum": in_bins(probability),
            "kl_sum": divergence.sum(),
            "kl_max": divergence.max().clamp_min(0),
            "logit_change_max": (logits - target).abs().max(),
        }

    def entries(self, figures: dict[str, Any]) -> Sample:
        """The entries of a sampler in `evaluation.json` that the figures of all points give.

        `kl_mean` and `kl_max` are KL(target || point) of the class probabilities, in nats.
        `logit_change_max` is the largest difference of a logit from the target's.
        `probability_histogram` counts points by the probability of the target's class, in equal
        bins from 0 to 1.
        """
        samples, correct = figures["samples_sum"], figures["correct_sum"]
        return Sample(
            accuracy=correct / samples,
            accuracy_lower_95=clopper_pearson_lower(correct, samples),
            probability_mean=figures["probability_sum"] / samples,
            probability_min=figures["probability_min"],
            probability_histogram=figures["histogram_sum"],
            kl_mean=figures["kl_sum"] / samples,
            kl_max=figures["kl_max"],
            logit_change_max=figures["logit_change_max"],
        )

    def reasons(self, sample: Sample) -> list[str]:
        """Reasons why a sample's points do not all have the target's output; may be empty."""
        found, mean = [], sample.probability_mean
        if sample.accuracy < 1:
            wrong = sample.samples - round(sample.accuracy * sample.samples)
            found.append(f"{wrong} of {sample.samples} interpolations are of another class")
        if not abs(mean - self.probability) <= _NEAR:
            found.append(f"mean probability {mean:.3f}, the target's is {self.probability:.3f}")
        return found

    def bars(self, outputs: Tensor) -> Tensor:
        """(B, k) in [0, 1], the bars of the page's explorer: class probabilities."""
        return outputs.softmax(1)


@dataclass
class Features:
    """Features (B, D) of an encoder, which has no classes: their cosine and relative error.

    Args:
        target: (D,) the encoder's output for the target.
        threshold: cosine above which two images count as the same; None if unknown.
    """

    target: Tensor
    threshold: float | None = None

    kind = "features"
    compared = ("cosine_min", "samples", "same", "same_lower_95", "feature_relative_max")
    otherwise = NEITHER
    target_class = -1

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

    def takes(self, image: Corner) -> None:
        """None: no class says whether it is taken for the target."""

    def margin(self, outputs: Tensor) -> Tensor:
        """The cosine."""
        return F.cosine_similarity(outputs, self.target[None])

    goodness = cosines

    def unlike(self, outputs: Tensor, limit: float) -> dict[str, Tensor]:
        """Empty: an encoder's search depends only on its features."""
        return {}

    def figures(self, outputs: Tensor) -> dict[str, Tensor]:
        """Of the cosine with, and the distance from, the target's output."""
        cosine = self.cosines(outputs).double()
        found = {
            "cosine_sum": cosine.sum(),
            "cosine_min": cosine.min().clamp_max(1),
            "histogram_sum": in_bins(cosine),
            "error_max": self.errors(outputs).max().double(),
        }
        same = {} if self.threshold is None else {"same_sum": (cosine > self.threshold).sum()}
        return found | same

    def entries(self, figures: dict[str, Any]) -> Sample:
        """The cosine with the target's output, and its largest relative error.

        `cosine_histogram` counts points by cosine in equal bins from 0 to 1, negative ones in the
        first. `same` is the share above the threshold.
        """
        samples, norm = figures["samples_sum"], float(self.target.norm())
        found = Sample(
            cosine_mean=figures["cosine_sum"] / samples,
            cosine_min=figures["cosine_min"],
            cosine_histogram=figures["histogram_sum"],
            output_relative_max=figures["error_max"] / norm if norm else None,
        )
        if self.threshold is None:
            return found
        same = figures["same_sum"]
        lower = clopper_pearson_lower(same, samples)
        return found | Sample(same=same / samples, same_lower_95=lower)

    def reasons(self, sample: Sample) -> list[str]:
        """Empty: an encoder's outcome depends only on its features."""
        return []

    def bars(self, outputs: Tensor) -> Tensor:
        """The cosine; 0 if negative."""
        return self.cosines(outputs)[:, None].clamp(0, 1)


Output = Classes | Features
"""Compares a network's outputs (B, D) with its output for the target, (D,)."""


def on_device(output: Output, device: torch.device) -> Output:
    """A copy on another device."""
    found = copy(output)
    found.target = output.target.to(device)
    return found


def outcome_of(
    output: Output,
    sample: Sample,
    limit: float,
    at_corners: float | None = None,
    searched: float | None = None,
) -> Outcome:
    """The outcome of a hull; it is sampled and searched, not proved.

    Args:
        output: the target's.
        sample: from `HullStatistics.compute`.
        limit: of the feature error ||f(x) - f(t)|| / ||f(t)||.
        at_corners: largest feature error of a corner, if known: samples are rarely near one.
        searched: largest feature error that a search found, if there was one.

    Example:
        >>> sample = Sample(accuracy=1.0, probability_mean=0.7, feature_relative_max=0.4)
        >>> outcome_of(Classes(torch.zeros(2), 0, 0.7), sample, limit=0.3)
        Outcome(name='class only', reasons=['feature error 0.400 ||f(t)||, the limit is 0.3'])
    """
    reasons = output.reasons(sample)
    name, largest = NEITHER if reasons else output.otherwise, sample.feature_relative_max
    if largest is None:
        reasons.append("the target has no active unit, so there is no ||f(t)|| to compare with")
    seen = {"": largest, " at a corner": at_corners, " at the worst point found": searched}
    for where, error in seen.items():
        if error is not None and not error <= limit:
            reasons.append(f"feature error {error:.3f} ||f(t)||{where}, the limit is {limit:g}")
            break
    return Outcome(name if reasons else FEATURES, reasons)


def in_bins(values: Tensor) -> Tensor:
    """Count values (B,) in equal bins from 0 to 1."""
    bins = (values * _BINS).long().clamp(0, _BINS - 1)  # NaN also goes to a bin
    return bins.new_zeros(_BINS).index_add_(0, bins, torch.ones_like(bins))


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
