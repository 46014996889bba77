"""The frozen classifier as every step runs it: no more of it than the loss needs."""

from typing import cast

import torch
from torch import nn

from ..data.devices import able
from ..settings.trainer import MIXED
from .logits import device_of
from .target_layer import Observed, TargetLayer, copied


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
