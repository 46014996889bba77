"""One graph per model and image size: a call of the model as functional operations.

The target layer, the later layers, the walk of edges and all bounds are read from this graph only.
`torch.export` runs the model's code with its hooks, patched forwards and shape checks.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..data.devices import device_for, precision_flags_kept
from ..errors import SettingError, first_line
from .logits import device_of, first_weight, logits_in
from .operations import NotPiecewiseLinear, is_no_operation, leave_out_dtype, without_in_place
from .simpler import AUTOCAST, write_regions_out, write_with_simpler

_EXAMPLES = 2  # images of the example; torch.export takes a batch of one for a constant


@dataclass
class Graph:
    """A call of a model as a graph.

    Attributes:
        model: the model.
        size: (C, H, W) of the images.
        network: images (B, C, H, W) to logits, with the model's weights. None if the model cannot
            be exported.
        nodes: nodes by layer name, such as `classifier.0` or `layer4.2.add`; for a `Classifier`,
            names within its network.
        ends: last node of each module by the module's name.
        any_batch: whether `network` takes any number of images.
        reason: why the model cannot be exported, or only for a fixed number of images.
    """

    model: nn.Module
    size: torch.Size
    network: fx.GraphModule | None = None
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    ends: dict[str, fx.Node] = field(default_factory=dict)
    any_batch: bool = False
    reason: str = ""

    def runnable(self) -> fx.GraphModule:
        """The network.

        Raises:
            NotPiecewiseLinear: if it is not valid for any number of images.
        """
        if self.network is None or not self.any_batch:
            raise NotPiecewiseLinear(self.reason)
        return self.network


def trace(model: nn.Module, size: Sequence[int]) -> Graph:
    """Export a call of the model in eval mode on images of `size` (C, H, W)."""
    graph = Graph(model, torch.Size(size))
    weight = first_weight(model)
    example = torch.zeros(_EXAMPLES, *size)
    if weight is not None:
        example = example.to(weight)
    with evaluating(model), _quiet(), precision_flags_kept():
        try:
            exported = _export(model, example, {0: torch.export.Dim.DYNAMIC})
            graph.any_batch = True
        except Exception as error:  # any error of the model's code on symbolic sizes
            graph.reason = f"its graph is valid for only one number of images ({first_line(error)})"
            try:
                exported = _export(model, example.clone(), None)  # the first is marked dynamic
            except Exception as other:
                graph.reason = f"torch.export cannot trace the network ({first_line(other)})"
                return graph
        _write_regions_out(exported, example.device)
        try:
            program = _functional(exported)
        except Exception as error:
            graph.reason = f"its in-place writes cannot be traced ({first_line(error)})"
            graph.any_batch = False
            return graph
    _read(graph, program)
    return graph


def frozen_graph(graph: Graph, dtype: torch.dtype = torch.float64) -> fx.GraphModule:
    """A frozen copy of the network in `dtype`, for the walk and for bounds.

    Values independent of the images are computed once. Nonlinear operations are written with
    rectifiers where possible. The copy is on the model's device, or on the CPU if the device does
    not support `dtype`.

    Raises:
        NotPiecewiseLinear: if the graph is not valid for any number of images.
    """
    network = copied(graph.runnable())
    write_with_simpler(network)
    fold(network)
    network.requires_grad_(False).eval().to(device_for(device_of(graph.model), dtype), dtype)
    return network


def until(network: fx.GraphModule, *ends: fx.Node) -> fx.GraphModule:
    """The part of a network that returns `ends`, as a tuple if there are several.

    It shares the weights.
    """
    graph = fx.Graph()
    found: dict[fx.Node, fx.Node] = {}
    needed = needed_for(ends)
    for node in network.graph.nodes:
        if node in needed or node.op == "placeholder":
            found[node] = graph.node_copy(node, found.__getitem__)
    copies = tuple(found[end] for end in ends)
    graph.output(copies if len(ends) > 1 else copies[0])
    return fx.GraphModule(network, graph)


def end_of(network: fx.GraphModule) -> fx.Node:
    """The node whose value a network returns."""
    end = network.graph.output_node().args[0]
    assert isinstance(end, fx.Node)
    return end


def needed_for(ends: Iterable[fx.Node], cut: Collection[fx.Node] = ()) -> set[fx.Node]:
    """All nodes that `ends` depend on, with `ends`; nodes of `cut` are not passed."""
    found, waiting = set[fx.Node](), list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and node not in cut:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def fold(network: fx.GraphModule) -> None:
    """Replace values that do not depend on the images by constants."""
    held: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in network.graph.nodes:
            if node.op == "get_attr":
                held[node] = held_by(network, str(node.target))
            elif node.op == "call_function" and all(n in held for n in node.all_input_nodes):
                args, kwargs = map_arg((node.args, node.kwargs), held.__getitem__)
                held[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(held.items()):
        if node.op == "get_attr" or not isinstance(value, Tensor):
            continue
        if all(user in held for user in node.users):
            continue
        name = f"constant_{number}"
        network.register_buffer(name, value.detach().clone(), persistent=False)
        with network.graph.inserting_before(node):
            node.replace_all_uses_with(network.graph.get_attr(name))
    needed = needed_for([network.graph.output_node()])
    for node in reversed(network.graph.nodes):
        if node not in needed and node.op != "placeholder":
            network.graph.erase_node(node)
    network.recompile()


@contextmanager
def evaluating(model: nn.Module) -> Any:
    """Set every module to eval mode within the block, and restore each mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def shell_of(model: nn.Module) -> str:
    """Prefix of layer names that users leave out: the name of a wrapped network."""
    return str(getattr(type(model), "shell", ""))


Modules = TypeVar("Modules", bound=nn.Module | tuple[nn.Module, ...])


def copied(modules: Modules, shared: Iterable[Tensor] = ()) -> Modules:
    """Deep copy of one module, or of several that may share parts.

    Args:
        modules: one or several.
        shared: tensors that are not copied.

    Raises:
        SettingError: if a module cannot be copied.
    """
    try:
        return copy.deepcopy(modules, {id(tensor): tensor for tensor in shared})
    except Exception as error:  # any error of the user's attributes
        raise SettingError(
            "model",
            None,
            f"cannot be copied ({first_line(error)})",
            "remove the part that cannot be copied. Weights under "
            "torch.nn.utils.weight_norm or spectral_norm are such: remove it, or use that "
            "of torch.nn.utils.parametrizations",
        ) from None


def _export(
    model: nn.Module, example: Tensor, dynamic: dict[int, Any] | None
) -> torch.export.ExportedProgram:
    shapes = None if dynamic is None else (dynamic,)
    inference = torch.is_inference_mode_enabled() or example.is_inference()
    with torch.no_grad() if inference else contextlib.nullcontext():
        return torch.export.export(_Called(model), (example,), dynamic_shapes=shapes, strict=False)


class _Called(nn.Module):
    """Calls a model, with hooks and its class's `__call__`, and takes its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        return output if isinstance(output, Tensor) else logits_in(output, images.shape[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.export, which warns of the model's code and prints errors before it raises."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write_regions_out(exported: torch.export.ExportedProgram, device: torch.device) -> None:
    tensors = (*exported.state_dict.values(), *exported.constants.values())
    devices = {each.device.type for each in tensors if isinstance(each, Tensor)} | {device.type}
    before = exported.graph.output_node().all_input_nodes
    names = [node.name for node in before]
    write_regions_out(exported.graph_module, devices)
    for name, node in zip(names, exported.graph.output_node().all_input_nodes, strict=True):
        exported.graph_signature.replace_all_uses(name, node.name)


def _functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Remove in-place writes: by renaming if that is enough, otherwise by PyTorch."""
    if without_in_place(exported.graph):
        return exported
    functional: torch.export.ExportedProgram = exported.run_decompositions({})
    return functional


def _read(graph: Graph, program: torch.export.ExportedProgram) -> None:
    """Make a network that returns the logits, and name its nodes."""
    end: Any = program.graph.output_node().args[0][-1]
    tensors = _tensors_of(program)
    found, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    needed, attributes = needed_for([end]), dict[str, Any]()
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            copies[node] = found.placeholder("images")
        elif node not in needed:
            continue
        elif node.op == "placeholder":
            name, attributes[name] = tensors[node.name]
            copies[node] = found.get_attr(name)
        elif str(node.target) == AUTOCAST:
            graph.reason, graph.any_batch = "its forward turns autocast on", False
            return
        elif node.op == "get_attr":  # a branch of torch.cond
            attributes[str(node.target)] = getattr(program.graph_module, str(node.target))
            copies[node] = found.node_copy(node, copies.__getitem__)
        elif is_no_operation(node):
            copies[node] = copies[node.args[0]]
        else:
            copies[node] = found.node_copy(node, copies.__getitem__)
            leave_out_dtype(copies[node], node)
    found.output(copies[end])
    shell = shell_of(graph.model)
    names, last = _names(program.graph, shell), _ends(program.graph, shell)
    for node in found.nodes:  # the export's tensors cannot be copied or pickled
        value = node.meta.get("val")
        kept = {"nn_module_stack": node.meta.get("nn_module_stack", {})}
        node.meta = kept | ({"shape": _shape(value)} if isinstance(value, Tensor) else {})
    graph.network = fx.GraphModule(attributes, found)
    of_network = dict(zip(found.nodes, graph.network.graph.nodes, strict=True))
    graph.nodes, graph.ends = (
        {name: of_network[copies[node]] for name, node in each.items() if node in copies}
        for each in (names, last)
    )


def _shape(value: Tensor) -> tuple[int | None, ...]:
    """Shape of a value, None for sizes that depend on the number of images."""
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _tensors_of(program: torch.export.ExportedProgram) -> dict[str, tuple[str, Any]]:
    """Names and values of the tensors that are placeholders of a program."""
    held = {**program.constants, **program.state_dict}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            name = spec.target.removeprefix("model.")
            found[spec.arg.name] = (name, held[spec.target])
    return found


def _names(graph: fx.Graph, shell: str) -> dict[str, fx.Node]:
    """Nodes by name: PyTorch layers have their own, other operations the name of their module.

    The second call of a layer, or second addition in a module, gets the suffix `_1`.
    """
    calls: dict[str, tuple[str, fx.Node]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_no_operation(node):
            continue
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        key, (path, kind) = stack[-1] if stack else ("", ("", ""))
        if path.startswith("_empty"):
            key, path, kind = "", "", ""
        path = f"{path}.".removeprefix("model.").removeprefix(shell).removeprefix(".")
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        if kind.startswith("torch.nn.") and not kind.endswith("container.Sequential"):
            calls[key] = path.removesuffix("."), node
        else:
            calls[node.name] = path + _base_name(node.target), node
    names: dict[str, fx.Node] = {}
    for name, node in calls.values():
        number, unique = 0, name
        while unique in names:
            number += 1
            unique = f"{name}_{number}"
        names[unique] = node
    return names


def _ends(graph: fx.Graph, shell: str) -> dict[str, fx.Node]:
    """The last node of each module's last call."""
    found: dict[str, fx.Node] = {}
    for node in graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            found[f"{path}.".removeprefix("model.").removeprefix(shell).removesuffix(".")] = node
    return found


def _base_name(target: Any) -> str:
    name = str(getattr(target, "__name__", target)).split(".")[0]
    return name.removesuffix("_")


def held_by(network: nn.Module, name: str) -> Any:
    """Value of a `get_attr` node."""
    *path, last = name.split(".")
    return getattr(network.get_submodule(".".join(path)), last)
