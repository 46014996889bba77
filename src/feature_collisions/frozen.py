"""The frozen classifier as every step runs it: no more of it than the loss needs."""

from typing import cast

import torch
from torch import Tensor, nn

from .agreement import check_agreement, check_gradient
from .features import Observed, TargetLayer, copied
from .precision import MIXED


def frozen_copy(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The whole classifier, in eval mode and without gradients for its weights."""
    frozen: nn.Module = copied(model).requires_grad_(False).eval().cpu()
    return frozen.to(memory_format=layout)


def network_of(
    model: nn.Module,
    layer: str,
    logits: bool,
    dtype: torch.dtype,
    layout: torch.memory_format,
    precision: str,
    compiled: bool,
    images: Tensor,
) -> TargetLayer | Observed:
    """The classifier up to the target layer, or all of it where the loss compares logits.

    It is compared with the classifier as its user calls it, before its weights are halved and
    before it is compiled: these round more than a hook need change.

    Args:
        model, layer: the classifier and its target layer.
        logits: whether the loss compares them.
        dtype: of images and features.
        layout: how images and filters lie in memory.
        precision: Lightning's; mixed ones halve the weights.
        compiled: translate it with torch.compile.
        images: (B, C, H, W) float32 to compare it on.

    Raises:
        SettingError: when it does not compute what the classifier does, or has no gradient.
    """
    network: TargetLayer | Observed = TargetLayer(model, layer)
    if logits:  # frozen once cut: a copied model would still call a forward patched on the first
        network = Observed(model, layer)
        network = cast(Observed, frozen_copy(network, layout))
    network.to(dtype).to(memory_format=layout)
    check_agreement(model, layer, images, [Observed(model, layer), network])
    check_gradient(network, images)
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
