"""A network as a graph: traced once, in one way, and what each of its nodes does to the pixels.

All that reads a network's structure starts here: the cut at the target layer, the walk, the bounds.
"""

import copy
import math
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torchvision.models.feature_extraction import NodePathTracer

from ..data.devices import able
from .logits import device_of
from .torchvision_models import Classifier

Kind = Literal["fixed", "affine", "relu", "clipped", "max_pool"]


class NotPiecewiseLinear(ValueError):
    """A part of the network that is not known to be piecewise linear; the message names it."""


class Traced(NamedTuple):
    """What a call of a model does.

    Attributes:
        root: holds the modules that the graph's nodes name.
        graph: the nodes, in the order in which they run.
        nodes: by the names `torchvision` gives them; within a `Classifier`, its network's.
    """

    root: nn.Module
    graph: fx.Graph
    nodes: dict[str, fx.Node]


def trace(model: nn.Module) -> Traced:
    """Follow a call of the model, its hooks and a `forward` of its own included.

    Raises:
        NotPiecewiseLinear: when torch.fx cannot trace it.
    """
    tracer, root = NodePathTracer(), _to_trace(model)
    with evaluating(model):
        try:
            graph = tracer.trace(root)
        except Exception as error:  # fx raises whatever the model's own code meets in a proxy
            raise NotPiecewiseLinear(f"torch.fx cannot trace the network ({error})") from None
    prefix = ("" if root is model else "model.") + shell_of(model)
    names = tracer.node_to_qualname.items()
    return Traced(root, graph, {name.removeprefix(prefix): node for node, name in names})


def frozen_graph(model: nn.Module, dtype: torch.dtype = torch.float64) -> fx.GraphModule:
    """A frozen copy of the model in eval mode, computing in `dtype`, as a graph.

    It lies where the model lies, or on the CPU where that does not compute in `dtype`.

    Raises:
        NotPiecewiseLinear: when torch.fx cannot trace it, or it returns more than a tensor.
    """
    with evaluating(model):
        root, graph, _ = trace(model)
        if not isinstance(next(iter(reversed(graph.nodes))).args[0], fx.Node):
            raise NotPiecewiseLinear("the network returns more than one tensor of logits")
        network = copy.deepcopy(fx.GraphModule(root, graph))
    _make_modules_of_batch_norms(network)
    name_what_is_written(network)
    network.requires_grad_(False).eval().to(able(device_of(model), dtype), dtype)
    return network


class _BatchNorm(nn.BatchNorm2d):
    """By running averages, of values of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _make_modules_of_batch_norms(network: fx.GraphModule) -> None:
    """Call modules in place of F.batch_norm by running averages, which timm's layers use."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum",
             "eps")  # fmt: skip
    for node in network.graph.nodes:
        given = given_by_name(node, names) if node.target is F.batch_norm else {}
        held = {name: given[name] for name in names[1:5] if given.get(name) is not None}
        fixed = all(isinstance(at, fx.Node) and at.op == "get_attr" for at in held.values())
        if given.get("training") is not False or not fixed or "running_var" not in held:
            continue
        values = {name: operator.attrgetter(at.target)(network) for name, at in held.items()}
        module = _BatchNorm(len(values["running_mean"]), given.get("eps", 1e-5))
        module.to(values["running_mean"]).load_state_dict(values, strict=False)
        name = f"{node.name}_by_running_averages"
        network.add_submodule(name, module)
        node.op, node.target = "call_module", name
        node.args, node.kwargs = (given["input"],), {}
    network.recompile()


def name_what_is_written(network: fx.GraphModule) -> None:
    """Let who reads what was written over in place read the node that wrote it."""
    for node in network.graph.nodes:
        if _writes(network, node):
            source, after = node.all_input_nodes[0], set(_after(node))
            source.replace_all_uses_with(node, delete_user_cb=after.__contains__)
    network.recompile()


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node


def _writes(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node writes its result over its first input."""
    written = node.target in IN_PLACE or (
        ceiling_of(network, node) is not None and in_place(network, node)
    )
    return written and bool(node.all_input_nodes)


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """Put every module in eval mode, and each back as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


class _Called(nn.Module):
    """Calls a model: torch.fx follows the root's class alone, but of what it calls everything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def _to_trace(model: nn.Module) -> nn.Module:
    """The root that torch.fx must start from to see all that a call of the model does."""
    hooks = model._forward_pre_hooks or model._forward_hooks
    own_call = type(model).__call__ is not nn.Module.__call__
    return _Called(model) if hooks or own_call or "forward" in vars(model) else model


def shell_of(model: nn.Module) -> str:
    """What stands before a layer's own name: a `Classifier` is only a shell round its network."""
    return "network." if isinstance(model, Classifier) else ""


# Rectifiers: ReLU is flat below 0, a clipped ReLU also above its ceiling.

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_HARDTANH = {F.hardtanh, F.hardtanh_}
_CLAMP = {torch.clamp, torch.clamp_, torch.clip, "clamp", "clamp_", "clip", "clip_"}
_CLAMP_MIN = {torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_"}
_KEEPING_VALUES = {torch.flatten, F.dropout, "flatten", "view", "reshape", "contiguous"}


def ceiling_of(root: nn.Module, node: fx.Node) -> float | None:
    """Where a rectifier is clipped: infinity for a ReLU; None for what is no rectifier.

    Clipped ReLUs are ReLU6, and Hardtanh and clamp from 0 to a finite, positive ceiling.
    """
    low, high = _range(root, node)
    return high if low == 0 and high is not None and high > 0 else None


def rectifiers_after(root: nn.Module, node: fx.Node) -> list[fx.Node]:
    """The rectifiers that take a node's values, directly or in a new shape alone."""
    found: list[fx.Node] = []
    for user in node.users:
        if ceiling_of(root, user) is not None:
            found.append(user)
        elif keeps_values(root, user):
            found += rectifiers_after(root, user)
    return found


def ceiling_after(root: nn.Module, node: fx.Node) -> float | None:
    """The ceiling of the first of them; None where there is none."""
    ceilings = [ceiling_of(root, each) for each in rectifiers_after(root, node)]
    return ceilings[0] if ceilings else None


def not_flat_after(root: nn.Module, node: fx.Node) -> str | None:
    """The activation that takes a node's values and hides none of them, with the reason."""
    for user in node.users:
        found = _not_flat(root, user)
        if found is None and keeps_values(root, user):
            found = not_flat_after(root, user)
        if found is not None:
            return found
    return None


def _range(root: nn.Module, node: fx.Node) -> tuple[Any, Any]:
    """From and to what a node clips its input; None where it does not, or not to constants."""
    if node.op == "call_module":
        module = module_of(root, node)
        if isinstance(module, nn.ReLU):
            return 0.0, math.inf
        return (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (None, None)
    if node.op not in ("call_function", "call_method"):
        return None, None
    if node.target in _RELU:
        return 0.0, math.inf
    if node.target is F.relu6:
        return 0.0, 6.0
    if node.target in _HARDTANH:
        given = given_by_name(node, ("input", "min_val", "max_val"))
        return _constant(given.get("min_val", -1.0)), _constant(given.get("max_val", 1.0))
    if node.target in _CLAMP:
        given = given_by_name(node, ("input", "min", "max"))
        high = given.get("max")
        return _constant(given.get("min")), math.inf if high is None else _constant(high)
    if node.target in _CLAMP_MIN:
        return _constant(given_by_name(node, ("input", "min")).get("min")), math.inf
    return None, None


def _constant(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def given_by_name(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """A call's arguments by name."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def keeps_values(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node gives what it takes, in a new shape at most."""
    if node.op == "call_module":
        return isinstance(module_of(root, node), nn.Flatten | nn.Dropout | nn.Identity)
    return node.op in ("call_function", "call_method") and node.target in _KEEPING_VALUES


_NO_FLAT_SIDE = "has no flat side: no input is invisible to it"
_NEARLY_FLAT = "is only nearly flat: what it hides still moves its output a little"
_NOT_FLAT = {
    "LeakyReLU": _NO_FLAT_SIDE, "PReLU": _NO_FLAT_SIDE, "RReLU": _NO_FLAT_SIDE,
    "Hardswish": "is flat below -3 alone, and curved up to 3",
} | dict.fromkeys(("GELU", "SiLU", "ELU", "CELU", "SELU", "Mish", "Softplus", "Sigmoid", "Tanh"),
                  _NEARLY_FLAT)  # fmt: skip
_BY_NAME = {name.lower(): name for name in _NOT_FLAT}


def _not_flat(root: nn.Module, node: fx.Node) -> str | None:
    """The name of an activation that is no rectifier, and why; None for anything else."""
    if node.op == "call_module":
        name = type(module_of(root, node)).__name__
    elif node.op in ("call_function", "call_method"):
        name = str(getattr(node.target, "__name__", node.target))
    else:
        return None
    found = _BY_NAME.get(name.lower().replace("_", ""))
    return f"{found} {_NOT_FLAT[found]}" if found else None


# What each node does to values that move with the pixels.

_AFFINE_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ZeroPad2d,
)  # fmt: skip
_SUM = {operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub, torch.cat}
_PRODUCT = {operator.mul, operator.imul, torch.mul}
_QUOTIENT = {operator.truediv, operator.itruediv, torch.div}
_AFFINE = {
    torch.flatten, torch.reshape, F.linear, F.conv2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    F.dropout, "flatten", "view", "reshape", "contiguous", "add", "add_", "sub", "sub_", "mean",
    torch.mean, "unsqueeze", torch.unsqueeze,
}  # fmt: skip
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, "add_", "sub_"}
_VIEWS = {torch.flatten, torch.reshape, F.dropout, torch.unsqueeze, operator.getitem, "flatten",
          "view", "reshape", "contiguous", "unsqueeze"}  # fmt: skip


def kinds(network: fx.GraphModule) -> dict[fx.Node, Kind]:
    """What each node does to values that move with the pixels; `fixed` are those that do not.

    Raises:
        NotPiecewiseLinear: for the first node that is not known to be piecewise linear.
    """
    found: dict[fx.Node, Kind] = {}
    for node in network.graph.nodes:
        moving = [given for given in node.all_input_nodes if found[given] != "fixed"]
        if node.op in ("placeholder", "output"):
            found[node] = "affine"
        elif node.op == "get_attr" or not moving or _is_shape(node):
            found[node] = "fixed"
        else:
            found[node] = _kind(network, node, moving)
            _check_views(network, node)
    return found


def _check_views(network: fx.GraphModule, node: fx.Node) -> None:
    """Refuse to write in place through a view of what is used otherwise too, or under one."""
    if not _writes(network, node):
        return
    source = written = node.all_input_nodes[0]
    while is_view(network, source):
        source = source.all_input_nodes[0]
        if len(source.users) > 1:
            raise NotPiecewiseLinear(f"{node.name} writes over {source.name}, which is used again")
    after = set(_after(node))
    for view in written.users:
        if is_view(network, view) and view not in after and view is not node:
            raise NotPiecewiseLinear(f"{node.name} writes over {written.name}, seen by {view.name}")


def is_view(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node shows its input's values, all or some, in another shape."""
    if node.op == "call_module":
        module = module_of(network, node)
        return isinstance(module, nn.Flatten | nn.Dropout | nn.Dropout2d | nn.Identity)
    return node.target in _VIEWS


def _is_shape(node: fx.Node) -> bool:
    """A size, and an entry of one: whole numbers, which hold still while the pixels move."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_shape(node.args[0])
    return node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim")
    )


def _kind(network: fx.GraphModule, node: fx.Node, moving: list[fx.Node]) -> Kind:
    target: Any = node.target
    module = module_of(network, node) if node.op == "call_module" else None
    if module is not None and (
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    ):
        raise NotPiecewiseLinear(f"{target} has a hook, or a forward that was replaced")
    ceiling = ceiling_of(network, node)
    if ceiling is not None and moving == [node.all_input_nodes[0]]:
        return "relu" if ceiling == math.inf else "clipped"
    if module is not None:
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            return "max_pool"
        if isinstance(module, _AFFINE_MODULES) and _running_averages(module):
            return "affine"
        raise NotPiecewiseLinear(_unknown(network, node, f"{target} ({type(module).__name__})"))
    if target is F.max_pool2d and not node.kwargs.get("return_indices"):
        return "max_pool"
    if target is F.dropout and _training(node):
        raise NotPiecewiseLinear(f"{node.name} draws at random in eval mode too")
    if _is_affine(node, moving):
        return "affine"
    raise NotPiecewiseLinear(_unknown(network, node, f"{node.name} ({target})"))


def _is_affine(node: fx.Node, moving: list[fx.Node]) -> bool:
    """Whether a function or method is affine in what moves."""
    target: Any = node.target
    by_name = any(given in moving for given in nodes_in(node.kwargs))
    if "rounding_mode" in node.kwargs or (by_name and target not in _SUM):
        return False
    if target in _SUM:
        return True
    if target in _PRODUCT:
        return sum(given in moving for given in node.args) == 1
    if [given for given in node.args if given in moving] != list(node.args[:1]):
        return False
    if target is operator.getitem:
        return _is_slice(node.args[1])
    if target is F.pad:
        given = given_by_name(node, ("input", "pad", "mode", "value"))
        return bool(given.get("mode", "constant") == "constant")
    return target in _AFFINE | _QUOTIENT


def _is_slice(index: Any) -> bool:
    """Whether an index takes every image, and entries of each."""
    return isinstance(index, tuple) and index[:1] in ((slice(None),), (...,))


def _unknown(network: fx.GraphModule, node: fx.Node, name: str) -> str:
    reason = _not_flat(network, node)
    return f"{name} is not known to be linear" + (f": {reason}" if reason else "")


def nodes_in(arguments: Any) -> list[fx.Node]:
    """The nodes among arguments, nested ones too."""
    found: list[fx.Node] = []
    map_arg(arguments, found.append)
    return found


def _training(node: fx.Node) -> bool:
    """Whether F.dropout(input, p=0.5, training=True) drops."""
    given = given_by_name(node, ("input", "p", "training"))
    return bool(given.get("training", True) and given.get("p", 0.5))


def _running_averages(module: nn.Module) -> bool:
    batch_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    return not batch_norm or module.running_mean is not None


_INPLACE_AT: dict[Any, int] = {
    F.relu: 1,
    F.relu6: 1,
    F.hardtanh: 3,
}  # the flag without its name


def in_place(network: nn.Module, node: fx.Node) -> bool:
    """Whether a rectifier writes over its input."""
    if node.op == "call_module":
        return bool(getattr(module_of(network, node), "inplace", False))
    if str(getattr(node.target, "__name__", node.target)).endswith("_"):
        return True
    place = _INPLACE_AT.get(node.target, len(node.args))
    return any(bool(flag) for flag in (*node.args[place : place + 1], node.kwargs.get("inplace")))


def pooling(network: nn.Module, node: fx.Node) -> tuple[Any, ...]:
    """A max pool's kernel_size, stride, padding, dilation and ceil_mode."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    if node.op == "call_module":
        module = module_of(network, node)
        return tuple(getattr(module, name) for name in names)
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    options = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False} | given
    options["stride"] = options["stride"] or options["kernel_size"]
    return tuple(options[name] for name in names)


def module_of(root: nn.Module, node: fx.Node) -> nn.Module:
    """The module that a node calls."""
    return root.get_submodule(str(node.target))
