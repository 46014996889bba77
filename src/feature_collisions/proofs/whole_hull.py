"""What is proved of the whole hull, not of samples: its class, and that it collides (section 2).

Both statements are of exact arithmetic: of every exact mix of the corners as saved, through the
network with its weights as they are. Rounding in the bounds is accounted for. The model as it
rounds itself may decide otherwise where its margin is as small as its own rounding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ..data.devices import able
from ..hull.hull import Hull
from ..networks.graph import NotPiecewiseLinear
from ..networks.logits import ask
from ..networks.target import TargetFeatures
from ..networks.target_layer import TargetLayer
from ..search.losses import positive
from ..settings.rules import at_least
from .bounds import Bounds
from .cache import PieceCache, proof_key
from .linear_program import check_affine
from .local import localise, numbers_of, values_of
from .piecewise import traced
from .relaxation import rounding
from .splitting import Judged, Pieces, Splitting
from .steps import Step, steps_of

_MEMORY = 2**30  # bytes that the bounds of the pieces of a batch may take
_COPIES = 6  # of every value, at each vertex
_UNITS = 2048  # of a target layer whose errors are bounded together
_LITTLE = 2**14  # products for an image: a smaller network needs no local ones
_HALVINGS = 2  # of a piece for its collision

_SHORTER = 2  # halvings of each edge that large pieces may be cut by at once
_TIE = 1e-4  # of the logits: where margins are smaller, the model itself is asked
_NEAR = 1.05  # a collision's bound so close to an error that was seen is not improved


def prove(hull: Hull, seconds: float = 60.0, directory: Path | None = None) -> dict[str, Any]:
    """Both statements, each in up to `seconds` (see `prove_class` and `prove_collision`)."""
    at_least("seconds", seconds, 0)
    worst = hull.worst_case().weights if seconds > 0 and len(hull.corners) > 1 else None
    suspects = [] if worst is None else [worst.tolist()]
    return {
        "class": prove_class(hull, seconds, directory, suspects),
        "collision": prove_collision(hull, seconds, directory),
    }


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=False)  # it may convolve otherwise than by adding products up
def prove_class(
    hull: Hull,
    seconds: float = 5.0,
    directory: Path | None = None,
    suspects: Sequence[Sequence[float]] = (),
) -> dict[str, Any]:
    """Is every point of the hull the target's class? By bounds over pieces of it, or refuted.

    Args:
        hull: the hull.
        seconds: when to stop halving.
        directory: where what is known is kept between one call and the next. It should be the
            user's own: what a stranger's run directory says would be stated as proved.
        suspects: weights of points to try first, such as the worst that a search has found.

    Returns:
        `outcome`: `proved`, `refuted` by a `counter_example` (its weights, and the class that the
        model itself gives it), or `undecided`; `share_proved` (by volume); what holds there:
        `margin_min` (the target's logit over any other) and `probability_min` of the target's
        class; `pieces` and `seconds`, of all calls. Or the `reason` why nothing is bounded.

    Raises:
        SettingError: for a time that is negative or no number.
    """
    at_least("seconds", seconds, 0)
    judge = ClassJudge(hull)
    try:
        corners = torch.eye(len(hull.corners), dtype=torch.float64)
        judge.try_points(torch.cat([corners, torch.tensor([*suspects], dtype=torch.float64)
                                    .view(-1, len(corners))]))  # fmt: skip
        if judge.counter_example and max(judge.counter_example["weights"]) == 1:
            return {"outcome": "refuted", "counter_example": judge.counter_example,
                    "share_proved": 0.0, "pieces": 0, "seconds": 0.0,
                    "reason": "its corners are of two classes"}  # fmt: skip
        judge.prepare()
        known = Splitting.of(torch.eye(len(hull.corners)), 2)
        cache = _cache(directory, judge.network, hull, "class")
        known.run(judge, seconds, cache, "Class of the hull", worst_first=False)
    except NotPiecewiseLinear as error:
        return {"outcome": "refuted" if judge.counter_example else "undecided",
                "share_proved": 0.0, "reason": str(error)} | judge.found()  # fmt: skip
    proved = not len(known.open.volume)
    margin, probability = known.settled.tolist()
    return {
        "outcome": "proved" if proved else "refuted" if judge.counter_example else "undecided",
        "by": "bounds",
        "share_proved": 1.0 if proved else known.share,
        "margin_min": margin if known.share else None,
        "probability_min": probability if known.share else None,
        "pieces": known.count,
        "seconds": known.seconds,
    } | judge.found()


class _Judge:
    """Bounds the pieces of a hull."""

    def __init__(self, hull: Hull) -> None:
        self.hull = hull
        self.place = able(hull.corners.device)
        self.corners = hull.corners.to(self.place, torch.float64)
        self.checked = False
        self.seen = 0.0

    def follow(self, network: fx.GraphModule) -> None:
        """Make the steps of the network, and see how many pieces fit into memory."""
        self.network: fx.GraphModule = network
        self.steps: list[Step] = steps_of(network, self.corners[0])
        numbers = sum(step.size for step in self.steps) * (len(self.corners) + 1)
        self.most = int(_MEMORY / (numbers * 8 * _COPIES))
        if not self.most:
            raise NotPiecewiseLinear(
                f"its {sum(step.size for step in self.steps)} values an image are too many for "
                "bounds; the edges are walked"
            )

    def bounds(self, pieces: Pieces, steps: list[Step] | None) -> tuple[Bounds, Tensor]:
        """The bounds of some pieces, and the values (P, N) of the last step at their middles."""
        if steps:
            points = pieces.inside.to(self.place)
            bounds = Bounds(steps, points, 0.0)
        else:
            points = self._points(pieces)
            steps, error = self.steps, rounding(len(self.corners), points)
            bounds = Bounds(steps, points, error)
        if not self.checked:
            self._check(bounds, self._points(pieces))
        return bounds, values_of(steps, points.mean(1))

    def localise(self, piece: Pieces, steps: list[Step] | None) -> list[Step] | None:
        """The local network of one piece, or None where there is nothing to gain."""
        work = numbers_of(steps or self.steps)
        if work < _LITTLE:
            return None
        if steps and work < numbers_of(self.steps):
            return localise(steps, piece.inside[0].to(self.place))
        points = self._points(piece)[0]
        return localise(self.steps, points, rounding(len(self.corners), points))

    def _points(self, pieces: Pieces) -> Tensor:
        """(P, V, C, H, W) at the vertices."""
        points: Tensor = torch.tensordot(pieces.weights.to(self.place), self.corners, 1)
        return points

    def _check(self, bounds: Bounds, points: Tensor) -> None:
        """See once that what the network computes lies within the bounds."""
        values = self.network(points[0])
        last = bounds.at[-1]
        off = (values - last.middle[0]).abs() > last.radius[0]
        if off.any():
            raise NotPiecewiseLinear("what the network computes lies outside its bounds")
        self.checked = True


class ClassJudge(_Judge):
    """The target's logit over each other one."""

    def __init__(self, hull: Hull) -> None:
        super().__init__(hull)
        self.counter_example: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Follow the classifier to its logits."""
        self.follow(traced(self.hull.model, images=self.hull.corners))
        classes = self.steps[-1].size
        rows = torch.eye(classes, dtype=torch.float64, device=self.place)
        others = torch.arange(classes, device=self.place) != self.hull.target_class
        self.rows = rows[self.hull.target_class] - rows[others]

    def found(self) -> dict[str, Any]:
        """The counter-example, if there is one."""
        return {"counter_example": self.counter_example} if self.counter_example else {}

    def try_points(self, weights: Tensor) -> None:
        """Ask the model itself for points of the hull, until one is of another class."""
        if self.counter_example or not len(weights):
            return
        images = self.hull.points(weights)
        predicted = ask(self.hull.model, images).argmax(1)
        other = (predicted != self.hull.target_class).nonzero().flatten().tolist()
        if other:
            first = other[0]
            self.counter_example = {
                "weights": weights[first].tolist(),
                "class": int(predicted[first]),
            }

    def __call__(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        """The margins of pieces: a piece is settled where all are above 0."""
        bounds, logits = self.bounds(pieces, steps)
        here = (logits @ self.rows.T).amin(1)
        near = here <= _TIE * logits.abs().amax(1)
        self.try_points(pieces.weights[near.cpu()].mean(1))
        margins = bounds.lower(len(bounds.steps) - 1, self.rows).amin(2)
        least, worst = margins.min(1)
        odds = (-margins).exp().sum(1)
        figures = torch.stack([least, (1 / (1 + odds)) * (1 - 1e-12)], 1)
        each = torch.arange(len(margins), device=self.place)
        weigh = {k: rows[each, worst].abs() for k, rows in bounds.met.items()}
        settled = least > 0
        halvings = self._halvings(pieces, (here - least) / here)
        return Judged(figures, settled, bounds.parts(weigh, halvings * ~settled))

    def _halvings(self, pieces: Pieces, ratio: Tensor) -> Tensor:
        """How often to halve each piece at once.

        Large ones are cut as often as it takes to bring the gap between bound and margin below the
        margin (`ratio` of it), if a halving halves the gap to the power of 2/3; not below a size
        that edges of half the length make: there a hole may be near.
        """
        dimensions = pieces.weights.shape[1] - 1
        room = (_SHORTER * dimensions + pieces.volume.to(ratio).log2()).clamp_min(1)
        needed = torch.where(ratio > 1, (1.5 * ratio.log2()).ceil(), 1)
        return needed.clamp_min(1).minimum(room).long()


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=False)
def prove_collision(
    hull: Hull, seconds: float = 5.0, directory: Path | None = None
) -> dict[str, Any]:
    """How far is any point of the hull from colliding with the target, at the target layer?

    Where the layer is affine in the pixels, the pre-activations of a mix are the mix of the
    corners', and the answer is exact. Elsewhere the largest error of all pieces is an upper bound.

    Args:
        hull: the hull.
        seconds: when to stop halving.
        directory: as `prove_class` takes it.

    Returns:
        `by`: `affine` or `bounds`; `share_proved`: 1, for what follows is of the whole hull;
        `feature_relative_max`: at every point ||f(x) - f(t)|| is at most that much of ||f(t)||;
        `feature_error_max`: no activation is off by more. Where the layer is affine, also
        `positive_relative_max`, the largest L_pos over ||f(t)||, and `inactive_max`, the largest
        pre-activation of a unit that is inactive in the target, or what
        one is below the ceiling that it was above (at most 0: all of them stay off). Else
        `feature_relative_seen`, the largest at any point that was looked at, `pieces` and
        `seconds`. Or the `reason` why nothing is bounded.

    Raises:
        SettingError: for a time that is negative or no number.
    """
    at_least("seconds", seconds, 0)
    judge = _CollisionJudge(hull)
    try:
        if judge.is_affine:
            return judge.exact()
        if not judge.norm:
            return _nothing("no unit is active in the target: f(t) is 0")
        judge.prepare()
        known = Splitting.of(torch.eye(len(hull.corners)), 2)
        cache = _cache(directory, judge.network, hull, "collision")
        known.run(judge, seconds, cache, "Collision", worst_first=True)
    except NotPiecewiseLinear as error:
        return _nothing(str(error))
    if not known.count:
        return _nothing(f"no time was given (seconds={seconds:g})")
    norm, unit = known.everywhere.neg().tolist()
    if not norm < torch.inf:
        return _nothing("the bounds are not finite numbers")
    return {
        "by": "bounds",
        "share_proved": 1.0,
        "feature_relative_max": norm,
        "feature_error_max": unit,
        "feature_relative_seen": judge.seen,
        "pieces": known.count,
        "seconds": known.seconds,
    }


def _nothing(reason: str) -> dict[str, Any]:
    return {"share_proved": 0.0, "reason": reason}


class _CollisionJudge(_Judge):
    """The target layer's features beside the target's.

    A unit that the layer sees in the target is off by at most |f0(x) - f0(t)|, one that it is
    blind to by at most what is above 0 of its `oriented` pre-activation (`TargetFeatures`).
    """

    def __init__(self, hull: Hull) -> None:
        super().__init__(hull)
        self.cut = TargetLayer(hull.model, hull.layer).to(self.place, torch.float64)
        images = torch.cat([hull.target[None], hull.corners]).to(self.place, torch.float64)
        target, self.preactivation = self.cut(images).split([1, len(images) - 1])
        self.features = TargetFeatures(target[0], hull.features.ceiling)
        self.norm = float(self.features.features.norm())

    @property
    def is_affine(self) -> bool:
        """Whether the layer is affine in the pixels."""
        try:
            check_affine(self.cut)
        except NotPiecewiseLinear:
            return False
        return True

    def exact(self) -> dict[str, Any]:
        """What holds of an affine layer: everything is convex, so its largest is at a corner."""
        features = self.features
        oriented = features.oriented(self.preactivation)
        distance = float(positive(oriented, features.values, features.active).max())
        inactive = oriented[:, ~features.active]
        off = (features.rectified(self.preactivation) - features.features).abs().max()
        whole = self._errors(self.preactivation).norm(dim=1).max()
        return {
            "by": "affine",
            "share_proved": 1.0,
            "feature_relative_max": float(whole) / self.norm if self.norm else None,
            "positive_relative_max": distance / self.norm if self.norm else None,
            "inactive_max": float(inactive.max()) if inactive.numel() else None,
            "feature_error_max": float(off),
        }

    def _errors(self, preactivation: Tensor) -> Tensor:
        """At most how far units (..., N) are off."""
        features = self.features
        oriented = features.oriented(preactivation)
        return torch.where(features.active, (oriented - features.values).abs(), oriented.relu())

    def prepare(self) -> None:
        """Follow the network to the target layer."""
        if not isinstance(self.cut.network, fx.GraphModule):
            raise NotPiecewiseLinear("torch.fx cannot trace the network")
        if len(self.features.active) > _UNITS:
            raise NotPiecewiseLinear(
                f"the layer's {len(self.features.active)} units are too many (at most {_UNITS})"
            )
        self.follow(self.cut.network)
        self._look(self.preactivation)

    def _look(self, preactivation: Tensor) -> None:
        features = self.features
        off = features.rectified(preactivation) - features.features
        self.seen = max(self.seen, float(off.norm(dim=1).max()) / self.norm)

    def __call__(self, pieces: Pieces, steps: list[Step] | None) -> Judged:
        bounds, preactivation = self.bounds(pieces, steps)
        self._look(preactivation)
        whole, alone = self._errors_of(bounds)
        figures = torch.stack([-whole / self.norm * (1 + 1e-12), -alone], 1)
        settled = -figures[:, 0] <= _NEAR * self.seen
        return Judged(figures, settled, bounds.parts(bounds.met, _HALVINGS * ~settled))

    def _errors_of(self, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Of each piece, (P,): the largest norm of all errors, and the largest error.

        At a vertex the errors are at most those of the middle, plus what the deviations make. The
        latter's norm is bounded for many units together (see `joint_norm`), which share the
        deviations; units that are all but off add up, each with the largest error of its own.
        """
        last = bounds.at[-1]
        middle, reach = last.middle, last.radius  # (P, K, N)
        alone = self._most(middle, reach)
        used = (alone > 0).any(1).any(0).nonzero().flatten()  # the others have no error anywhere
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
        return whole.amax(1) * error, alone.amax((1, 2)) * error

    def _most(self, middle: Tensor, reach: Tensor) -> Tensor:
        """At most how far units (..., N) are off that lie within `reach` of `middle`."""
        blind = (self.features.oriented(middle) + reach).relu()
        return torch.where(self.features.active, self._errors(middle) + reach, blind)


def joint_norm(columns: Tensor, radii: Tensor) -> Tensor:
    """At most ||A e|| for |e| <= radii: A (P, S, M), radii (P, K, M), the answer (P, K).

    For any s > 0, ||A e||^2 <= lambda_max(A R S^-1 R A^T) sum(s), R the radii: s weighs every
    deviation by what it makes alone. In float32, which is enough for a bound of some per mille.
    """
    if not columns.numel():
        return radii.new_zeros(radii.shape[:2])
    length = columns.norm(dim=1, keepdim=True)  # (P, 1, M)
    alone = radii * length
    total = alone.sum(2)
    scale = (length * total[..., None]).clamp_min(_TINY)
    factors = (columns[:, None] * (radii / scale).clamp_max(1 / _TINY).sqrt()[:, :, None]).float()
    gram = factors @ factors.mT  # (P, K, S, S), of trace 1
    slack = 4 * (columns.shape[2] + 16) * torch.finfo(torch.float32).eps
    largest = largest_eigenvalue(gram).double() + slack  # no entry rounds by more than its share
    joint: Tensor = largest.sqrt() * total * (1 + 1e-12)
    return joint


_TINY = 1e-200


def largest_eigenvalue(matrices: Tensor) -> Tensor:
    """At least the largest eigenvalue of symmetric matrices (..., S, S) of a trace of about 1.

    None of their eigenvalues is below 0. A guess c by the power method, for which c I - M is then
    seen to have none below 0: a Cholesky factor of it is found, and what is found is that of a
    matrix at most gamma trace(c I - M) away (Higham 2002, theorem 10.3).
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


_POWERS = 12


def _cache(
    directory: Path | None, network: fx.GraphModule, hull: Hull, statement: str
) -> PieceCache | None:
    """Where what is known of this hull and statement is kept."""
    if directory is None:
        return None
    key = proof_key(network, hull.corners, hull.target_class, hull.target)
    return PieceCache(directory / f"{statement}-{key}.safetensors")
