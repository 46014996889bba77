"""The network cut before the target layer's activation, or observed there on its way to the logits.

With what every step runs of it: a frozen copy, and no more than the loss needs.
"""

import difflib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..data.devices import able
from ..errors import SettingError
from ..settings.trainer import MIXED
from .activations import IDENTITY, RELU, Activation, activation_of, base_name, not_flat
from .graph import Graph, copied, fold, held_by, shell_of, until
from .logits import device_of, logits_in
from .operations import (
    LAYERS,
    NotPiecewiseLinear,
    keeps_values,
    kinds,
    reuse_memory,
    where,
)


class Following(NamedTuple):
    """What follows a layer, read from the graph.

    Attributes:
        activation: the function, with its flat sides; a ReLU named `unknown` where there is no
            graph: then numbers must show that it is one.
        past: operations through which the output sees more than the activation's values: other
            readers of the layer, and branches that go past it.
    """

    activation: Activation
    past: tuple[str, ...] = ()


class TargetLayer(nn.Module):
    """f0: images to the target layer's pre-activations; what follows is not computed.

    It holds its own frozen copy of the part of the model it needs, so moving it to another device
    or to float64 leaves the user's model alone. A model that cannot be exported for any number of
    images is run until the layer has its output, and stopped there.

    Args:
        graph: of any classifier.
        layer: name of a node: `classifier.0`, `layer4.2.add`; within a `Classifier`, a name of its
            network's.

    Raises:
        SettingError: for a name that is no layer.
    """

    def __init__(self, graph: Graph, layer: str) -> None:
        super().__init__()
        node = _node(graph, layer)
        if graph.network is None or node is None or not graph.any_batch:
            self.network: nn.Module = _StopAt(graph.model, layer)
        else:
            self.network = _frozen(until(graph.network, node))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N), before the activation, flattened."""
        preactivation: Tensor = self.network(images)
        return preactivation.flatten(1)


class Observed(nn.Module):
    """A classifier that gives its logits and the target layer's pre-activations in one pass.

    It shares the model's weights and computes what the model does in eval mode.

    Args:
        graph: of any classifier.
        layer: the target layer, as `TargetLayer` takes it.
    """

    def __init__(self, graph: Graph, layer: str) -> None:
        super().__init__()
        node = _node(graph, layer)
        if graph.network is None or node is None or not graph.any_batch:
            self.network: nn.Module = _ListenAt(graph.model, layer)
        else:
            logits = next(iter(reversed(graph.network.graph.nodes))).args[0]
            assert isinstance(logits, fx.Node)
            network = until(graph.network, (logits, node))
            reuse_memory(network)
            self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to logits (B, classes) and pre-activations (B, N)."""
        output, preactivation = self.network(images)
        return logits_in(output, len(images)), preactivation.flatten(1)


def frozen_copy(graph: Graph, layout: torch.memory_format) -> nn.Module:
    """The whole classifier on its device, in eval mode and without gradients for its weights."""
    network = graph.network if graph.any_batch and graph.network is not None else graph.model
    return _frozen(network).to(memory_format=layout)


def network_of(
    graph: Graph, layer: str, logits: bool, dtype: torch.dtype, layout: torch.memory_format
) -> TargetLayer | Observed:
    """The classifier up to the target layer, or all of it where the loss compares logits.

    Args:
        graph: of the classifier.
        layer: its target layer.
        logits: whether the loss compares them.
        dtype: of images and features.
        layout: how images and filters are laid out in memory.
    """
    network: TargetLayer | Observed
    if logits:
        network = Observed(graph, layer)
        network.network = _frozen(network.network)
    else:
        network = TargetLayer(graph, layer)
    if isinstance(network.network, fx.GraphModule):
        reuse_memory(network.network)
    place = able(device_of(graph.model), dtype)
    network.to(place, dtype).to(memory_format=layout)
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
        elif isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                if node.target in LAYERS:
                    for given in node.all_input_nodes[1:]:
                        _halve(module, given, MIXED[precision])


def _halve(network: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    if node.op == "get_attr" and all(user.target in LAYERS for user in node.users):
        tensor = held_by(network, str(node.target))
        tensor.data = tensor.data.to(dtype)


def check_affine(layer: TargetLayer) -> None:
    """Raise NotPiecewiseLinear, with the reason, unless every step before the layer is affine."""
    if not isinstance(layer.network, fx.GraphModule):
        raise NotPiecewiseLinear("torch.export cannot follow the network")
    found = kinds(layer.network).items()
    bends = [where(node) for node, kind in found if kind not in ("fixed", "affine")]
    if bends:
        raise NotPiecewiseLinear(f"the pixels pass through {bends[0]} first, which is not linear")


def is_affine(graph: Graph, layer: str) -> bool:
    """Whether the layer's pre-activations are known to be affine in the pixels."""
    try:
        check_affine(TargetLayer(graph, layer))
    except NotPiecewiseLinear:
        return False
    return True


def last_hidden_layer(graph: Graph) -> str:
    """The last layer that feeds a ReLU which all of the logits depend on the image through.

    Raises:
        SettingError: where there is none, or the network is no graph.
    """
    if graph.network is None:
        raise SettingError(
            f"layer=auto: {graph.reason}; its layers have to be named: give the module whose "
            "output feeds a ReLU"
        )
    for name, node in reversed(graph.nodes.items()):
        if not keeps_values(node) and _hides(node) and not _past(graph, node):
            return name
    others = [reason for node in graph.nodes.values() if (reason := _not_flat_after(node))]
    said = f" ({others[-1]})" if others else ""
    raise SettingError(
        "layer=auto: this network has no layer that feeds a ReLU and that everything flows "
        f"through{said}; name another, or choose a network with one"
    )


def following(graph: Graph, layer: str) -> Following:
    """What follows the layer: the activation that hides its values, and what goes past it.

    Raises:
        SettingError: for a name that is no layer.
    """
    node = _node(graph, layer)
    if node is None:
        return Following(replace(RELU, name="unknown"))
    activation, _ = _hidden_by(node)
    return Following(activation or IDENTITY, _past(graph, node))


def other_readers(graph: Graph, layer: str) -> list[str]:
    """Names of what reads the layer's values and hides none of them."""
    node = _node(graph, layer)
    return [each.name for each in _other_readers(node)] if node else []


def _hidden_by(node: fx.Node) -> tuple[Activation | None, list[fx.Node]]:
    """The activation that takes a node's values, directly or in a new shape alone.

    With the nodes that compute it. Where clipped ReLUs differ, all are flat below 0 and above the
    largest ceiling; of other activations that differ, the first counts, and the others see more.
    """
    found = [(each, activation_of(each)) for each in _readers(node)]
    flat = [(each, a) for each, a in found if a is not None and a.is_exact]
    if not flat:
        return None, []
    activations = [activation for _, activation in flat]
    if all(activation.is_rectifier for activation in activations):
        return max(activations, key=lambda a: a.ceiling), [each for each, _ in flat]
    return activations[0], [each for each, a in flat if a == activations[0]]


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads a node's values, in any shape; sizes are none of them."""
    found: list[fx.Node] = []
    for user in node.users:
        if keeps_values(user):
            found += _readers(user)
        elif not _is_size(user):
            found.append(user)
    return found


def _not_flat_after(node: fx.Node) -> str | None:
    """The activation that takes a node's values and hides none of them, with the reason."""
    names = (not_flat(user) for user in _readers(node))
    return next((name for name in names if name), None)


def _past(graph: Graph, node: fx.Node) -> tuple[str, ...]:
    """Operations through which the output sees more than the rectifiers behind a node give."""
    assert graph.network is not None
    through = set(_hidden_by(node)[1]) or {node}
    names = {each: name for name, each in graph.nodes.items()}
    readers = _other_readers(node)
    found = [names.get(each, each.name) for each in readers]
    seen, waiting = through | set(readers), [next(iter(reversed(graph.network.graph.nodes)))]
    while waiting:
        current = waiting.pop()
        if current in through:
            continue
        for given in current.all_input_nodes:
            if given.op == "placeholder" and not _is_size(current):
                found.append(names.get(current, current.name))
            elif given not in seen:
                seen.add(given)
                waiting.append(given)
    return tuple(dict.fromkeys(found))


def _is_size(node: fx.Node) -> bool:
    return base_name(node).startswith("sym_")


def _other_readers(node: fx.Node) -> list[fx.Node]:
    """What reads a node's values, in any shape, and hides none of them."""
    hiding = _hidden_by(node)[1]
    return [each for each in _readers(node) if each not in hiding] if hiding else []


def _node(graph: Graph, layer: str) -> fx.Node | None:
    """The target layer in the graph; None where there is no graph.

    A module's name is that of its own operation where a ReLU reads this, else of what it gives.
    """
    if graph.network is None:
        return None
    places = [each[layer] for each in (graph.nodes, graph.ends) if layer in each]
    if not places:
        raise _refused(graph, layer, "is not a layer of this network")
    return next((node for node in places if _hides(node)), places[0])


def check_hiding(graph: Graph, layer: str) -> None:
    """Raise SettingError for a layer that feeds no ReLU: no unit of it can be pushed down."""
    node = _node(graph, layer)
    if node is not None and not _hides(node):
        other = _not_flat_after(node)
        raise _refused(graph, layer, "feeds no ReLU" + (f" ({other})" if other else ""))


def _refused(graph: Graph, layer: str, rule: str) -> SettingError:
    before_relu = [name for name, node in graph.nodes.items() if _hides(node)]
    choices = _choices(layer, before_relu) or "none: this classifier has no ReLU"
    return SettingError(f"layer={layer}: {rule}; layers that feed one: {choices}")


def _hides(node: fx.Node | None) -> bool:
    return node is not None and _hidden_by(node)[0] is not None


_MANY = 60  # names that one still looks through


def _choices(layer: str, names: list[str]) -> str:
    """All names, or, of many, those most like the one that was given and the last."""
    if len(names) <= _MANY:
        return ", ".join(names)
    near = difflib.get_close_matches(layer, names, 10, 0.3)
    shown = [*near, *(name for name in names[-10:] if name not in near)]
    return f"{', '.join(shown)} and {len(names) - len(shown)} others"


def _frozen(network: nn.Module) -> nn.Module:
    frozen = copied(network)
    if isinstance(frozen, fx.GraphModule):
        fold(frozen)
    return frozen.requires_grad_(False).eval()


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
