"""Trees of bisections: exact, whole, and found again from their leaves."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from feature_collisions import simplex
from feature_collisions.checking.bisections import WHOLE, Node, read_tree, scale_without, tree_of


def cut(corners: int, times: int, seed: int) -> list[Node]:
    """A simplex cut at random."""
    random = np.random.default_rng(seed)
    leaves = [Node(np.eye(corners, dtype=np.int64) * WHOLE)]
    for _ in range(times):
        node = leaves.pop(random.integers(len(leaves)))
        leaves += node.halved(*map(int, random.choice(corners, 2, replace=False)))
    random.shuffle(leaves)
    for leaf in leaves:
        leaf.holds = bool(random.random() < 0.7)
    return leaves


def key(leaf: Node) -> tuple[tuple[int, ...], ...]:
    return tuple(sorted(map(tuple, leaf.vertices.tolist())))


@pytest.mark.parametrize(("corners", "times"), [(2, 20), (3, 60), (5, 200), (8, 100)])
def test_the_tree_is_found_from_its_leaves(corners, times):
    leaves = cut(corners, times, corners)
    weights = np.stack([leaf.vertices for leaf in leaves]) / WHOLE
    root = read_tree(tree_of(weights, np.array([leaf.holds for leaf in leaves])), corners)
    found = {key(leaf): leaf.holds for leaf in root.leaves()}
    assert found == {key(leaf): leaf.holds for leaf in leaves}
    assert sum(leaf.volume for leaf in root.leaves()) == 1


def test_volumes_are_exact():
    """A leaf's determinant is 2^-depth, in rational arithmetic."""
    for leaf in cut(4, 40, 0):
        rows = [[Fraction(int(v), WHOLE) for v in row] for row in leaf.vertices]
        assert abs(determinant(rows)) == leaf.volume
        assert all(sum(row) == 1 and min(row) >= 0 for row in rows)


def determinant(rows: list[list[Fraction]]) -> Fraction:
    if len(rows) == 1:
        return rows[0][0]
    minors = ([row[:k] + row[k + 1 :] for row in rows[1:]] for k in range(len(rows)))
    return sum(
        ((-1) ** k * rows[0][k] * determinant(minor) for k, minor in enumerate(minors)),
        Fraction(0),
    )


def test_leaves_that_do_not_cover_claim_less():
    leaves = cut(4, 30, 1)
    weights = np.stack([leaf.vertices for leaf in leaves])[1:] / WHOLE
    root = read_tree(tree_of(weights, np.ones(len(weights), dtype=bool)), 4)
    missing = sum(leaf.volume for leaf in root.leaves() if not leaf.holds)
    assert missing >= leaves[0].volume


def test_leaves_of_other_cuts_claim_nothing():
    """Across thirds: none of the cuts takes them apart."""
    thirds = np.array([[[1, 0], [0.375, 0.625]], [[0.375, 0.625], [0, 1]]])
    root = read_tree(tree_of(thirds, np.array([True, True])), 2)
    assert not root.holds
    assert not any(leaf.holds for leaf in root.leaves())


@pytest.mark.parametrize("corners", [2, 3, 5])
def test_the_size_without_some_leaves_is_exact(corners):
    leaves = cut(corners, 60, corners)
    open_ = [leaf for leaf in leaves if not leaf.holds]
    found = scale_without(open_, corners)
    weights = torch.from_numpy(np.stack([leaf.vertices for leaf in open_]) / WHOLE)
    assert found == pytest.approx(simplex.scale_without(weights), abs=1e-6)
    inner = [leaf for leaf in leaves if key(leaf) not in {key(each) for each in open_}]
    assert scale_without([], corners) == 1
    assert scale_without(inner + open_, corners) == 0
