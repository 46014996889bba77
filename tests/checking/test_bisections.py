"""Trees of bisections: exact, whole, and found again from their leaves."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from feature_collisions import simplex
from feature_collisions.checking.bisections import (
    WHOLE,
    Node,
    read_tree,
    scale_without,
    size_of,
    tree_of,
)
from feature_collisions.proofs.splitting import shrunk


def whole(corners: int) -> Node:
    return Node(np.eye(corners, dtype=np.int64) * WHOLE)


def cut(corners: int, times: int, seed: int, part: Node | None = None) -> list[Node]:
    """A simplex cut at random."""
    random = np.random.default_rng(seed)
    leaves = [part or whole(corners)]
    for _ in range(times):
        node = leaves.pop(random.integers(len(leaves)))
        leaves += node.halved(*map(int, random.choice(corners, 2, replace=False)))
    random.shuffle(leaves)
    for leaf in leaves:
        leaf.holds = bool(random.random() < 0.7)
    return leaves


def none(corners: int) -> np.ndarray:
    return np.zeros(corners, dtype=np.int64)


def key(leaf: Node) -> tuple[tuple[int, ...], ...]:
    return tuple(sorted(map(tuple, leaf.vertices.tolist())))


@pytest.mark.parametrize("share", [1.0, 0.75, 3 / 64])
@pytest.mark.parametrize(("corners", "times"), [(2, 20), (3, 60), (5, 200), (8, 100)])
def test_the_tree_is_found_from_its_leaves(corners, times, share):
    """Of a whole simplex, and of a part of one."""
    begin = shrunk(corners, share).amin(0).numpy() if share < 1 else np.zeros(corners)
    least = (begin * WHOLE).astype(np.int64)
    part = Node(least + np.eye(corners, dtype=np.int64) * (WHOLE - least.sum()))
    leaves = cut(corners, times, corners, part)
    weights = np.stack([leaf.vertices for leaf in leaves]) / WHOLE
    root = read_tree(tree_of(weights, np.array([leaf.holds for leaf in leaves]), begin), least)
    assert size_of(root, []).scale == pytest.approx(share, rel=0.05)
    assert size_of(root, []).share == pytest.approx(share ** (corners - 1))
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
    root = read_tree(tree_of(weights, np.ones(len(weights), dtype=bool), np.zeros(4)), none(4))
    missing = sum(leaf.volume for leaf in root.leaves() if not leaf.holds)
    assert missing >= leaves[0].volume


def test_leaves_of_other_cuts_claim_nothing():
    """Across thirds: none of the cuts takes them apart."""
    thirds = np.array([[[1, 0], [0.375, 0.625]], [[0.375, 0.625], [0, 1]]])
    root = read_tree(tree_of(thirds, np.array([True, True]), np.zeros(2)), none(2))
    assert not root.holds
    assert not any(leaf.holds for leaf in root.leaves())


@pytest.mark.parametrize("corners", [2, 3, 5])
def test_the_size_without_some_leaves_is_exact(corners):
    leaves = cut(corners, 60, corners)
    open_ = [leaf for leaf in leaves if not leaf.holds]
    found = scale_without(open_, whole(corners))
    weights = torch.from_numpy(np.stack([leaf.vertices for leaf in open_]) / WHOLE)
    assert found == pytest.approx(simplex.scale_without(weights), abs=1e-6)
    inner = [leaf for leaf in leaves if key(leaf) not in {key(each) for each in open_}]
    assert scale_without([], whole(corners)) == 1
    assert scale_without(inner + open_, whole(corners)) == 0
