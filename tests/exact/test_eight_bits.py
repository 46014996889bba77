"""Whole numbers near a polytope: reduced bases, nearest planes, and what a layer sees of PNGs."""

import numpy as np
import pytest
import torch
from torch import nn

from feature_collisions.exact.eight_bits import nearest_plane, reduced, with_exact_pngs
from feature_collisions.exact.first_layer import first_layer
from feature_collisions.exact.polytope import polytope_of
from feature_collisions.graph.graph import trace


@pytest.mark.parametrize("seed", range(5))
def test_a_reduced_basis_is_of_the_same_lattice_and_meets_lovasz_condition(seed):
    basis = np.random.default_rng(seed).normal(size=(14, 10)) * 10.0 ** -np.arange(10)
    unit = reduced(basis)
    assert np.array_equal(unit, np.rint(unit))
    assert abs(abs(np.linalg.det(unit)) - 1) < 1e-6
    upper = np.linalg.qr(basis @ unit, mode="r")
    sizes = np.abs(np.diag(upper))
    assert (np.abs(np.triu(upper, 1)) <= (0.5 + 1e-9) * sizes[:, None]).all()
    neighbours = sizes[1:] ** 2 + np.diag(upper, 1) ** 2
    assert (neighbours >= (0.99 - 1e-9) * sizes[:-1] ** 2).all()


def test_the_nearest_plane_is_the_nearest_point_of_an_orthogonal_lattice_and_near_it_elsewhere():
    draw = np.random.default_rng(0)
    points = draw.normal(size=(3, 200)) * 5
    apart = np.diag([1.0, 3, 0.2])
    assert np.array_equal(nearest_plane(apart, np.eye(3), points), np.rint(points))
    skew = np.array([[1, 0.99, 0.3], [0, 0.02, 0.7], [0, 0, 0.05]])
    found = nearest_plane(skew, reduced(skew), points)
    off, plain = (np.linalg.norm(skew @ (z - points), axis=0) for z in (found, np.rint(points)))
    assert np.array_equal(found, np.rint(found))
    assert off.mean() < plain.mean() / 2


def test_pngs_of_exact_corners_are_nearly_exact_where_no_unit_is_hidden():
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 12, 4, stride=4)
    rest = nn.Flatten(), nn.Linear(192, 2)
    target, pictures = torch.rand(3, 16, 16), torch.rand(3, 768).double()
    layer = first_layer(trace(nn.Sequential(stem, nn.GELU(), *rest).eval(), target.shape))
    polytope, features = polytope_of(layer, target), layer.features(target)
    near, _ = polytope.nearest(pictures)
    found = with_exact_pngs(polytope, near)
    images, pngs, plain = (
        layer.residual(each.view(-1, 3, 16, 16), features)
        for each in (found, (found * 255).round() / 255, (near * 255).round() / 255)
    )
    assert found.min() >= 0
    assert found.max() <= 1
    assert images.max() < 1e-9
    assert (pngs < plain / 5).all()
    assert (found - near).square().mean().sqrt() < 4 / 255
    hiding = first_layer(trace(nn.Sequential(stem, nn.ReLU(), *rest).eval(), target.shape))
    assert torch.equal(with_exact_pngs(polytope_of(hiding, target), near), near)
