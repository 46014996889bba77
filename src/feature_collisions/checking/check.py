"""Certificates checked: each subdomain bounded again, by code that shares none with the proof."""

import time
import warnings
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import SettingError
from ..graph.flow import nodes_of
from ..graph.operations import NotPiecewiseLinear
from ..percent import percent
from ..runs.evaluation import Checked
from .bisections import WHOLE, Node, Size, size_of
from .certificate import Statement, claimed, read_certificate
from .forms import Array, Form, Forms, up
from .network import Network, NoBound, output_of

_HALVINGS = 12  # of a subdomain whose bound is too loose
_SUMS = 1e-9  # more than norms of a million numbers round by, relative to them
_BACK = 1 / 8  # of a halving, after each bound that holds: then larger parts are tried again
_MORE = 20  # times as many bounds as there are subdomains, in all


def check(directory: Path, statement: Statement) -> Checked:
    """Check the certificate of a statement in a run directory, and one aside that claims more.

    Returns:
        Of the certificate that shows more, `share_proved` of the hull's volume and `scale_proved`,
        by the checker alone; `subdomains` that the certificate says are verified, `bounds` that
        were computed, `seconds`; and the `reason` why some or all could not be checked.

    Raises:
        SettingError: for a certificate that is refused: damaged, of another network or hull, or
            with a point of the hull at which the statement does not hold. One aside that is refused
            is a warning.
    """
    path, aside = directory / statement.file, directory / statement.aside
    if not path.exists():
        return _nothing("there is no certificate: nothing was proved by subdomains")
    parts, other = read_certificate(path, statement), Checked()
    if aside.exists():
        try:
            more = read_certificate(aside, statement)
            if claimed(more).exceeds(claimed(parts)):
                other = _checked(aside, statement, more)
        except SettingError as error:
            warnings.warn(f"{error}. What was proved here is checked.", stacklevel=2)
    if other.subdomains and not claimed(parts).exceeds(_size(other)):
        return other
    return max(_checked(path, statement, parts), other, key=_size)


def _size(found: Checked) -> Size:
    return Size(found.scale_proved, found.share_proved)


def _checked(path: Path, statement: Statement, parts: list[Node]) -> Checked:
    """What the trees of a certificate show."""
    began = time.monotonic()
    count = sum(leaf.holds for part in parts for leaf in part.leaves())
    try:
        judge = _Class(statement) if statement.kind == "class" else _Collision(statement)
        left = [_left(part, judge, judge.bounds + _MORE * count + 2**_HALVINGS) for part in parts]
    except (NoBound, NotPiecewiseLinear) as error:
        return _nothing(str(error), count)
    except _Refuted as error:
        raise SettingError(path, None, f"claims too much: {error}", "remove it") from None
    size = Size.best(map(size_of, parts, left))
    found = Checked(
        share_proved=size.share,
        scale_proved=size.scale,
        subdomains=count,
        bounds=judge.bounds,
        seconds=time.monotonic() - began,
    )
    for which, leaves in zip(("hull", "shrunk hull"), left, strict=False):
        if lost := float(sum(leaf.volume for leaf in leaves if leaf.holds)):
            found.reason = (
                f"the checker's bounds do not verify {percent(lost)} of the {which} that it claims"
            )
    return found


def _nothing(reason: str, subdomains: int = 0) -> Checked:
    return Checked(share_proved=0.0, scale_proved=0.0, subdomains=subdomains, reason=reason)


def _left(part: Node, judge: "_Judge", most: int) -> list[Node]:
    """The leaves of a part on which a statement is not shown to hold.

    A node that is said to be verified is tried as a whole before its halves, from a depth on that
    follows where this worked: the search may have cut finer than the checker needs.

    Args:
        part: as a certificate cuts it.
        judge: of the statement.
        most: bounds to compute, about.
    """
    checked, left, waiting, begin = Fraction(0), list[Node](), [(part, 0)], 0.0
    with tqdm(total=1.0, desc=f"Certificate ({judge.title})", delay=1, mininterval=0.5,
              bar_format="{l_bar}{bar}| [{elapsed}]") as bar:  # fmt: skip
        while waiting:
            node, cut = waiting.pop()
            if node.holds and (not node.halves or node.depth >= begin):
                if judge.holds(node):
                    checked += node.volume
                    bar.update(float(checked) - bar.n)
                    begin -= _BACK
                    continue
                judge.refute(node)
                begin = node.depth + 1
            if node.halves:
                waiting += [(half, 0) for half in reversed(node.halves)]
            elif node.holds and cut < _HALVINGS and judge.bounds < most:
                try:
                    waiting += [(half, cut + 1) for half in node.halved(*judge.longest(node))]
                except ValueError:  # it is too small
                    left.append(node)
            else:
                left.append(node)
    return left


class _Refuted(Exception):
    """A point at which a statement does not hold."""


class _Judge(ABC):
    """Bounds a statement's margin: above 0 it holds.

    Attributes:
        bounds: how many were computed.
    """

    def __init__(self, statement: Statement, network: Network) -> None:
        self.network, self.bounds = network, 0
        self.corners = statement.problem.corners.detach().cpu().double().numpy()
        flat = self.corners.reshape(len(self.corners), -1)
        self.gram = flat @ flat.T

    def holds(self, node: Node) -> bool:
        """Whether the statement is shown to hold on a subdomain."""
        self.bounds += 1
        self.least, _ = self._margins(node.vertices / WHOLE)
        return bool((self.least > 0).all())

    def longest(self, node: Node) -> tuple[int, int]:
        """The longest edge, as pixels have it."""
        weights = node.vertices / WHOLE
        inner = weights @ self.gram @ weights.T
        square = np.diag(inner)
        edge = int((square + square[:, None] - 2 * inner).argmax())
        first, second = divmod(edge, len(square))
        return (first, second) if first != second else (0, 1)

    def refute(self, node: Node) -> None:
        """Raise _Refuted where it is shown to fail at a point of the subdomain last asked of."""
        weights = node.vertices / WHOLE
        for point in (weights[self.least.argmin()], weights.mean(0)):
            _, most = self._margins(point[None])
            if most < 0:
                mix = ", ".join(f"{each:.4g}" for each in point)
                raise _Refuted(f"{self.fails} at the mix of weights {mix}")

    def _margins(self, weights: Array) -> tuple[Array, float]:
        points = np.tensordot(weights, self.corners, 1)
        size = np.tensordot(weights, np.abs(self.corners), 1)
        error = up((len(self.corners) + 8) * 2.0**-53 * up(size, len(self.corners)))
        with np.errstate(all="ignore"):
            return self.margins(*self.network.forms(points, error))

    title: str
    fails: str

    @abstractmethod
    def margins(self, forms: Forms, found: list[Form]) -> tuple[Array, float]:
        """Lower bounds (K,) that hold at the vertices and between them, and an upper one."""


class _Class(_Judge):
    """The target's logit over each other one."""

    title, fails = "class", "the class is another"

    def __init__(self, statement: Statement) -> None:
        graph = statement.problem.graph.runnable()
        super().__init__(statement, Network(graph, [output_of(graph)]))
        self.target = statement.problem.target_class

    def margins(self, forms: Forms, found: list[Form]) -> tuple[Array, float]:
        """The least margin over all classes."""
        rows = np.eye(len(found[0].radius))
        rows = rows[self.target] - np.delete(rows, self.target, 0)
        margin = forms.affine(found[0], lambda x: x @ rows.T, lambda x: x @ np.abs(rows).T)
        reach = forms.reach(margin)
        least, most = (margin.middle - reach).min(1), (margin.middle + reach).max(0).min()
        return least - 2.0**-50 * np.abs(least), float(most + 2.0**-50 * abs(most))


class _Collision(_Judge):
    """How far the features may be off below the limit, over ||f(t)||.

    Each unit's error |f(z) - f(t)| is convex in z, for a rectifier f: |z - f(t)| between its edges,
    what is above 0 of z at its lower one, and what is below its ceiling at its upper one. So the
    norm of all errors over a subdomain is at most the largest at a vertex.
    """

    title, fails = "collision", "the features are beyond the limit"

    def __init__(self, statement: Statement) -> None:
        problem = statement.problem
        graph, activation = problem.graph.runnable(), problem.features.activation
        if activation.sides and not activation.is_rectifier:
            raise NoBound(f"{activation.name} has no independent bound yet")
        super().__init__(statement, Network(graph, nodes_of(problem.graph, problem.layer) or []))
        self.floor = 0.0 if activation.sides else -np.inf
        self.ceiling = activation.ceiling
        image = problem.target.detach().cpu().double().numpy()[None]
        forms, found = self.network.forms(image, np.zeros_like(image))
        form = _row(forms, found)
        self.features, self.off = self._f(form.middle[0]), forms.reach(form)[0]
        norms = (_norm(np.maximum(np.abs(self.features) - self.off, 0)),
                 _norm(np.abs(self.features) + self.off))  # fmt: skip
        self.line = problem.limit * norms[0] * (1 - _SUMS), problem.limit * norms[1] * (1 + _SUMS)

    def _f(self, values: Array) -> Array:
        found: Array = np.clip(values, self.floor, self.ceiling)
        return found

    def _errors(self, low: Array, high: Array) -> Array:
        """At most |f(z) - f(t)| for z in [low, high], but for what f(t) itself is off."""
        above, below = high - self.features, self.features - low
        above = np.where(self.features >= self.ceiling, 0, above)
        below = np.where(self.features <= self.floor, 0, below)
        return np.maximum(np.maximum(above, below), 0)

    def margins(self, forms: Forms, found: list[Form]) -> tuple[Array, float]:
        """The limit less the norm of all errors, for the joint norm the better of two bounds."""
        form = _row(forms, found)
        reach, count = forms.reach(form), len(form.columns)
        apart = self._errors(form.middle - reach, form.middle + reach) + self.off
        still = self._errors(form.middle - form.radius, form.middle + form.radius) + self.off
        still = still + 8 * 2.0**-53 * (np.abs(form.middle) + np.abs(self.features) + reach)
        together = _norm(still) + forms.sizes[:count].T @ _norm(form.columns)
        most = np.minimum(together, _norm(apart)) * (1 + _SUMS)
        least = np.maximum(np.abs(self._f(form.middle) - self.features) - reach - self.off, 0)
        return self.line[0] - most, float(self.line[1] - _norm(least).max() * (1 - _SUMS))


def _row(forms: Forms, found: list[Form]) -> Form:
    """All values in one row."""
    return forms.joined([form.reshaped(form.radius.size) for form in found], 1)


def _norm(rows: Array) -> Array:
    found: Array = np.linalg.norm(rows, axis=-1)
    return found
