"""The network up to the target layer's activation, or observed there on the way to the logits.

A search step runs a frozen copy, and only the part that the loss needs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..data.devices import device_for
from ..errors import SettingError
from ..settings.trainer import MIXED
from .flow import activations_behind, module_of, nodes_of
from .graph import Graph, copied, fold, held_by, until
from .logits import device_of, logits_in
from .operations import LAYERS, NotPiecewiseLinear, kinds, module_path, reuse_memory


class TargetLayer(nn.Module):
    """f0: images to the target layer's pre-activations; later layers are not computed.

    It is a frozen copy of a part of the model, so moving it to another device or to float64 leaves
    the user's model unchanged. A model that cannot be exported for any number of images is run
    and stopped when the layer has its output.

    Args:
        graph: graph of any classifier.
        layer: name of a node, such as `classifier.0` or `layer4.2.add`; for a `Classifier`, a name
            within its network. Names separated by commas are one layer.
        behind: return the values after the layer's activation, if there is one.

    Raises:
        SettingError: if a name is not a layer.
    """

    def __init__(self, graph: Graph, layer: str, behind: bool = False) -> None:
        super().__init__()
        nodes = nodes_of(graph, layer)
        if behind:
            nodes = activations_behind(graph, layer) or nodes
        if graph.network is None or nodes is None or not graph.any_batch:
            self.network: nn.Module = _StopAt(graph.model, layer)
        elif len(nodes) == 1:
            self.network = _frozen(until(graph.network, nodes[0]))
        else:
            self.network = _frozen(until(graph.network, tuple(nodes)))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N): pre-activations, flattened, several layers concatenated."""
        found = self.network(images)
        return found.flatten(1) if isinstance(found, Tensor) else joined(found)


class Observed(nn.Module):
    """A classifier that returns logits and the target layer's pre-activations in one pass.

    It shares the model's weights and computes in eval mode.

    Args:
        graph: graph of any classifier.
        layer: the target layer, as for `TargetLayer`.
    """

    def __init__(self, graph: Graph, layer: str) -> None:
        super().__init__()
        nodes = nodes_of(graph, layer)
        if graph.network is None or nodes is None or not graph.any_batch:
            self.network: nn.Module = _ListenAt(graph.model, layer)
        else:
            logits = next(iter(reversed(graph.network.graph.nodes))).args[0]
            assert isinstance(logits, fx.Node)
            network = until(graph.network, (logits, *nodes))
            reuse_memory(network)
            self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to logits (B, classes) and pre-activations (B, N)."""
        output, *found = self.network(images)
        return logits_in(output, len(images)), joined(found)


def joined(values: Sequence[Tensor]) -> Tensor:
    """Flatten and concatenate the values (B, ...) of one or more layers to (B, N)."""
    flat = [each.flatten(1) for each in values]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


def frozen_copy(graph: Graph, layout: torch.memory_format) -> nn.Module:
    """Copy the classifier in eval mode, on its device, without gradients for its weights."""
    network = graph.network if graph.any_batch and graph.network is not None else graph.model
    return _frozen(network).to(memory_format=layout)


def network_of(
    graph: Graph, layer: str, logits: bool, dtype: torch.dtype, layout: torch.memory_format
) -> TargetLayer | Observed:
    """The classifier up to the target layer, or all of it if the loss compares logits.

    Args:
        graph: graph of the classifier.
        layer: its target layer.
        logits: whether the loss compares logits.
        dtype: of images and features.
        layout: memory format of images and filters.
    """
    network: TargetLayer | Observed
    if logits:
        network = Observed(graph, layer)
        network.network = _frozen(network.network)
    else:
        network = TargetLayer(graph, layer)
    if isinstance(network.network, fx.GraphModule):
        reuse_memory(network.network)
    place = device_for(device_of(graph.model), dtype)
    network.to(place, dtype).to(memory_format=layout)
    return network


def halve_weights(network: nn.Module, precision: str) -> None:
    """Store weights in the half precision that autocast would convert them to at every step.

    Normalisations keep float32, as in autocast. The rounding exceeds the tolerance of
    `check_agreement`, so compare the network first.

    Args:
        network: the frozen network.
        precision: Lightning's name; only mixed precisions change anything.
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
    """Raise NotPiecewiseLinear, with the reason, unless the layer is affine in the images."""
    if not isinstance(layer.network, fx.GraphModule):
        raise NotPiecewiseLinear("torch.export cannot trace the network")
    found = kinds(layer.network).items()
    bends = [module_path(node) for node, kind in found if kind not in ("fixed", "affine")]
    if bends:
        raise NotPiecewiseLinear(f"the pixels pass through {bends[0]} first, which is not linear")


def is_affine(graph: Graph, layer: str) -> bool:
    """Whether the layer's pre-activations are affine in the pixels, as far as known."""
    try:
        check_affine(TargetLayer(graph, layer))
    except NotPiecewiseLinear:
        return False
    return True


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
    """Runs a model until `layer` has its output; the next activation is not checked."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = copied(model).requires_grad_(False).eval()
        module_of(self.model, layer).register_forward_hook(_stop)

    def forward(self, images: Tensor) -> Tensor:
        try:
            self.model(images)
        except _Reached as reached:
            return reached.output
        raise _never_runs(self.model)


class _ListenAt(nn.Module):
    """Runs a model and records the output of `layer`."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, module_of(model, layer)

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


def _never_runs(model: nn.Module) -> SettingError:
    patched = [n or "the model" for n, part in model.named_modules() if "forward" in vars(part)]
    where = f" (the forward patched on {patched[0]} may run another network)" if patched else ""
    return SettingError(
        "layer", None, f"the network never calls it{where}", "choose one that it calls"
    )
