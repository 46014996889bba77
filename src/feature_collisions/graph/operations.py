"""The operations of a graph: one registry classifies their effect on values that vary.

A value varies if it depends on the images. *Has a flat side* (rectifiers) and *is piecewise linear*
(`kinds`) are separate questions.
"""

import math
import operator
from typing import Any, Literal

import torch
from torch import fx

from .activations import (
    aten,
    base_name,
    ceiling_of,
    curve_of,
    given_by_name,
    is_clip,
    title_of,
)

Kind = Literal["fixed", "affine", "relu", "clipped", "max_pool", "curve", "product", "softmax"]


class NotPiecewiseLinear(ValueError):
    """The network is not known to be piecewise linear; the message names the operation."""


# Effect of each operation on values that depend on the images.

_CASTS = {aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout}
_NEW_SHAPE = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default,
    aten.feature_dropout.default, aten.alpha_dropout.default, aten._unsafe_view.default,
}  # fmt: skip
_NEW_ORDER = {aten.transpose.int, aten.permute.default, aten.numpy_T.default}
# Operations along an axis other than that of the images: position of the axis argument.
_ALONG: dict[Any, int] = {
    aten.slice.Tensor: 1, aten.select.int: 1, aten.narrow.default: 1, aten.split.Tensor: 2,
    aten.split_with_sizes.default: 2, aten.chunk.default: 2, aten.unbind.int: 1,
    aten.index_select.default: 1, aten.flip.default: 1, aten.roll.default: 2,
    aten.mean.dim: 1, aten.sum.dim_IntList: 1,
}  # fmt: skip
SPLITS = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int}
_ALL = 2**63 - 1  # the end of a slice without one
_JOINED = {aten.cat.default, aten.stack.default}
SUMS = {aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.rsub.Scalar, aten.add.Scalar,
        aten.sub.Scalar}  # fmt: skip
DIFFERENCES = {aten.sub.Tensor}
MATRIX_PRODUCTS = {aten.matmul.default, aten.bmm.default}
_PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar, aten.mm.default} | MATRIX_PRODUCTS
BATCH_NORM = aten.batch_norm.default
AVERAGES = {aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.avg_pool1d.default,
            aten.adaptive_avg_pool1d.default}  # fmt: skip
MEANS = {aten.mean.dim}
LAYERS = {aten.linear.default, aten.conv2d.default, aten.conv2d.padding, aten.conv1d.default,
          aten.conv1d.padding}  # fmt: skip
_OF_FIRST = LAYERS | AVERAGES | _NEW_SHAPE | _NEW_ORDER | {
    BATCH_NORM, aten.pad.default,
    aten.div.Tensor, aten.div.Scalar, aten.neg.default, aten.expand.default,
    aten.constant_pad_nd.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec,
}  # fmt: skip
# Values written over a part of others, along an axis (third argument) other than that of the
# images. PyTorch turns writes through views into these.
_OVER_PARTS = {aten.slice_scatter.default, aten.select_scatter.default}
_OVER_ALL = {aten.copy.default, aten.zeros_like.default, aten.ones_like.default,
             aten.full_like.default, aten.fill.Scalar, aten.fill.Tensor}  # fmt: skip
MAX_POOL = aten.max_pool2d.default
_SIZES = {aten.sym_size.int, aten.sym_numel.default}
_OF_SIZES = {operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
             operator.pow, torch.sym_max, torch.sym_min}  # fmt: skip


def kinds(network: fx.GraphModule) -> dict[fx.Node, Kind]:
    """Kind of each node; `fixed` if its value does not depend on the images.

    Raises:
        NotPiecewiseLinear: at the first node of no known kind.
    """
    found: dict[fx.Node, Kind] = {}
    for node in network.graph.nodes:
        moving = [given for given in node.all_input_nodes if found[given] != "fixed"]
        if node.op in ("placeholder", "output"):
            found[node] = "affine"
        elif node.op == "get_attr" or not moving or node.target in _SIZES:
            found[node] = "fixed"
        else:
            found[node] = _kind(node, moving)
    return found


def affine_part(network: fx.GraphModule) -> set[fx.Node]:
    """Nodes that are affine in the images; for any network."""
    found: dict[fx.Node, bool] = {}  # nodes that depend on the images
    for node in network.graph.nodes:
        moving = [given for given in node.all_input_nodes if given in found]
        if node.op == "placeholder":
            found[node] = True
        elif moving and node.op != "output" and node.target not in _SIZES:
            first = moving == node.all_input_nodes[:1] and node.args[:1] == (moving[0],)
            affine = all(found[given] for given in moving) and not _draws(node)
            found[node] = affine and _is_affine(node, moving, first)
    return {node for node, affine in found.items() if affine and node.op != "placeholder"}


def _kind(node: fx.Node, moving: list[fx.Node]) -> Kind:
    first = moving == node.all_input_nodes[:1] and node.args[:1] == (moving[0],)
    ceiling = ceiling_of(node)
    if ceiling is not None and first:
        return "relu" if ceiling == math.inf else "clipped"
    if node.target is MAX_POOL and first:
        return "max_pool"
    if _draws(node):
        raise NotPiecewiseLinear(f"{node.name} is random even in eval mode")
    if _is_affine(node, moving, first):
        return "affine"
    if _is_product(node, moving):
        return "product"
    if node.target is aten.softmax.int and first and _axis(node, node.args[1]) not in (None, 0):
        return "softmax"
    curve, reason = curve_of(node), None
    if curve is not None:
        if curve.inflections is not None and first:
            return "curve"
        reason = f"{title_of(curve.name)} has no bounds yet"
    if is_clip(node):
        reason = "it does not clip at 0"
    raise NotPiecewiseLinear(
        f"{module_path(node)} ({base_name(node)}) is not known to be linear"
        + (f": {reason}" if reason else "")
    )


def _is_product(node: fx.Node, moving: list[fx.Node]) -> bool:
    """Whether it multiplies two varying values, elementwise or as matrices per image."""
    shapes = [given.meta.get("shape") or () for given in moving]
    if node.target not in _PRODUCTS or node.kwargs or not all(g in moving for g in node.args):
        return False
    matrices = node.target in MATRIX_PRODUCTS
    return min(map(len, shapes)) == max(map(len, shapes)) > (2 if matrices else 0)


def module_path(node: fx.Node) -> str:
    """Module that calls an operation, for messages."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]).removeprefix("model").removeprefix(".") if stack else ""
    return path if path and not path.startswith("_empty") else node.name


def _is_affine(node: fx.Node, moving: list[fx.Node], first: bool) -> bool:
    """Whether an operation is affine in varying values and treats each image separately."""
    target: Any = node.target
    if target in SUMS | _OVER_ALL:
        return True
    if target in _OVER_PARTS:
        whole = target is aten.slice_scatter.default and _is_whole(node.args[2:])
        return whole or _axis(node, node.kwargs.get("dim", (*node.args, 0)[2])) not in (None, 0)
    if target in _JOINED:
        return _axis(node, node.kwargs.get("dim", (*node.args, 0)[1])) not in (None, 0)
    if target in _PRODUCTS:
        return len(moving) == 1 and sum(given in moving for given in node.args) == 1
    if target is operator.getitem:
        return isinstance(node.args[1], int) and moving[0].target in SPLITS
    if target is BATCH_NORM:
        return first and node.args[5] is False and isinstance(node.args[3], fx.Node)
    if target in _ALONG:
        position = _ALONG[target]
        axis = node.args[position] if len(node.args) > position else node.kwargs.get("dim", 0)
        axes = list(axis) if isinstance(axis, list | tuple) else [axis]
        if target is aten.slice.Tensor and _is_whole(node.args[1:]):
            return first
        return first and all(_axis(node, axis) not in (None, 0) for axis in axes)
    if target in _NEW_ORDER:
        return first and _keeps_first_axis(node)
    return first and target in _OF_FIRST


def _is_whole(part: tuple[Any, ...]) -> bool:
    """Whether a slice (axis, start, end) contains all images."""
    return part == (0, 0, _ALL)


def _axis(node: fx.Node, axis: Any) -> int | None:
    """Axis counted from the front; None if unknown."""
    if not isinstance(axis, int):
        return None
    if axis >= 0:
        return axis
    of = node if node.target is aten.stack.default else node.all_input_nodes[0]
    shape = of.meta.get("shape")
    return None if shape is None else axis + len(shape)


def _keeps_first_axis(node: fx.Node) -> bool:
    if node.target is aten.permute.default:
        order = node.args[1]
        return isinstance(order, list | tuple) and bool(order[0] == 0)
    if node.target is aten.transpose.int:
        return all(_axis(node, axis) not in (None, 0) for axis in node.args[1:3])
    return False


def _draws(node: fx.Node) -> bool:
    """Whether it is an active dropout."""
    if "dropout" not in base_name(node):
        return False
    given = given_by_name(node, ("input", "p", "train"))
    return bool(given.get("train", True) and given.get("p", 0.5))


def is_no_operation(node: fx.Node) -> bool:
    """Whether a node returns its input: dropout in eval mode, a cast to the same dtype."""
    if node.target in _CASTS:
        return _keeps_dtype(node)
    return "dropout" in base_name(node) and not _draws(node)


def _keeps_dtype(node: fx.Node) -> bool:
    """Whether output and input of an exported node have the same dtype."""
    values = [each.meta.get("val") for each in (node, *node.all_input_nodes[:1])]
    dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    return len(values) == 2 and len(dtypes) == 1


def leave_out_dtype(copy: fx.Node, node: fx.Node) -> None:
    """Drop the dtype argument of a node's copy if the original had that dtype anyway.

    For example, a softmax "in float32" of a float32 network would round in a float64 copy.
    """
    if not (isinstance(node.target, torch._ops.OpOverload) and _keeps_dtype(node)):
        return
    options = node.target._schema.arguments
    optional = {each.name for each in options if each.type.kind() == "OptionalType"}
    copy.args = tuple(
        None if isinstance(each, torch.dtype) and option.name in optional else each
        for option, each in zip(options, copy.args, strict=False)
    )
    copy.kwargs = {
        name: value for name, value in copy.kwargs.items()
        if not (isinstance(value, torch.dtype) and name in optional)
    }  # fmt: skip


def keeps_values(node: fx.Node) -> bool:
    """Whether a node only reshapes or reorders its input."""
    return node.target in _NEW_SHAPE | _NEW_ORDER and not _draws(node)


def is_new_shape(node: fx.Node) -> bool:
    """Whether a node only reshapes its input, in the same order."""
    return node.target in _NEW_SHAPE and not _draws(node)


def size_of(node: Any, images: int) -> int:
    """Integer that a node computes from the number of images.

    Raises:
        NotPiecewiseLinear: if the dependence is of an unknown form.
    """
    if not isinstance(node, fx.Node):
        return int(node)
    if node.target is aten.sym_size.int and node.args[1] == 0:
        return images
    if node.target in _OF_SIZES:
        operation: Any = node.target
        return int(operation(*(size_of(given, images) for given in node.args)))
    raise NotPiecewiseLinear(f"{node.name} depends on the number of images")


def pooling(node: fx.Node) -> tuple[Any, ...]:
    """A max pool's kernel_size, stride, padding, dilation and ceil_mode."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    options = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False} | given
    options["stride"] = options["stride"] or options["kernel_size"]
    return tuple(
        tuple(option) if isinstance(option, list) else option
        for option in (options[name] for name in names)
    )


# Writes in place

_VIEWS = _NEW_SHAPE | _NEW_ORDER | set(_ALONG) | {aten.expand.default, operator.getitem}


def without_in_place(graph: fx.Graph) -> bool:
    """Replace in-place operations by functional ones.

    Returns:
        Whether that was possible. It stops at a write through a view of a tensor that is read
        elsewhere, and leaves the rest of the graph unchanged.
    """
    for node in list(graph.nodes):
        if not _is_mutable(node):
            continue
        target = _functional_target(node)
        source = node.args[0]
        if target is None or not isinstance(source, fx.Node) or _is_seen_elsewhere(node, source):
            return False
        node.target = target
        later = set(_after(node))
        source.replace_all_uses_with(node, delete_user_cb=later.__contains__, propagate_meta=False)
    return True


_IN_PLACE = {aten.relu.default: aten.relu_.default, aten.hardtanh.default: aten.hardtanh_.default}
# Operations whose backward pass does not read their output.
_NOT_READ_AGAIN = LAYERS | SUMS | _JOINED | {BATCH_NORM}


def reuse_memory(network: fx.GraphModule) -> None:
    """Let rectifiers overwrite values that nothing else reads: allocation costs time.

    For networks that a search or an evaluation runs; the graph itself has no in-place writes.
    """
    for node in network.graph.nodes:
        source = node.all_input_nodes[0] if node.target in _IN_PLACE else None
        if source and source.target in _NOT_READ_AGAIN and len(source.users) == 1:
            node.target = _IN_PLACE[node.target]
    network.recompile()


def _is_mutable(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _functional_target(node: fx.Node) -> Any:
    """Functional form of an in-place operation, if any."""
    namespace, _, name = node.target._schema.name.partition("::")  # type: ignore[union-attr]
    if not name.endswith("_") or namespace != "aten":
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    overload = node.target._overloadname  # type: ignore[union-attr]
    found = getattr(packet, overload, None) if packet else None
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    same = found is not None and [each.name for each in found._schema.arguments] == names
    return found if same and node.target._schema.name != "aten::fill_" else None  # type: ignore[union-attr]


def _is_seen_elsewhere(node: fx.Node, source: fx.Node) -> bool:
    """Whether the written memory is read later through another tensor."""
    later = set(_after(node))
    for alias in _aliases(source):
        if alias.op != "call_function":  # the caller's tensor
            return True
        if alias is not source and any(user in later for user in alias.users):
            return True
    return False


def _aliases(source: fx.Node) -> set[fx.Node]:
    """All tensors that may share a tensor's memory, with itself."""
    found, waiting = set[fx.Node](), [source]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [user for user in node.users if user.target in _VIEWS]
            if node.target in _VIEWS and isinstance(node.args[0], fx.Node):
                waiting.append(node.args[0])
    return found


def _after(node: fx.Node) -> "list[fx.Node]":
    found = []
    while (node := node.next).op != "root":
        found.append(node)
    return found
