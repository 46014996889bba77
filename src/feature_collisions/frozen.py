"""The frozen classifier as every step runs it: no more of it than the loss needs."""

import copy

import torch
from torch import nn

from .features import Observed, TargetLayer
from .precision import MIXED


def frozen_copy(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The whole classifier, in eval mode and without gradients for its weights."""
    copied: nn.Module = copy.deepcopy(model).requires_grad_(False).eval()
    return copied.to(memory_format=layout)


def network_of(
    model: nn.Module,
    layer: str,
    logits: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    precision: str,
    compiled: bool,
) -> TargetLayer | Observed:
    """The classifier up to the target layer, or all of it where the loss compares logits.

    Args:
        model, layer: the classifier and its target layer.
        logits: whether the loss compares them.
        dtype: of images and features.
        layout: how images and filters lie in memory.
        precision: Lightning's; mixed ones halve the weights.
        compiled: translate it with torch.compile.
    """
    network: TargetLayer | Observed = (
        Observed(frozen_copy(model, layout), layer) if logits else TargetLayer(model, layer)
    )
    network.to(dtype).to(memory_format=layout)
    if precision in MIXED:
        halve_weights(network, MIXED[precision])
    if compiled:
        network.compile()
    return network


def halve_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Store what autocast would convert at every step, for it does not keep frozen weights.

    Normalisations keep float32, as autocast has it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
