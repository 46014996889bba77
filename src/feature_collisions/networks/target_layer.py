"""The network cut before the target layer's ReLU, or watched there on its way to the logits.

With what every step runs of it: a frozen copy, and no more than the loss needs.
"""

import copy
import difflib
import math
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn

from ..data.devices import able
from ..errors import SettingError
from ..settings.trainer import MIXED
from .graph import (
    NotPiecewiseLinear,
    Traced,
    ceiling_after,
    evaluating,
    keeps_values,
    not_flat_after,
    rectifiers_after,
    shell_of,
    trace,
)
from .logits import device_of, logits_in


class TargetLayer(nn.Module):
    """f0: images to the target layer's pre-activations; what comes after is not computed.

    It holds its own frozen copy of the part of `model` it needs, where that lies, so that moving it
    to another device or to float64 leaves the user's model alone. Models that `torch.fx` cannot
    trace are run until the layer has its output, and stopped there.

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


def frozen_copy(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The whole classifier where it lies, in eval mode and without gradients for its weights."""
    frozen: nn.Module = copied(model).requires_grad_(False).eval()
    return frozen.to(memory_format=layout)


def network_of(
    model: nn.Module, layer: str, logits: bool, dtype: torch.dtype, layout: torch.memory_format
) -> TargetLayer | Observed:
    """The classifier up to the target layer, or all of it where the loss compares logits.

    Args:
        model: the classifier.
        layer: its target layer.
        logits: whether the loss compares them.
        dtype: of images and features.
        layout: how images and filters lie in memory.
    """
    network: TargetLayer | Observed
    if logits:  # frozen once cut: a copied model would still call a forward patched on the first
        network = cast(Observed, frozen_copy(Observed(model, layer), layout))
    else:
        network = TargetLayer(model, layer)
    network.to(able(device_of(model), dtype), dtype).to(memory_format=layout)
    return network


def halve_weights(network: nn.Module, precision: str) -> None:
    """Store what a mixed precision would convert at every step: autocast keeps no frozen weights.

    Normalisations keep float32, as autocast has it. It rounds, which no comparison with the model
    allows for.

    Args:
        network: the frozen network.
        precision: Lightning's; only mixed ones change anything.
    """
    if precision not in MIXED:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(MIXED[precision])


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
            f"model: cannot be copied ({reason}); take what cannot be copied out of it. Weights "
            "under torch.nn.utils.weight_norm or spectral_norm are such: remove it, or use that "
            "of torch.nn.utils.parametrizations"
        ) from None


def last_hidden_layer(model: nn.Module) -> str:
    """The last layer that feeds a ReLU which all of the logits depend on the image through.

    Raises:
        SettingError: where there is none, or `torch.fx` cannot tell.
    """
    try:
        root, _, nodes = trace(model)
    except NotPiecewiseLinear:
        raise SettingError(
            "layer=auto: torch.fx cannot trace this network, so that its layers have to be named; "
            "give the module whose output feeds a ReLU"
        ) from None
    for name, node in reversed(nodes.items()):
        rectifiers = [] if keeps_values(root, node) else rectifiers_after(root, node)
        if rectifiers and not _passes_by(node.graph, rectifiers):
            return name
    others = [reason for node in nodes.values() if (reason := not_flat_after(root, node))]
    said = f" ({others[-1]})" if others else ""
    raise SettingError(
        "layer=auto: this network has no layer that feeds a ReLU and that everything flows "
        f"through{said}; name another, or choose a network with one"
    )


def ceiling_at(model: nn.Module, layer: str) -> float:
    """Where the rectifier behind the layer is clipped: infinity for a ReLU.

    Behind a network that `torch.fx` cannot trace it is taken for a ReLU: units above the ceiling of
    a clipped one are then held at their values, which is more than they need.
    """
    traced = _trace(model, layer)
    ceiling = ceiling_after(traced[0].root, traced[1]) if traced else None
    return math.inf if ceiling is None else ceiling


def _passes_by(graph: fx.Graph, through: list[fx.Node]) -> bool:
    """Whether the output depends on the image in a way that leads through none of the nodes."""
    seen, waiting = set(through), [next(iter(reversed(graph.nodes)))]
    while waiting:
        current = waiting.pop()
        if current.op == "placeholder":
            return True
        if current not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    return False


def _trace(model: nn.Module, layer: str) -> tuple[Traced, fx.Node] | None:
    """The graph and the target layer's node in it; None where fx cannot trace."""
    try:
        traced = trace(model)
    except NotPiecewiseLinear:
        return None
    root, nodes = traced.root, traced.nodes
    before_relu = [name for name, node in nodes.items() if rectifiers_after(root, node)]
    if layer not in before_relu:
        rule = "is not a layer of this network"
        if layer in nodes:
            other = not_flat_after(root, nodes[layer])
            rule = "feeds no ReLU" + (f" ({other})" if other else "")
        choices = _choices(layer, before_relu) or "none: this classifier has no ReLU"
        raise SettingError(f"layer={layer}: {rule}; layers that feed one: {choices}")
    return traced, nodes[layer]


_MANY = 60  # names that one still looks through


def _choices(layer: str, names: list[str]) -> str:
    """All names, or, of many, those most like the one that was given and the last."""
    if len(names) <= _MANY:
        return ", ".join(names)
    near = difflib.get_close_matches(layer, names, 10, 0.3)
    shown = [*near, *(name for name in names[-10:] if name not in near)]
    return f"{', '.join(shown)} and {len(names) - len(shown)} others"


def _cut(model: nn.Module, layer: str) -> nn.Module:
    found = _trace(model, layer)
    return _before(*found) if found else _StopAt(model, layer)


def _with_output(model: nn.Module, layer: str) -> nn.Module:
    found = _trace(model, layer)
    if found is None:
        return _ListenAt(model, layer)
    (root, graph, _), node = found
    with graph.inserting_after(node):
        copied = graph.call_method("clone", (node,))
    end = next(iter(reversed(graph.nodes)))
    end.args = ((end.args[0], copied),)
    return _module_of(root, graph)


def _before(traced: Traced, end: fx.Node) -> nn.Module:
    """The part of the graph that `end` depends on: an in-place ReLU after it must not run."""
    root, graph, _ = traced
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
    prefix = shell_of(model)
    return {name.removeprefix(prefix): module for name, module in model.named_modules()}


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules = _modules(model)
    if layer not in modules:
        raise SettingError(
            f"layer={layer}: is not a layer of this network; its modules are "
            f"{_choices(layer, [name for name in modules if name])}"
        )
    return modules[layer]


def _never_runs(model: nn.Module) -> SettingError:
    patched = [n or "the model" for n, part in model.named_modules() if "forward" in vars(part)]
    where = f" (the forward patched on {patched[0]} may run another network)" if patched else ""
    return SettingError(f"layer: the network never runs it{where}; choose one that it does run")
