"""The network up to the target layer's activation, or observed there on the way to the logits.

A search step runs a frozen copy, and only the part that the loss needs.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from ..data.devices import device_for
from ..errors import SettingError
from ..settings.trainer import MIXED
from .flow import activations_behind, module_of, nodes_of
from .graph import Graph, copied, end_of, fold, held_by, until
from .logits import device_of, logits_in
from .operations import LAYERS, NotPiecewiseLinear, kinds, reuse_memory

Module = TypeVar("Module", bound=nn.Module)


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
        if nodes is None or not graph.any_batch:
            self.network: nn.Module = _RunAsIs(frozen(graph.model), layer, whole=False)
        else:
            self.network = frozen(until(graph.runnable(), *nodes))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N): pre-activations, flattened, several layers concatenated."""
        found = self.network(images)
        return joined([found] if isinstance(found, Tensor) else found)

    @property
    def is_affine(self) -> bool:
        """Whether its values are affine in the images, as far as known."""
        if not isinstance(self.network, fx.GraphModule):
            return False
        try:
            return set(kinds(self.network).values()) <= {"fixed", "affine"}
        except NotPiecewiseLinear:
            return False


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
        if nodes is None or not graph.any_batch:
            self.network: nn.Module = _RunAsIs(graph.model, layer, whole=True)
        else:
            network = graph.runnable()
            self.network = until(network, end_of(network), *nodes)
            reuse_memory(self.network)

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
    return frozen(network).to(memory_format=layout)


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
        network.network = frozen(network.network)
    else:
        network = TargetLayer(graph, layer)
    if isinstance(network.network, fx.GraphModule):
        reuse_memory(network.network)
    network.to(device_for(device_of(graph.model), dtype), dtype).to(memory_format=layout)
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


def frozen(network: Module) -> Module:
    """A copy in eval mode without gradients; what does not depend on the images is a constant."""
    found = copied(network)
    if isinstance(found, fx.GraphModule):
        fold(found)
    return found.requires_grad_(False).eval()


class _Reached(Exception):
    """The layer has its output, and later layers are not needed."""


class _RunAsIs(nn.Module):
    """Runs a model without a graph, and records what `layer` gives at its first call.

    Args:
        model: the model.
        layer: name of one of its modules.
        whole: run all of it, and return its output, too; otherwise stop at the layer.
    """

    def __init__(self, model: nn.Module, layer: str, whole: bool) -> None:
        super().__init__()
        self.model, self.layer, self.whole = model, module_of(model, layer), whole

    def forward(self, images: Tensor) -> Tensor | tuple[Any, Tensor]:
        found: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(output.clone() if self.whole else output)
            if not self.whole:
                raise _Reached

        listener = self.layer.register_forward_hook(keep)
        output = None
        try:
            output = self.model(images)
        except _Reached:
            pass
        finally:
            listener.remove()
        if not found:
            raise _never_runs(self.model)
        return (output, found[0]) if self.whole else found[0]


def _never_runs(model: nn.Module) -> SettingError:
    patched = [n or "the model" for n, part in model.named_modules() if "forward" in vars(part)]
    where = f" (the forward patched on {patched[0]} may run another network)" if patched else ""
    return SettingError(
        "layer", None, f"the network never calls it{where}", "choose one that it calls"
    )
