"""The network cut before the target layer's ReLU, or watched there on its way to the logits."""

import copy
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import NodePathTracer

from ..errors import SettingError
from .logits import logits_in
from .torchvision_models import Classifier


class TargetLayer(nn.Module):
    """f0: images to the target layer's pre-activations; what comes after is not computed.

    It holds its own frozen copy of the part of `model` it needs, where that lies, so that moving it
    to another device or to float64 leaves the user's model alone. Models that `torch.fx` cannot trace are run
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
    pre-activations are copied before an in-place ReLU can overwrite them. Hooks and a `forward` of
    the model's own are followed as a call of it would, or else the model itself is run.

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
        output, preactivation = self.network(images)
        return logits_in(output, len(images)), preactivation.flatten(1)


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


def copied(module: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        SettingError: for a module that has none.
    """
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever the user's own attributes raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingError(
            f"model: cannot be copied ({reason}); take what cannot be copied out of it. Weights "
            "under torch.nn.utils.weight_norm or spectral_norm are such: remove it, or use that "
            "of torch.nn.utils.parametrizations"
        ) from None


class _Called(nn.Module):
    """Calls a model: torch.fx follows the root's class alone, but of what it calls everything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


def to_trace(model: nn.Module) -> nn.Module:
    """The root that torch.fx must start from to see all that a call of the model does."""
    hooks = model._forward_pre_hooks or model._forward_hooks
    own_call = type(model).__call__ is not nn.Module.__call__
    return _Called(model) if hooks or own_call or "forward" in vars(model) else model


def _trace(model: nn.Module, layer: str) -> tuple[nn.Module, fx.Graph, fx.Node] | None:
    """The graph, its root and the target layer's node in it; None where fx cannot trace."""
    tracer, root = NodePathTracer(), to_trace(model)
    try:
        graph = tracer.trace(root)
    except Exception:  # fx raises whatever the model's own code meets in a proxy
        return None
    prefix = ("" if root is model else "model.") + _prefix(model)
    nodes = {name.removeprefix(prefix): node for node, name in tracer.node_to_qualname.items()}
    before_relu = [name for name, node in nodes.items() if _feeds_relu(root, node)]
    if layer not in before_relu:
        rule = "is not a layer of this network" if layer not in nodes else "feeds no ReLU"
        choices = ", ".join(before_relu) or "none: this classifier has no ReLU"
        raise SettingError(f"layer={layer}: {rule}; layers that feed one: {choices}")
    return root, graph, nodes[layer]


def _cut(model: nn.Module, layer: str) -> nn.Module:
    traced = _trace(model, layer)
    return _before(*traced) if traced else _StopAt(model, layer)


def _with_output(model: nn.Module, layer: str) -> nn.Module:
    traced = _trace(model, layer)
    if traced is None:
        return _ListenAt(model, layer)
    root, graph, node = traced
    with graph.inserting_after(node):
        copied = graph.call_method("clone", (node,))
    end = next(iter(reversed(graph.nodes)))
    end.args = ((end.args[0], copied),)
    return _module_of(root, graph)


def _prefix(model: nn.Module) -> str:
    """What stands before a layer's own name: a `Classifier` is only a shell round its network."""
    return "network." if isinstance(model, Classifier) else ""


def _before(root: nn.Module, graph: fx.Graph, end: fx.Node) -> nn.Module:
    """The part of the graph that `end` depends on: an in-place ReLU after it must not run."""
    needed = {end}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in reversed(graph.nodes):
        if node not in needed and node.op != "placeholder":
            graph.erase_node(node)
    graph.output(end)
    return copied(_module_of(root, graph)).requires_grad_(False).eval()


def _module_of(root: nn.Module, graph: fx.Graph) -> nn.Module:
    network: nn.Module = fx.GraphModule(root, graph)
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
        self.model = copied(model).requires_grad_(False).eval()
        _module(self.model, layer).register_forward_hook(_stop)

    def forward(self, images: Tensor) -> Tensor:
        try:
            self.model(images)
        except _Reached as reached:
            return reached.output
        raise _never_runs(self.model)


class _ListenAt(nn.Module):
    """Runs a model and copies the output of `layer` on the way."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, _module(model, layer)

    def forward(self, images: Tensor) -> tuple[Any, Tensor]:
        copies: list[Tensor] = []
        listener = self.layer.register_forward_hook(lambda *call: copies.append(call[2].clone()))
        try:
            output = self.model(images)
        finally:
            listener.remove()
        if not copies:
            raise _never_runs(self.model)
        return output, copies[0]


def module_named(model: nn.Module, layer: str) -> nn.Module | None:
    """The module that `layer` names, if it names one."""
    return _modules(model).get(layer)


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    prefix = _prefix(model)
    return {name.removeprefix(prefix): module for name, module in model.named_modules()}


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules = _modules(model)
    if layer not in modules:
        raise SettingError(
            f"layer={layer}: is not a layer of this network; its modules are "
            f"{', '.join(name for name in modules if name)}"
        )
    return modules[layer]


def _never_runs(model: nn.Module) -> SettingError:
    patched = [n or "the model" for n, part in model.named_modules() if "forward" in vars(part)]
    where = f" (the forward patched on {patched[0]} may run another network)" if patched else ""
    return SettingError(f"layer: the network never runs it{where}; choose one that it does run")
