"""Proofs about the whole hull: its class, and its collision (section 2).

Both statements are in exact arithmetic, about every interpolation of the corners as saved, with the
network's weights as stored. The bounds include their own rounding. The model, which rounds, may
decide differently if its margin is as small as its rounding.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..data.devices import without_cudnn
from ..graph.operations import NotPiecewiseLinear
from ..graph.target import logits_of
from ..runs.evaluation import ClassProof, CounterExample, Proofs
from ..settings.rules import at_least
from ..simplex import gauge
from .bounds.steps import Step
from .collision import prove_collision
from .judge import HullJudge, cache_of
from .piecewise import traced
from .problem import Keep, Problem
from .splitting import Judged, Pieces, Splitting, run_outwards

_SLACK = 1e-9  # of a weight: a point on a subdomain's face is in it
_TIE = 1e-4  # relative to the logits; the model decides smaller margins


def prove(
    problem: Problem, seconds: float = 60.0, suspects: Sequence[Sequence[float]] = ()
) -> Proofs:
    """Prove both statements, each in at most `seconds`; see `prove_class`, `prove_collision`."""
    of_class = prove_class(problem, seconds, suspects=suspects)
    return Proofs() | {"class_": of_class, "collision": prove_collision(problem, seconds)}


@torch.no_grad()
@without_cudnn()
def prove_class(
    problem: Problem,
    seconds: float = 5.0,
    directory: Path | None = None,
    suspects: Sequence[Sequence[float]] = (),
    keep: Keep | None = None,
) -> ClassProof:
    """Prove or refute that every point of the hull is of the target's class.

    Args:
        problem: the hull and its target.
        seconds: time; bounds that take over a tenth longer are abandoned.
        directory: folder for cached results. It must be the user's: results in an untrusted run
            directory would count as proved.
        suspects: weights of points to try first, such as the worst one of a search.
        keep: is given the subdomains, for a certificate.

    Returns:
        `outcome`: `proved`, `refuted` by a `counter_example` (its weights, and the class that the
        model itself gives it), or `undecided`; `share_proved` (by weights) and `scale_proved`: all
        of the hull shrunk about its centroid to that share is proved; what holds on the former:
        `margin_min` (the target's logit over any other) and `probability_min` of the target's
        class; `pieces` and `seconds`, of all calls. Or the `reason` why nothing is bounded. Of an
        encoder the outcome is `no class`.

    Raises:
        SettingError: if the time is negative or not a number.
    """
    at_least("seconds", seconds, 0)
    if problem.target_class < 0:
        return ClassProof(outcome="no class", reason="the features of an encoder have no class")
    judge = ClassJudge(problem)
    try:
        corners = torch.eye(len(problem.corners), dtype=torch.float64)
        judge.try_points(torch.cat([corners, torch.tensor([*suspects], dtype=torch.float64)
                                    .view(-1, len(corners))]))  # fmt: skip
        if judge.counter_example and max(judge.counter_example.weights) == 1:
            found = _nothing("refuted", "its corners are of two classes", judge)
            return found | {"pieces": 0, "seconds": 0.0}
        judge.prepare()
        known = Splitting.of(torch.eye(len(problem.corners)), 2)
        known.keeps = keep is not None
        cache = cache_of(directory, judge.network, problem, "class")
        run_outwards(known, judge, seconds, cache, "Class of the hull")
    except NotPiecewiseLinear as error:
        return _nothing("refuted" if judge.counter_example else "undecided", str(error), judge)
    proved, reason = not len(known.open.volume), known.reason_after(seconds) if seconds else None
    if proved and judge.counter_example:  # nothing that contradicts the model is stated
        contradiction = "a point of the model contradicts the bounds"
        spent = {"pieces": known.count, "seconds": known.seconds}
        return _nothing("refuted", contradiction, judge) | spent
    scale = known.scale
    if keep:
        keep(known.covers(scale))
    share, figures = known.verified
    margin, probability = figures.tolist()
    found = ClassProof(
        outcome="proved" if proved else "refuted" if judge.counter_example else "undecided",
        by="bounds",
        share_proved=1.0 if proved else share,
        scale_proved=min(scale, judge.beyond),
        margin_min=margin if share else None,
        probability_min=probability if share else None,
        pieces=known.count,
        seconds=known.seconds,
    )
    return (found | {"reason": reason} if reason else found) | judge.found()


def _nothing(outcome: str, reason: str, judge: "ClassJudge") -> ClassProof:
    """Nothing is proved, for a reason."""
    return judge.found() | ClassProof(
        outcome=outcome, share_proved=0.0, scale_proved=0.0, reason=reason
    )


class ClassJudge(HullJudge):
    """Bounds on the target's logit minus each other one."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.counter_example: CounterExample | None = None

    def prepare(self) -> None:
        """Prepare the network up to its logits."""
        self.follow(traced(self.problem.graph, images=self.problem.corners))
        self.rows = self.problem.margins(self.steps[-1].size, self.corners)

    def found(self) -> ClassProof:
        """The counter-example, if there is one."""
        example = self.counter_example
        return ClassProof(counter_example=example) if example else ClassProof()

    def try_points(self, weights: Tensor) -> None:
        """Evaluate the model at points of the hull, until one is of another class."""
        if self.counter_example or not len(weights):
            return
        images = self.problem.points(weights)
        predicted = logits_of(self.problem.graph.model, images).argmax(1)
        other = (predicted != self.problem.target_class).nonzero().flatten().tolist()
        if other:
            first = other[0]
            self.counter_example = CounterExample.model_validate(
                {"weights": weights[first].tolist(), "class": int(predicted[first])}
            )
            self.beyond = float(gauge(weights[first])) * (1 - _SLACK)

    def judge(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        """Margins of subdomains; one is verified if all are above 0."""
        bounds, logits = self.bounds(pieces, steps)
        here = (logits @ self.rows.T).amin(1)
        near = here <= _TIE * logits.abs().amax(1)
        with self.one_by_one:
            self.try_points(pieces.weights[near.cpu()].mean(1))
        margins = bounds.lower(len(bounds.steps) - 1, self.rows).amin(2)
        refuted = self._refuted(pieces).to(margins.device)
        least, worst = margins.min(1)
        odds = (-margins).exp().sum(1)
        figures = torch.stack([least, (1 / (1 + odds)) * (1 - 1e-12)], 1)
        each = torch.arange(len(margins), device=self.place)
        weigh = {k: rows[each, worst].abs() for k, rows in bounds.met.items()}
        settled = (least > 0) & ~refuted
        halvings = self.halvings(pieces, (here - least) / here)
        return Judged(figures, settled, bounds.parts(weigh, halvings * ~settled))

    def figure_at(self, values: Tensor) -> Tensor:
        """The smallest margin."""
        return (values @ self.rows.T).amin(1)

    def misses(self, known: Splitting, weights: Tensor) -> bool:
        """Whether a point of another class is in no unverified subdomain."""
        self.try_points(weights)
        return bool(self.counter_example) and not bool(self._refuted(known.open).any())

    def _refuted(self, pieces: Pieces) -> Tensor:
        """(P,) whether the counter-example is in a piece: no bound settles such a one."""
        if not self.counter_example:
            return torch.zeros(len(pieces.volume), dtype=torch.bool)
        point = pieces.weights.new_tensor(self.counter_example.weights)
        shares = torch.linalg.pinv(pieces.weights.mT) @ point  # (P, V) of the vertices
        off = (pieces.weights.mT @ shares[..., None])[..., 0] - point
        inside: Tensor = (shares >= -_SLACK).all(1) & (off.abs() <= _SLACK).all(1)
        return inside
