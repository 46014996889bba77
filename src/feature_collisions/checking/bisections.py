"""A simplex cut by halving edges, again and again: a binary tree, in exact arithmetic.

A node is its vertices' weights, whole numbers over 2^50. An inner node names two vertices i and j;
with their midpoint m, its first child has m in the place of j, its second m in the place of i. So
the leaves cover the simplex whatever the tree says, and a leaf's volume is 2^-depth of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

Array = np.ndarray
WHOLE = 2**50
_LEAF = -1
_PROGRAMS = 2000  # linear programs at most: what is left keeps its simpler bound


@dataclass
class Node:
    """A part of a simplex.

    Attributes:
        vertices: (K, K) int64, row j the weights of vertex j, over `WHOLE`.
        depth: how many halvings made it.
        holds: whether the statement is said to hold on all of it.
        halves: what it is cut into; empty for a leaf.
    """

    vertices: Array
    depth: int = 0
    holds: bool = False
    halves: "list[Node]" = field(default_factory=list)

    @property
    def volume(self) -> Fraction:
        """Its share of the simplex."""
        return Fraction(1, 2**self.depth)

    def halved(self, first: int, second: int) -> "list[Node]":
        """Both halves across an edge.

        Raises:
            ValueError: where a weight of the midpoint is no multiple of 1 / `WHOLE`.
        """
        total = self.vertices[first] + self.vertices[second]
        if (total % 2).any():
            raise ValueError("is cut more often than 50 times")
        one, other = self.vertices.copy(), self.vertices.copy()
        one[second] = other[first] = total // 2
        return [Node(each, self.depth + 1, self.holds) for each in (one, other)]

    def leaves(self) -> "list[Node]":
        """All leaves, in order."""
        found, waiting = list[Node](), [self]
        while waiting:
            node = waiting.pop()
            waiting += reversed(node.halves)
            found += [] if node.halves else [node]
        return found


def read_tree(tree: Array, least: Array) -> Node:
    """A part of a simplex as a tree cuts it.

    Args:
        tree: (n, 2) int, the nodes in preorder: an inner node's two vertices, or -1 and whether the
            statement holds on a leaf.
        least: (K,) int64 over `WHOLE`; the part is all weights of at least these.

    Raises:
        ValueError: for what is no such tree.
    """
    corners, room = len(least), WHOLE - sum(least.tolist())
    if min(least.tolist()) < 0 or room <= 0:
        raise ValueError("is of no part of the hull")
    root = Node(least + np.eye(corners, dtype=np.int64) * room)
    waiting, inner = [root], list[Node]()
    for first, second in tree.tolist():
        if not waiting:
            raise ValueError("has nodes behind its last leaf")
        node = waiting.pop()
        if first == _LEAF and second in (0, 1):
            node.holds = second == 1
        elif 0 <= first < corners and 0 <= second < corners and first != second:
            node.halves = node.halved(first, second)
            waiting += reversed(node.halves)
            inner.append(node)
        else:
            raise ValueError(f"has a node ({first}, {second}), which is no edge and no leaf")
    if waiting or sum(leaf.volume for leaf in root.leaves()) != 1:
        raise ValueError("ends before its last leaf")
    for node in reversed(inner):
        node.holds = all(half.holds for half in node.halves)
    return root


def tree_of(weights: Array, holds: Array, least: Array) -> Array:
    """The tree whose leaves are some subdomains that cover a part of a simplex.

    A part that none of the cuts takes apart is one leaf, on which nothing is said to hold.

    Args:
        weights: (n, K, K) of the vertices, multiples of 2^-50.
        holds: (n,) whether the statement holds on each.
        least: (K,) the part is all weights of at least these.

    Returns:
        (nodes, 2) int16, as `read_tree` takes it.
    """
    count = weights.shape[2]
    first, second = np.triu_indices(count, 1)
    tree: list[tuple[int, int]] = []
    exact = np.round((weights - least) / (1 - least.sum()) * WHOLE).astype(np.int64)
    waiting = [(exact, holds)]  # of each: weights of the node's own vertices
    while waiting:
        inside, state = waiting.pop()
        if len(inside) == 1:
            tree.append((_LEAF, int(state[0] and (inside[0] == WHOLE).any(0).all())))
            continue
        edge = _cut(inside, first, second)
        if edge is None:
            tree.append((_LEAF, 0))
            continue
        i, j = int(first[edge]), int(second[edge])
        tree.append((i, j))
        near = (inside[:, :, i] >= inside[:, :, j]).all(1)
        for kept, lost, side in ((j, i, ~near), (i, j, near)):
            part = inside[side]
            part[:, :, kept] -= part[:, :, lost]
            part[:, :, lost] *= 2
            waiting.append((part, state[side]))
    return np.array(tree, dtype=np.int16)


def _cut(inside: Array, first: Array, second: Array) -> int | None:
    """The first edge across whose middle no subdomain reaches, with some on both sides."""
    for edge, (i, j) in enumerate(zip(first, second, strict=True)):
        off = inside[:, :, i] - inside[:, :, j]
        near, far = (off >= 0).all(1), (off <= 0).all(1)
        if (near ^ far).all() and near.any() and far.any():
            return edge
    return None


class Size(NamedTuple):
    """How much of a simplex something is known of.

    Attributes:
        scale: share to which it can be shrunk about its centroid.
        share: of its volume.
    """

    scale: float
    share: float

    def exceeds(self, other: "Size") -> bool:
        """Whether either is larger."""
        return self.scale > other.scale or self.share > other.share

    @classmethod
    def best(cls, sizes: Iterable["Size"]) -> "Size":
        """The largest of each."""
        return cls(*map(max, zip(*sizes, strict=True)))


def size_of(part: Node, without: list[Node]) -> Size:
    """How much of a simplex is in a part of it, but in none of some leaves."""
    room = Fraction(int(WHOLE - part.vertices.min(0).sum()), WHOLE) ** (len(part.vertices) - 1)
    share = room * (1 - sum((leaf.volume for leaf in without), Fraction(0)))
    return Size(scale_without(without, part), float(share))


def scale_without(leaves: list[Node], root: Node) -> float:
    """A share to which the simplex can be shrunk about its centroid, in a part but into no leaf.

    The shrunk simplex of share s has weights of at least (1 - s) / K. For any l >= 0 that add up to
    1 a leaf with vertices v_j begins at no smaller share than min_j sum_k l_k (1 - K v_jk), which
    is computed exactly; which l is good is asked of a linear program.

    Args:
        leaves: of the part.
        root: the part, as `read_tree` makes it.
    """
    corners = len(root.vertices)
    whole = 1 - Fraction(corners * int(root.vertices.min(0).max()), WHOLE)
    least = [_by_facets(leaf, corners) for leaf in leaves]
    refined = set[int]()
    while least and len(refined) < _PROGRAMS:
        k = min(range(len(least)), key=least.__getitem__)
        if k in refined or least[k] >= whole:
            break
        refined.add(k)
        least[k] = max(least[k], _by_program(leaves[k], corners))
    found = max(min([whole, *least]), Fraction(0))
    return float(found) if found == 1 else max(0.0, float(np.nextafter(float(found), 0.0)))


def _by_facets(leaf: Node, corners: int) -> Fraction:
    """By an l that is equal on the m corners farthest away, the best m."""
    order = np.argsort(leaf.vertices.max(0), kind="stable")
    summed = np.cumsum(leaf.vertices[:, order].astype(object), 1).max(0)
    return max(1 - Fraction(corners * int(most), WHOLE * (m + 1)) for m, most in enumerate(summed))


def _by_program(leaf: Node, corners: int) -> Fraction:
    """By an l that a linear program finds, rounded; the bound that it gives is exact."""
    game = 1 - corners * leaf.vertices / WHOLE
    found = linprog(
        [0.0] * corners + [-1.0], A_ub=np.hstack([-game, np.ones((corners, 1))]),
        b_ub=np.zeros(corners), A_eq=[[1.0] * corners + [0.0]], b_eq=[1.0],
        bounds=[(0, None)] * corners + [(None, None)],
    )  # fmt: skip
    if found.x is None:
        return Fraction(-1)
    weigh = [max(0, round(float(each) * 2**30)) for each in found.x[:-1]]
    sums = [sum(w * int(v) for w, v in zip(weigh, row, strict=True)) for row in leaf.vertices]
    return 1 - Fraction(corners * max(sums), WHOLE * sum(weigh)) if sum(weigh) else Fraction(-1)
