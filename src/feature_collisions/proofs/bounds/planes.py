"""Products of two varying values, and softmax, on a subdomain: a plane plus a remainder.

The remainder is of second order in the subdomain's size, so its sign does not matter: rows of both
signs pass through the plane and add its bound. Its middle is known at each point; for a product

    B(x, y) = sum_k w_k B(x_k, y_k) - sum_{k<l} w_k w_l B(x_k - x_l, y_k - y_l)

of values that are linear on the subdomain, x_k and y_k at its vertices. Differences are summed with
their signs, as far as B sums.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .relaxation import Values, between, rounding
from .steps import Product, Softmax

_OFF = 2.0**-44  # relative error of float64 exponentials
_BLOCK = 2**22  # most numbers for pairs of a softmax


class Plane(NamedTuple):
    """y = plane(x) + remainder.

    Attributes:
        at: (P, ...) points of contact, for `Product.back` and `Softmax.back`.
        middle, radius: (P, K, ...) of the remainder.
        size: (P, ...) bound on the factor of a row's entry in the backward pass.
    """

    at: tuple[Tensor, Tensor]
    middle: Tensor
    radius: Tensor
    size: Tensor


def of_product(step: Product, x: Values, y: Values) -> tuple[Plane, Values]:
    """Plane of a product through the middle of the subdomain, and bounds on the product."""
    corners = x.middle.shape[1]
    size = step.value(x.largest, y.largest)
    i, j = torch.triu_indices(corners, corners, 1, device=size.device)
    bent = step.value(x.middle[:, i] - x.middle[:, j], y.middle[:, i] - y.middle[:, j])
    bent = torch.cat([torch.zeros_like(size)[:, None], bent], 1)
    share = (corners - 1) / (2 * corners)  # at most sum_{k<l} w_k w_l
    shift, most = between(-share * bent.amax(1), -share * bent.amin(1))
    most = most + rounding(step.terms + 8, 8 * size)

    def around(at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Of (x - at_0) (y - at_1): middle and radius, (P, K, ...)."""
        left, right = x.middle - at[0][:, None], y.middle - at[1][:, None]
        strays = step.value(left.abs().amax(1, keepdim=True), y.radius)
        strays = strays + step.value(x.radius, (right.abs() + y.radius).amax(1, keepdim=True))
        return step.value(left, right) + shift[:, None], strays + most[:, None]

    at = x.middle.mean(1), y.middle.mean(1)
    middle, radius = around(at)
    start = step.value(*at)
    size = size + step.value(at[0].abs(), y.largest) + step.value(x.largest, at[1].abs())
    plane = Plane(at, middle - start[:, None], radius, size)
    middle, radius = around((torch.zeros_like(at[0]), torch.zeros_like(at[1])))
    return plane, _within(middle, radius, size)


def _within(middle: Tensor, radius: Tensor, size: Tensor | None = None) -> Values:
    return Values(middle, radius, (middle - radius).amin(1), (middle + radius).amax(1))


def of_softmax(step: Softmax, x: Values) -> tuple[Plane, Values]:
    """Plane of a softmax through the middle of the subdomain, and bounds on the softmax.

    With s = softmax(c), d = x - c and phi(t) = exp(t) - 1 - t, which is convex,

        -s_i sum_j s_j phi(d_j - d_i) <= softmax_i(x) - s_i - s_i u_i <= s_i phi(u_i),

    u_i = d_i - sum_j s_j d_j: log softmax_i is concave, 1 / softmax_i is convex and above its
    tangent. Both bounds are convex in x, so each vertex has its own interval. If the minimum and
    maximum are closer together than that, they are the bounds, and rows end there.
    """
    middle, radius = (each.movedim(step.axis, -1) for each in (x.middle, x.radius))
    ends = [each.movedim(step.axis, -1) for each in (x.low, x.high)]
    centre = middle.mean(1)
    shares = centre.softmax(-1)
    largest = (middle.abs() + radius).amax(1)
    off = _OFF * (middle.shape[-1] + 2 * largest.amax(-1, keepdim=True))
    d, s = middle - centre[:, None], shares[:, None]
    u = d - (s * d).sum(-1, keepdim=True)
    reach = (s * radius).sum(-1, keepdim=True) + (1 - 2 * s) * radius
    upper = s * _most(u, reach)
    lower = -s * _sum_of_pairs(s, d, radius)
    lowest = _box(middle - radius, middle + radius)[0].amin(1)
    log = centre.log_softmax(-1)  # an underflowing share times an overflowing value
    highest = torch.minimum(_box(*ends)[1], (log + (u + reach).amax(1)).exp())
    lowest, highest = (lowest * (1 - off)).clamp_min(0), (highest * (1 + off) + off).clamp_max(1)
    error = off[:, None] * (1 + upper - lower + s * (u.abs() + reach))
    upper, lower = upper + error, lower - error
    kept = (upper - lower).isfinite().all(1)
    kept &= ((upper - lower) / 2 + s * reach).mean(1) < (highest - lowest) / 2
    rest = between(
        torch.where(kept[:, None], lower, lowest[:, None]),
        torch.where(kept[:, None], upper, highest[:, None]),
    )
    middle = rest[0] + (kept * shares)[:, None] * (1 + u)
    radius = rest[1] + kept[:, None] * s * reach
    lowest = torch.maximum(lowest, (middle - radius).amin(1))
    highest = torch.minimum(highest, (middle + radius).amax(1))
    start = shares * kept * (1 - centre + (shares * centre).sum(-1, keepdim=True))
    size = 1 + shares * (1 + largest + (shares * largest).sum(-1, keepdim=True))
    at, plane, found = (
        [each.movedim(-1, step.axis) for each in group]
        for group in (
            (shares, kept.to(s)),
            (rest[0] + start[:, None], rest[1], size),
            (middle, radius, lowest, highest),
        )
    )
    return Plane((at[0], at[1]), *plane), Values(*found)


def _most(middle: Tensor, radius: Tensor) -> Tensor:
    """The largest exp(t) - 1 - t over intervals."""
    ends = middle - radius, middle + radius
    return torch.maximum(*(each.expm1() - each for each in ends))


def _sum_of_pairs(s: Tensor, d: Tensor, radius: Tensor) -> Tensor:
    """(P, K, ..., T) for each i at most sum_j s_j phi(d_j - d_i)."""
    count = d.shape[-1]
    parts = []
    for part in torch.arange(count, device=d.device).split(max(1, _BLOCK // d.numel())):
        pairs = d[..., None, :] - d[..., part, None]
        reach = radius[..., None, :] + radius[..., part, None]
        most = _most(pairs, reach) * s[..., None, :]
        own = torch.arange(len(part), device=d.device)
        most[..., own, part] = 0
        parts.append(most.sum(-1))
    return torch.cat(parts, -1)


def _box(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest softmax (..., T) over a box."""
    top = high.amax(-1, keepdim=True)
    low, high = (low - top).exp(), (high - top).exp()
    least = low / (high.sum(-1, keepdim=True) - high + low)
    return least, high / ((low.sum(-1, keepdim=True) - low).clamp_min(0) + high)
