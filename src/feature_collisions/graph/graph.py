"""One graph per model and image size: what a call of the model computes, as functional operations.

The cut at the target layer, what follows it, the walk and all bounds read this graph and nothing
else. `torch.export` runs the model's own code, hooks, patched forwards and shape checks included.
"""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..data.devices import able, precision_flags_kept
from ..errors import SettingError
from .logits import device_of, first_weight, logits_in
from .operations import NotPiecewiseLinear, is_no_operation, leave_out_dtype, without_in_place
from .simpler import write_with_simpler

_EXAMPLES = 2  # images of the example: torch.export takes one alone for a constant


@dataclass
class Graph:
    """What a call of a model does.

    Attributes:
        model: whose graph it is.
        size: (C, H, W) of the images.
        network: images (B, C, H, W) to logits. It shares the model's weights. None where the model
            cannot be exported.
        nodes: by the names of layers: `classifier.0`, `layer4.2.add`; within a `Classifier`, its
            network's.
        ends: the last node of each module of the caller's own, by the module's name.
        any_batch: whether `network` takes any number of images.
        reason: why the network cannot be read as a graph, or only for a fixed number of images.
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
            NotPiecewiseLinear: where it does not hold for any number of images.
        """
        if self.network is None or not self.any_batch:
            raise NotPiecewiseLinear(self.reason)
        return self.network


def trace(model: nn.Module, size: Sequence[int]) -> Graph:
    """Export what a call of the model in eval mode does with images of `size` (C, H, W)."""
    graph = Graph(model, torch.Size(size))
    weight = first_weight(model)
    example = torch.zeros(_EXAMPLES, *size)
    if weight is not None:
        example = example.to(weight)
    with evaluating(model), _quiet(), precision_flags_kept():
        try:
            exported = _export(model, example, {0: torch.export.Dim.DYNAMIC})
            graph.any_batch = True
        except Exception as error:  # whatever the model's own code raises on symbolic sizes
            graph.reason = _reason("its graph holds for one number of images only", error)
            try:
                exported = _export(model, example.clone(), None)  # the first is marked dynamic
            except Exception as other:
                graph.reason = _reason("torch.export cannot follow the network", other)
                return graph
        try:
            program = _functional(exported)
        except Exception as error:
            graph.reason = _reason("its writes in place cannot be followed", error)
            graph.any_batch = False
            return graph
    _read(graph, program)
    return graph


def frozen_graph(graph: Graph, dtype: torch.dtype = torch.float64) -> fx.GraphModule:
    """A frozen copy of the network, computing in `dtype`, for the walk and for bounds.

    What does not move is computed once, and what bends is written with rectifiers.

    It is on the model's device, or on the CPU where that does not compute in `dtype`.

    Raises:
        NotPiecewiseLinear: where the graph does not hold for any number of images.
    """
    network = copied(graph.runnable())
    write_with_simpler(network)
    fold(network)
    network.requires_grad_(False).eval().to(able(device_of(graph.model), dtype), dtype)
    return network


def until(network: fx.GraphModule, outputs: fx.Node | tuple[fx.Node, ...]) -> fx.GraphModule:
    """The part of a network that computes `outputs`, over the same weights."""
    graph = fx.Graph()
    found: dict[fx.Node, fx.Node] = {}
    ends = outputs if isinstance(outputs, tuple) else (outputs,)
    needed = _needed(ends)
    for node in network.graph.nodes:
        if node in needed or node.op == "placeholder":
            found[node] = graph.node_copy(node, lambda given: found[given])
    copies = tuple(found[end] for end in ends)
    graph.output(copies if isinstance(outputs, tuple) else copies[0])
    return fx.GraphModule(network, graph)


def fold(network: fx.GraphModule) -> None:
    """Compute what does not depend on the images once, and keep it as a tensor."""
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
    _remove_unused(network.graph)
    network.recompile()


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


def shell_of(model: nn.Module) -> str:
    """The prefix of a layer's own name, of a model that is only a shell around its network."""
    return str(getattr(type(model), "shell", ""))


Modules = TypeVar("Modules", bound=nn.Module | tuple[nn.Module, ...])


def copied(modules: Modules, shared: Iterable[Tensor] = ()) -> Modules:
    """A deep copy of a module, or of several that may hold parts of each other.

    Args:
        modules: one or several.
        shared: tensors that the copy has, too.

    Raises:
        SettingError: for a module that has none.
    """
    try:
        return copy.deepcopy(modules, {id(tensor): tensor for tensor in shared})
    except Exception as error:  # whatever the user's own attributes raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingError(
            "model",
            None,
            f"cannot be copied ({reason})",
            "take what cannot be copied out of it. Weights under "
            "torch.nn.utils.weight_norm or spectral_norm are such: remove it, or use that "
            "of torch.nn.utils.parametrizations",
        ) from None


def _export(
    model: nn.Module, example: Tensor, dynamic: dict[int, Any] | None
) -> torch.export.ExportedProgram:
    shapes = None if dynamic is None else (dynamic,)
    with torch.no_grad() if _is_inference(example) else contextlib.nullcontext():
        return torch.export.export(_Called(model), (example,), dynamic_shapes=shapes, strict=False)


def _is_inference(example: Tensor) -> bool:
    return torch.is_inference_mode_enabled() or example.is_inference()


class _Called(nn.Module):
    """Calls a model, its hooks and a `__call__` of its class included, and takes its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(images)
        return output if isinstance(output, Tensor) else logits_in(output, images.shape[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.export warns of the model's own code, and logs and prints what it then raises."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reason(what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{what} ({lines[0]})"


def _functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same without writes in place: by renaming where that is enough, else by PyTorch."""
    if without_in_place(exported.graph):
        return exported
    functional: torch.export.ExportedProgram = exported.run_decompositions({})
    return functional


def _read(graph: Graph, program: torch.export.ExportedProgram) -> None:
    """Make a network that gives the logits, and name its nodes."""
    end = next(iter(reversed(program.graph.nodes))).args[0][-1]
    tensors = _tensors_of(program)
    found, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    needed, attributes = _needed([end]), dict[str, Any]()
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in inputs:
            copies[node] = found.placeholder("images")
        elif node not in needed:
            continue
        elif node.op == "placeholder":
            name, attributes[name] = tensors[node.name]
            copies[node] = found.get_attr(name)
        elif "autocast" in str(node.target):
            graph.reason, graph.any_batch = "its forward turns autocast on", False
            return
        elif node.op == "get_attr":  # a region of the model under no_grad
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
    for node in found.nodes:  # tensors of the export can be neither copied nor pickled
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
    """None for a size that depends on the number of images."""
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _tensors_of(program: torch.export.ExportedProgram) -> dict[str, tuple[str, Any]]:
    """Names in the network and values of the tensors that are placeholders of a program."""
    held = {**program.constants, **program.state_dict}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None:
            name = spec.target.removeprefix("model.")
            found[spec.arg.name] = (name, held[spec.target])
    return found


def _names(graph: fx.Graph, shell: str) -> dict[str, fx.Node]:
    """Nodes by name: a layer of PyTorch's gives its own; another operation, where it is called.

    A second call of a layer has `_1` behind its name, as a second addition in one module has.
    """
    calls: dict[str, tuple[str, fx.Node]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or is_no_operation(node):
            continue
        stack = list((node.meta.get("nn_module_stack") or {}).items())
        key, (path, kind) = stack[-1] if stack else ("", ("", ""))
        if path.startswith("_empty"):
            key, path, kind = "", "", ""
        path = f"{path}.".removeprefix("model.").removeprefix(shell)
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


def _needed(ends: Sequence[Any]) -> set[fx.Node]:
    """All nodes that `ends` depend on, themselves included."""
    found, waiting = set[fx.Node](), [end for end in ends if isinstance(end, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _remove_unused(graph: fx.Graph) -> None:
    needed = _needed([next(iter(reversed(graph.nodes)))])
    for node in reversed(graph.nodes):
        if node not in needed and node.op != "placeholder":
            graph.erase_node(node)


def held_by(network: nn.Module, name: str) -> Any:
    """What a node of `get_attr` gives."""
    *path, last = name.split(".")
    return getattr(network.get_submodule(".".join(path)), last)
