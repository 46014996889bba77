"""The exported graph of a network, followed by affine forms: one step for each known operation."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ..graph.graph import held_by
from .forms import Form, Forms
from .layers import Array, adaptive_cells, averaged, convolved, pair, window_cells

_ROOM = 2**26  # numbers that the columns of one layer may have


class NoBound(ValueError):
    """An operation that has no bound here; the message names it."""


class Network:
    """Some values of a graph, of images.

    Args:
        network: the exported graph.
        ends: whose values are asked for.
    """

    def __init__(self, network: fx.GraphModule, ends: Sequence[fx.Node]) -> None:
        self.network, self.ends = network, ends
        self.constants: dict[fx.Node, Any] = {}
        self.moving = list[fx.Node]()
        needed, waiting = set[fx.Node](), list(ends)
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting += node.all_input_nodes
        moving = set[fx.Node]()
        for node in network.graph.nodes:
            given = any(each in moving for each in node.all_input_nodes)
            given = given and "sym_size" not in str(node.target)
            if node in needed and (node.op == "placeholder" or given):
                moving.add(node)
                self.moving.append(node)
                _known(node)
        last: dict[fx.Node, fx.Node] = {}
        for node in self.moving:
            last |= dict.fromkeys(node.all_input_nodes, node)
        self.freed = {node: [each for each in last if last[each] is node and each not in ends]
                      for node in self.moving}  # fmt: skip
        sizes = [math.prod(_shape(node)) for node in self.moving if node.op != "placeholder"]
        self.most = _ROOM // max(sizes, default=1)

    def forms(self, vertices: Array, error: Array) -> tuple[Forms, list[Form]]:
        """The values over a simplex.

        Args:
            vertices: (K, C, H, W).
            error: (K, C, H, W) how far each pixel may be off.
        """
        forms = Forms(vertices, error, self.most)
        values: dict[fx.Node, Form] = {}
        with np.errstate(all="ignore"):
            for node in self.moving:
                if node.op == "placeholder":
                    values[node] = forms.start
                else:
                    values[node] = _Call(self, node, forms, values).result()
                for each in self.freed[node]:
                    values.pop(each, None)
        return forms, [values[end] for end in self.ends]

    def constant(self, given: Any) -> Any:
        """A node that does not move with the images, as float64 gives it; others as they are."""
        if not isinstance(given, fx.Node):
            return given
        if given not in self.constants:
            if given.op == "get_attr":
                found = held_by(self.network, str(given.target))
            else:
                args, kwargs = map_arg((given.args, given.kwargs), self._tensor)
                found = given.target(*args, **kwargs)  # type: ignore[operator]
            if isinstance(found, Tensor):
                found = found.detach().cpu()
                found = (found.double() if found.is_floating_point() else found).numpy()
            self.constants[given] = found
        return self.constants[given]

    def _tensor(self, node: fx.Node) -> Any:
        found = self.constant(node)
        return torch.from_numpy(found) if isinstance(found, np.ndarray) else found


def _known(node: fx.Node) -> None:
    if node.op not in ("placeholder", "output") and _name(node) not in _STEPS:
        raise NoBound(f"{node.name} ({_name(node)}) has no independent bound yet")


def _name(node: fx.Node) -> str:
    """An operation's name without namespace and overload: `conv2d` of `aten.conv2d.default`."""
    parts = str(node.target).split(".")
    return parts[1] if parts[0] == "aten" else parts[-1]


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Of one image's values.

    Raises:
        NoBound: where the export does not say.
    """
    first, *rest = node.meta.get("shape") or (0,)
    if first is not None or not rest or None in rest:
        raise NoBound(f"{node.name} does not keep images apart")
    return tuple(rest)


class _Call:
    """One operation with its arguments."""

    def __init__(
        self, network: Network, node: fx.Node, forms: Forms, values: dict[fx.Node, Form]
    ) -> None:
        self.network, self.node, self.forms, self.values = network, node, forms, values
        self.shape = _shape(node)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        self.given = {each.name: each.default_value for each in schema if each.has_default_value()}
        self.given |= dict(zip([each.name for each in schema], node.args, strict=False))
        self.given |= node.kwargs

    def result(self) -> Form:
        found = _STEPS[_name(self.node)](self)
        if found.radius.shape != self.shape:
            raise NoBound(f"{self.node.name} gives another shape than the export says")
        return found

    def __getitem__(self, name: str) -> Any:
        """An argument: a form where it moves, else a number or an array."""
        given = self.given[name]
        if isinstance(given, fx.Node):
            return self.values[given] if given in self.values else self.network.constant(given)
        return given

    @property
    def x(self) -> Form:
        """The first argument, which alone moves."""
        found = self.values.get(self.node.args[0])  # type: ignore[arg-type]
        if found is None or sum(each in self.values for each in self.node.all_input_nodes) > 1:
            raise self.unknown("more than its first argument moves")
        return found

    def unknown(self, reason: str) -> NoBound:
        return NoBound(f"{self.node.name} has no independent bound yet: {reason}")

    def need(self, **options: Any) -> None:
        """Raise NoBound where an option is not as given."""
        for name, value in options.items():
            if self.given.get(name, value) != value:
                raise self.unknown(f"{name}={self.given[name]}")


def _reshaped(call: _Call) -> Form:
    if call.x.radius.size != math.prod(call.shape):
        raise call.unknown("it does not keep images apart")
    return call.x.reshaped(*call.shape)


def _moved(call: _Call, move: Callable[[Array], Array]) -> Form:
    """Numbers that are left as they are, or left out, in other places."""
    x = call.x
    return Form(move(x.middle), move(x.columns), move(x.radius[None])[0])


def _linear(call: _Call) -> Form:
    weight, bias = call["weight"], call["bias"]
    return call.forms.affine(
        call.x, lambda x: x @ weight.T, lambda x: x @ np.abs(weight).T,
        0.0 if bias is None else bias, weight.shape[1],
    )  # fmt: skip


def _conv(call: _Call) -> Form:
    weight, bias = call["weight"], call["bias"]
    if isinstance(call["padding"], str):
        raise call.unknown(f"padding={call['padding']}")
    options = *(pair(call[name]) for name in ("stride", "padding", "dilation")), call["groups"]
    return call.forms.affine(
        call.x, lambda x: convolved(x, weight, *options),
        lambda x: convolved(x, np.abs(weight), *options),
        0.0 if bias is None else bias[:, None, None], math.prod(weight.shape[1:]),
    )  # fmt: skip


def _batch_norm(call: _Call) -> Form:
    """(x - m) w / sqrt(v + eps) + b, by the running averages."""
    call.need(training=False)
    shape = (-1, *[1] * (len(call.shape) - 1))
    mean, variance = call["running_mean"].reshape(shape), call["running_var"].reshape(shape)
    scale = 1 / np.sqrt(variance + call["eps"])
    if call["weight"] is not None:
        scale = scale * call["weight"].reshape(shape)
    bias = 0.0 if call["bias"] is None else call["bias"].reshape(shape)
    centred = call.forms.affine(call.x, lambda x: x, offset=-mean)
    return call.forms.affine(centred, lambda x: x * scale, lambda x: x * np.abs(scale), bias)


def _sum(call: _Call, sign: int = 1, order: tuple[str, str] = ("self", "other")) -> Form:
    call.need(alpha=1)
    one, other = (call[name] for name in order)
    if isinstance(one, Form) and isinstance(other, Form):
        if one.radius.shape != other.radius.shape:
            raise call.unknown("its terms have different shapes")
        return call.forms.total(one, other, sign)
    if isinstance(one, Form):
        return call.forms.affine(one, lambda x: x, offset=sign * _beside(call, other))
    return call.forms.affine(other, lambda x: sign * x, np.abs, _beside(call, one))


def _scaled(call: _Call) -> Form:
    one, other = call["self"], call["other"]
    if isinstance(one, Form) and isinstance(other, Form):
        raise call.unknown("both factors move")
    x, factor = (one, other) if isinstance(one, Form) else (other, one)
    factor = _beside(call, factor)
    return call.forms.affine(x, lambda x: x * factor, lambda x: x * np.abs(factor))


def _divided(call: _Call) -> Form:
    call.need(rounding_mode=None)
    divisor = _beside(call, call["other"])
    return call.forms.affine(call.x, lambda x: x / divisor, lambda x: x / np.abs(divisor))


def _beside(call: _Call, constant: Any) -> Array:
    """A constant of each image's values: what PyTorch broadcasts to (B, ...), without B."""
    found = np.asarray(constant, dtype=np.float64)
    count = len(call.shape) + 1
    if found.ndim == count and found.shape[0] == 1:
        found = found[0]
    if found.ndim >= count or np.broadcast_shapes(found.shape, call.shape) != call.shape:
        raise call.unknown("a constant changes its shape")
    return found


def _rectified(call: _Call) -> Form:
    return call.forms.rectified(call.x)


def _clipped(call: _Call) -> Form:
    low = call.given.get("min_val", call.given.get("min", 0.0))
    ceiling = 6.0 if _name(call.node) == "relu6" else None
    high = call.given.get("max_val", call.given.get("max", ceiling))
    if low != 0 or not (high is None or high > 0):
        raise call.unknown("it does not clip at 0")
    return call.forms.rectified(call.x) if high is None else call.forms.clipped(call.x, high)


def _max_pool(call: _Call) -> Form:
    x, kernel = call.x, pair(call["kernel_size"])
    stride = pair(call["stride"]) if call["stride"] else kernel
    cells = window_cells(
        pair(x.radius.shape[1:]), pair(call.shape[1:]), kernel, stride, pair(call["padding"]),
        pair(call["dilation"]),
    )  # fmt: skip
    return call.forms.largest(_flat(x), cells).reshaped(*call.shape)


def _average(call: _Call) -> Form:
    call.need(ceil_mode=False, divisor_override=None)
    x, kernel = call.x, pair(call["kernel_size"])
    stride, padding = pair(call["stride"]) if call["stride"] else kernel, pair(call["padding"])
    if any(padding) and call["count_include_pad"]:
        raise call.unknown("its averages count the padding")
    size, out = pair(x.radius.shape[1:]), pair(call.shape[1:])
    return _averages(call, window_cells(size, out, kernel, stride, padding, (1, 1)))


def _adaptive(call: _Call) -> Form:
    return _averages(call, adaptive_cells(pair(call.x.radius.shape[1:]), pair(call.shape[1:])))


def _mean(call: _Call) -> Form:
    """Over the places of a map."""
    x = call.x
    if sorted(axis % 4 for axis in call["dim"]) != [2, 3] or x.radius.ndim != 3:
        raise call.unknown("it is not over places")
    return _averages(call, np.arange(math.prod(x.radius.shape[1:]))[None])


def _averages(call: _Call, cells: Array) -> Form:
    flat = call.forms.affine(_flat(call.x), lambda x: averaged(x, cells), terms=cells.shape[1])
    return flat.reshaped(*call.shape)


def _flat(x: Form) -> Form:
    """(C, H, W) to (C, H W)."""
    return x.reshaped(len(x.radius), math.prod(x.radius.shape[1:]))


def _joined(call: _Call) -> Form:
    parts = [call.values.get(each) for each in call.given["tensors"]]
    axis = call["dim"] % (len(call.shape) + 1)
    if axis == 0 or None in parts:
        raise call.unknown("it joins images, or constants")
    return call.forms.joined([part for part in parts if part is not None], axis)


def _padded(call: _Call) -> Form:
    call.need(mode="constant")
    if call.given.get("value") not in (None, 0, 0.0):
        raise call.unknown("it pads with other numbers than 0")
    pads = list(call["pad"])
    both = [(0, 0)] * (len(call.shape) + 1 - len(pads) // 2)
    both += [(pads[k], pads[k + 1]) for k in range(len(pads) - 2, -1, -2)]
    if both[0] != (0, 0) or min(map(min, both)) < 0:
        raise call.unknown("it pads images, or cuts")
    return _moved(call, lambda x: np.pad(x, both))


def _sliced(call: _Call) -> Form:
    axis = call["dim"] % (len(call.shape) + 1)
    part = slice(call["start"], call["end"], call["step"])
    if axis == 0:
        if part not in (slice(0, 2**63 - 1, 1), slice(None, None, 1)):
            raise call.unknown("it leaves out images")
        return call.x
    return _moved(call, lambda x: x[(slice(None),) * axis + (part,)])


_STEPS: dict[str, Callable[[_Call], Form]] = {
    **dict.fromkeys(
        ("flatten", "view", "reshape", "unflatten", "unsqueeze", "squeeze", "contiguous", "clone",
         "alias", "detach", "_unsafe_view"), _reshaped,
    ),
    "linear": _linear, "conv2d": _conv, "batch_norm": _batch_norm, "relu": _rectified,
    "add": _sum, "sub": lambda call: _sum(call, -1),
    "rsub": lambda call: _sum(call, -1, ("other", "self")), "mul": _scaled, "div": _divided,
    "hardtanh": _clipped, "relu6": _clipped, "clamp": _clipped, "clamp_min": _clipped,
    "max_pool2d": _max_pool, "avg_pool2d": _average, "adaptive_avg_pool2d": _adaptive,
    "mean": _mean, "cat": _joined, "pad": _padded, "constant_pad_nd": _padded, "slice": _sliced,
}  # fmt: skip


def output_of(network: fx.GraphModule) -> fx.Node:
    """The node that the network returns."""
    found = next(iter(reversed(network.graph.nodes))).args[0]
    assert isinstance(found, fx.Node)
    return found
