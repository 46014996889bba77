"""The network cut before the target layer's ReLU, or watched there on its way to the logits."""

import copy
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from .errors import SettingError
from .imagenet import Classifier


class TargetLayer(nn.Module):
    """f0: images to the target layer's pre-activations; what comes after is not computed.

    It holds its own frozen copy of the part of `model` it needs, so that moving it to a device
    or to float64 leaves the user's model alone. Models that `torch.fx` cannot trace are run
    until the layer has its output, and stopped there.

    Args:
        model: any classifier.
        layer: name of a node whose output feeds a ReLU, as `torchvision` names them; within a
            `Classifier`, a name of its network's.

    Raises:
        SettingError: for a name that is no layer, or a layer that feeds no ReLU.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        with evaluating(model):
            self.network = _cut(model, layer)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N), before the ReLU, flattened."""
        preactivation: Tensor = self.network(images)
        return preactivation.flatten(1)


class Observed(nn.Module):
    """A classifier that gives its logits and the target layer's pre-activations in one pass.

    It shares the model's modules; in which mode they run is the model's own affair. The
    pre-activations are copied before an in-place ReLU can overwrite them.

    Args:
        model: any classifier.
        layer: the target layer, as `TargetLayer` takes it.
    """

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        with evaluating(model):
            self.network = _with_output(model, layer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to logits (B, classes) and pre-activations (B, N)."""
        logits, preactivation = self.network(images)
        return logits, preactivation.flatten(1)


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


def _trace(model: nn.Module, layer: str) -> tuple[fx.Graph, fx.Node] | None:
    """The model's graph and the target layer's node in it; None where fx cannot trace."""
    tracer = NodePathTracer()
    try:
        graph = tracer.trace(model)
    except Exception:  # fx raises whatever the model's own code meets in a proxy
        return None
    prefix = _prefix(model)
    nodes = {name.removeprefix(prefix): node for node, name in tracer.node_to_qualname.items()}
    before_relu = [name for name, node in nodes.items() if _feeds_relu(model, node)]
    if layer not in before_relu:
        rule = "is not a layer of this network" if layer not in nodes else "feeds no ReLU"
        choices = ", ".join(before_relu) or "none: this classifier has no ReLU"
        raise SettingError(f"layer={layer}: {rule}; layers that feed one: {choices}")
    return graph, nodes[layer]


def _cut(model: nn.Module, layer: str) -> nn.Module:
    traced = _trace(model, layer)
    return _before(model, *traced) if traced else _StopAt(model, layer)


def _with_output(model: nn.Module, layer: str) -> nn.Module:
    traced = _trace(model, layer)
    if traced is None:
        return _ListenAt(model, layer)
    graph, node = traced
    with graph.inserting_after(node):
        copied = graph.call_method("clone", (node,))
    end = next(iter(reversed(graph.nodes)))
    end.args = ((end.args[0], copied),)
    return _module_of(model, graph)


def _prefix(model: nn.Module) -> str:
    """What stands before a layer's own name: a `Classifier` is only a shell round its network."""
    return "network." if isinstance(model, Classifier) else ""


def _before(model: nn.Module, graph: fx.Graph, end: fx.Node) -> nn.Module:
    """The part of the graph that `end` depends on: an in-place ReLU after it must not run."""
    needed = {end}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in reversed(graph.nodes):
        if node not in needed and node.op != "placeholder":
            graph.erase_node(node)
    graph.output(end)
    return copy.deepcopy(_module_of(model, graph)).requires_grad_(False).eval()


def _module_of(model: nn.Module, graph: fx.Graph) -> nn.Module:
    network: nn.Module = fx.GraphModule(model, graph)
    return network


_RELU_FUNCTIONS = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
_KEEPING_VALUES = {torch.flatten, F.dropout, "flatten", "view", "reshape", "contiguous"}


def _feeds_relu(model: nn.Module, node: fx.Node) -> bool:
    """Whether a ReLU takes the node's values, directly or through nothing but a new shape."""
    return any(
        _is(user, model, (nn.ReLU,), _RELU_FUNCTIONS)
        or (
            _is(user, model, (nn.Flatten, nn.Dropout, nn.Identity), _KEEPING_VALUES)
            and _feeds_relu(model, user)
        )
        for user in node.users
    )


def _is(node: fx.Node, model: nn.Module, modules: tuple[type, ...], functions: set[Any]) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), modules)
    return node.op in ("call_function", "call_method") and node.target in functions


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
    raise _Reached(output)


class _StopAt(nn.Module):
    """Runs a model until `layer` has its output; whether a ReLU follows cannot be checked."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        _module(self.model, layer).register_forward_hook(_stop)

    def forward(self, images: Tensor) -> Tensor:
        try:
            self.model(images)
        except _Reached as reached:
            return reached.output
        raise _never_runs()


class _ListenAt(nn.Module):
    """Runs a model and copies the output of `layer` on the way."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, _module(model, layer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        copies: list[Tensor] = []
        listener = self.layer.register_forward_hook(lambda *call: copies.append(call[2].clone()))
        try:
            logits = self.model(images)
        finally:
            listener.remove()
        if not copies:
            raise _never_runs()
        return logits, copies[-1]


def _module(model: nn.Module, layer: str) -> nn.Module:
    prefix = _prefix(model)
    modules: dict[str, nn.Module] = {
        name.removeprefix(prefix): module for name, module in model.named_modules()
    }
    if layer not in modules:
        raise SettingError(
            f"layer={layer}: is not a layer of this network; its modules are "
            f"{', '.join(name for name in modules if name)}"
        )
    return modules[layer]


def _never_runs() -> SettingError:
    return SettingError("layer: the network never runs it; choose one that it does run")
