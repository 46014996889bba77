"""Upper bound on the feature error over a hull, at the target layer (section 2)."""

from pathlib import Path

import torch
from torch import Tensor, fx

from ..data.devices import without_cudnn
from ..graph.activations import IDENTITY, aten
from ..graph.operations import NotPiecewiseLinear
from ..graph.simpler import write_with_simpler
from ..graph.target import TargetFeatures
from ..graph.target_layer import TargetLayer
from ..runs.evaluation import CollisionProof
from ..settings.rules import at_least
from ..simplex import begins_at, gauge
from .bounds.over_pieces import Bounds
from .bounds.record import steps_of
from .bounds.relaxation import rounding
from .bounds.steps import Step
from .judge import HullJudge, cache_of
from .problem import Cover, Keep, Problem
from .splitting import Judged, Pieces, Splitting, run_outwards

_UNITS = 2048  # largest target layer with joint bounds
_NEAR = 1.05  # a bound within this factor of an error that was seen is not improved
_POWERS = 12  # steps of the power method
_TINY = 1e-200  # stands for 0 in a denominator


@torch.no_grad()
@without_cudnn()
def prove_collision(
    problem: Problem,
    seconds: float = 5.0,
    directory: Path | None = None,
    keep: Keep | None = None,
) -> CollisionProof:
    """Bound the feature error of every point of the hull, at the target layer.

    If the layer is affine in the pixels, the pre-activations of an interpolation are those of the
    corners, interpolated, and the result is exact. Otherwise the largest bound of all subdomains is
    an upper bound.

    Args:
        problem: the hull and its target.
        seconds: time; bounds that take over a tenth longer are abandoned.
        directory: as for `prove_class`.
        keep: as `prove_class` takes it.

    Returns:
        `by`: `affine` (`linear` for corners of `exact_hull`) or `bounds`; `share_proved`: 1, for
        what follows is of the whole hull;
        `scale_proved`: on all of the hull shrunk about its centroid to that share the features are
        within the problem's `limit` of ||f(t)||;
        `feature_relative_max`: at every point ||f(x) - f(t)|| is at most that much of ||f(t)||;
        `feature_error_max`: no activation is off by more. Where the layer is affine, also
        `positive_relative_max`, the largest L_pos over ||f(t)||, and `inactive_max`, the largest
        pre-activation of a unit that is inactive in the target, or what
        one is below the ceiling that it was above (at most 0: all of them stay off). Else
        `feature_relative_seen`, the largest at any point that was looked at, `pieces` and
        `seconds`. Or the `reason` why nothing is bounded.

    Raises:
        SettingError: if the time is negative or not a number.
    """
    at_least("seconds", seconds, 0)
    try:
        judge = _CollisionJudge(problem)
        if judge.cut.is_affine:
            found = judge.exact()
            if keep:
                whole = torch.eye(len(problem.corners), dtype=torch.float64)
                keep([Cover(0 * whole[0], whole[None], torch.tensor([found.scale_proved == 1]))])
            return found
        if not judge.norm:
            return _nothing("no unit is active in the target: f(t) is 0")
        judge.prepare()
        known = Splitting.of(torch.eye(len(problem.corners)), 2, -problem.limit)
        known.keeps = keep is not None
        cache = cache_of(directory, judge.network, problem, "collision", problem.limit)
        run_outwards(known, judge, seconds, cache, "Collision")
    except NotPiecewiseLinear as error:
        return _nothing(str(error))
    if not known.count:
        return _nothing(str(known.reason_after(seconds)))
    norm, unit = known.everywhere.neg().tolist()
    reached = known.scale
    scale = min(reached, judge.beyond)
    if not norm < torch.inf:
        return _nothing("the bounds are not finite numbers", scale)
    if judge.seen > norm * (1 + 1e-6):
        return _nothing(
            f"the bound, {norm:.3g} of ||f(t)||, is below an error that was seen, {judge.seen:.3g}"
        )
    if keep:
        keep(known.covers(reached))
    return CollisionProof(
        by="bounds",
        share_proved=1.0,
        scale_proved=scale,
        feature_relative_max=norm,
        feature_error_max=unit,
        feature_relative_seen=judge.seen,
        pieces=known.count,
        seconds=known.seconds,
    )


def _nothing(reason: str, scale: float = 0.0) -> CollisionProof:
    return CollisionProof(share_proved=0.0, scale_proved=scale, reason=reason)


def _flatten(network: fx.GraphModule) -> None:
    """Have a network give (B, N), in place."""
    end = next(iter(reversed(network.graph.nodes)))
    with network.graph.inserting_before(end):
        end.args = (network.graph.call_function(aten.flatten.using_ints, (end.args[0], 1)),)
    network.recompile()


class _CollisionJudge(HullJudge):
    """Bounds on features minus the target's.

    After an activation that is not a rectifier, features are its values, all active. The error of
    an active unit is at most |f0(x) - f0(t)|; that of an inactive unit is at most the positive part
    of its `oriented` pre-activation (`TargetFeatures`).
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.limit = problem.limit
        activation = problem.features.activation
        smooth = bool(activation.sides) and not activation.is_rectifier
        self.cut = TargetLayer(problem.graph, problem.layer, smooth).to(self.place, torch.float64)
        if isinstance(self.cut.network, fx.GraphModule):
            write_with_simpler(self.cut.network)
            _flatten(self.cut.network)
        images = torch.cat([problem.target[None], problem.corners]).to(self.place, torch.float64)
        target, self.preactivation = self.cut(images).split([1, len(images) - 1])
        self.features = TargetFeatures(target[0], IDENTITY if smooth else activation)
        self.norm, self.slack = float(self.features.features.norm()), torch.zeros_like(target[0])

    def _of_target(self, target: Tensor) -> tuple[float, Tensor]:
        """Lower bound on ||f(t)||, and upper bounds (N,) on the rounding error of f(t)."""
        _, reach = self._enclosed(target[None])
        features, reach = self.features, reach[0]
        least = (features.features.abs() - reach).clamp_min(0)
        wrong = (features.oriented(features.preactivation) + reach).relu()
        slack = torch.where(features.active, reach, wrong)
        return float(least.norm()) * (1 - 1e-12), slack

    def _enclosed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations (B, N) of images, and bounds on their rounding error.

        Raises:
            NotPiecewiseLinear: if there are no bounds up to the layer.
        """
        images = images.to(self.place, torch.float64)
        if not isinstance(self.cut.network, fx.GraphModule):
            raise NotPiecewiseLinear("torch.export cannot trace the network")
        steps = steps_of(self.cut.network, images[0])
        middles, reaches = [], []
        for image in images:  # one by one: an early layer's values are large
            last = Bounds(steps, image[None, None], 0.0).at[-1]
            middles.append(last.middle.flatten(1)[0])
            reaches.append(last.radius.flatten(1)[0])
        return torch.stack(middles), torch.stack(reaches)

    def exact(self) -> CollisionProof:
        """Result for an affine layer, where L_pos and inactive units are largest at corners."""
        features = self.features
        self.norm, self.slack = self._of_target(self.problem.target)
        preactivation, reach = self._enclosed(self.problem.corners)
        oriented = features.oriented(preactivation)
        alone = self._most(preactivation, reach)
        seen = alone.masked_fill(~features.active, 0)
        inactive = (oriented + reach)[:, ~features.active]
        error = 1 + 1e-12  # sums of squares, all of one sign
        whole, distance = (float(each.norm(dim=1).max()) * error for each in (alone, seen))
        return CollisionProof(
            by="linear" if self.problem.solved else "affine",
            share_proved=1.0,
            scale_proved=self._scale(preactivation, reach, whole),
            feature_relative_max=whole / self.norm if self.norm else None,
            positive_relative_max=distance / self.norm if self.norm else None,
            inactive_max=float(inactive.max()) if inactive.numel() else None,
            feature_error_max=float(alone.max()),
        )

    def _scale(self, preactivation: Tensor, reach: Tensor, whole: float) -> float:
        """Share to which the hull can be shrunk so that the convex errors are within the limit."""
        line = self.limit * self.norm
        if whole <= line:
            return 1.0
        middle = preactivation.mean(0)
        reach = reach.amax(0) + rounding(len(preactivation), preactivation.abs().sum(0))
        inner = float(self._most(middle, reach).norm()) * (1 + 1e-12)
        return max(0.0, (line - inner) / (whole - inner) * (1 - 1e-12)) if inner < whole else 0.0

    def _errors(self, preactivation: Tensor) -> Tensor:
        """Upper bounds on the errors of units (..., N)."""
        features = self.features
        oriented = features.oriented(preactivation)
        off = torch.where(features.active, (oriented - features.values).abs(), oriented.relu())
        return off + self.slack

    def prepare(self) -> None:
        """Prepare the network up to the target layer."""
        if not isinstance(self.cut.network, fx.GraphModule):
            raise NotPiecewiseLinear("torch.export cannot trace the network")
        if len(self.features.active) > _UNITS:
            raise NotPiecewiseLinear(
                f"the layer's {len(self.features.active)} units are too many (at most {_UNITS})"
            )
        self.follow(self.cut.network)
        self.norm, self.slack = self._of_target(self.problem.target)
        if not self.slack.isfinite().all():
            raise NotPiecewiseLinear(
                "the bounds overflow at the target itself, and more time does not help"
            )
        if not self.norm:
            raise NotPiecewiseLinear(
                "f(t) is 0, or the bounds at the target are too loose to show that it is not"
            )
        self._look(self.preactivation, torch.eye(len(self.preactivation)))

    def figure_at(self, values: Tensor) -> Tensor:
        """Feature error relative to ||f(t)||, negated."""
        features = self.features
        off = features.rectified(values.flatten(1)) - features.features
        found: Tensor = -off.norm(dim=1) / self.norm
        return found

    def _look(self, preactivation: Tensor, weights: Tensor) -> Tensor:
        """Record, and return, the feature errors at points (n, K) of the hull."""
        off = -self.figure_at(preactivation)
        beyond = gauge(weights)[(off > self.limit).cpu()]
        with self.one_by_one:
            self.seen = max(self.seen, float(off.max()))
            self.beyond = min(self.beyond, *beyond.tolist(), 1.0)
        return off

    def judge(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        """The errors of pieces: one is settled where its bound is near the largest error seen.

        And below the line, if a smaller share than that of the innermost point seen beyond it
        holds a part of the piece.
        """
        bounds, preactivation = self.bounds(pieces, steps)
        here = self._look(preactivation, pieces.weights.mean(1))
        whole, alone = self._errors_of(bounds)
        figures = torch.stack([-whole / self.norm * (1 + 1e-12), -alone], 1)
        inner = begins_at(pieces.weights).to(self.place) < self.beyond / _NEAR
        most = torch.where(inner, min(self.limit, _NEAR * self.seen), _NEAR * self.seen)
        settled = -figures[:, 0] <= most
        halvings = self.halvings(pieces, (-figures[:, 0] - here) / (self.limit - here))
        return Judged(figures, settled, bounds.parts(bounds.met, halvings * ~settled))

    def _errors_of(self, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Of each piece, (P,): the largest norm of all errors, and the largest error.

        At a vertex the errors are at most those of the middle, plus what the deviations make. The
        latter's norm is bounded for many units together (see `joint_norm`), which share the
        deviations; units that are all but off add up, each with the largest error of its own.
        """
        last = bounds.at[-1]
        middle, reach = last.middle, last.radius  # (P, K, N)
        alone = self._most(middle, reach)
        used = (
            (~(alone <= 0)).any(1).any(0).nonzero().flatten()
        )  # the others have no error anywhere
        if not len(used):
            bounds.met = {}
            return alone.new_zeros(len(alone)), alone.new_zeros(len(alone))
        rows = torch.eye(len(alone[0, 0]), dtype=torch.float64, device=self.place)[used]
        spread = bounds.spread(len(bounds.steps) - 1, rows)
        middle = middle.index_copy(2, used, spread.middle.mT)
        reach = reach.index_copy(2, used, (spread.reach + spread.toll[..., None]).mT)
        alone = self._most(middle, reach)
        blind = ~self.features.active
        off = blind & (alone.amax(1) <= 0.5 * reach.amax(1))  # (P, N)
        columns = spread.columns.masked_fill(off[:, used, None], 0)
        toll = spread.toll.masked_fill(off[:, used], 0).norm(dim=1, keepdim=True)
        still = self._errors(middle).masked_fill(off[:, None], 0).norm(dim=2) + toll
        apart = alone.masked_fill(off[:, None], 0).norm(dim=2)
        together = torch.minimum(still + joint_norm(columns, spread.radii), apart)
        rest = alone.masked_fill(~off[:, None], 0).square().sum(2)
        whole = (together.square() + rest).sqrt()
        error = 1 + 1e-12 * max(1, len(blind) / 1000)  # sums of squares, all of one sign
        found = whole.amax(1) * error, alone.amax((1, 2)) * error
        return tuple(each.nan_to_num(torch.inf, torch.inf) for each in found)  # type: ignore[return-value]

    def _most(self, middle: Tensor, reach: Tensor) -> Tensor:
        """Upper bounds on the errors of units (..., N) within `reach` of `middle`."""
        blind = (self.features.oriented(middle) + reach).relu() + self.slack
        return torch.where(self.features.active, self._errors(middle) + reach, blind)


def joint_norm(columns: Tensor, radii: Tensor) -> Tensor:
    """Upper bound (P, K) on ||A e|| for |e| <= radii: A (P, S, M), radii (P, K, M).

    For any s > 0, ||A e||^2 <= lambda_max(A R S^-1 R A^T) sum(s), R the radii. Here s weights each
    deviation by its effect alone.
    """
    if not columns.numel():
        return radii.new_zeros(radii.shape[:2])
    length = columns.norm(dim=1, keepdim=True)  # (P, 1, M)
    alone = radii * length
    total = alone.sum(2)
    scale = (length * total[..., None]).clamp_min(_TINY)
    factors = columns[:, None] * (radii / scale).clamp_max(1 / _TINY).sqrt()[:, :, None]
    gram = factors @ factors.mT  # (P, K, S, S), of trace 1
    slack = 4 * (columns.shape[2] + 16) * torch.finfo(gram.dtype).eps
    largest = largest_eigenvalue(gram) + slack  # no entry rounds by more than its share
    joint: Tensor = largest.sqrt() * total * (1 + 1e-12) + _TINY**0.25  # what underflows
    return joint


def largest_eigenvalue(matrices: Tensor) -> Tensor:
    """Upper bound on the largest eigenvalue of positive semidefinite matrices (..., S, S), trace 1.

    The power method gives an estimate c. Then c I - M is checked to be positive semidefinite by a
    Cholesky factor, which is exact for a matrix at most gamma trace(c I - M) away (Higham 2002,
    theorem 10.3).
    """
    size, eps = matrices.shape[-1], torch.finfo(matrices.dtype).eps
    flat = matrices.flatten(0, -3)
    vector = flat.sum(2, keepdim=True)
    for _ in range(_POWERS):
        vector = flat @ (vector / vector.norm(dim=1, keepdim=True).clamp_min(eps))
    guess = vector.norm(dim=1)[:, 0].clamp_min(1 / size) * 1.005
    found = torch.ones_like(guess)  # the trace
    left = torch.arange(len(guess), device=guess.device)
    eye = torch.eye(size, dtype=flat.dtype, device=flat.device)
    for factor in (1, 1.02, 1.1, 1.3):
        tried = guess[left] * factor
        info = torch.linalg.cholesky_ex(tried[:, None, None] * eye - flat[left]).info
        good = (info == 0) & (tried < 1)
        found[left[good]] = tried[good]
        left = left[~good]
        if not len(left):
            break
    return (found + 2 * (size + 8) * eps * (size * found + 1)).view(matrices.shape[:-2])
