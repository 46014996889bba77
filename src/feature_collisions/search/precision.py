"""`trainer.precision=auto`: bfloat16 for the frozen network, where the first gradient allows it."""

import torch
from torch import Tensor

from ..networks.frozen import halve_weights
from .collision import Collision

AGREES = 0.9  # cosine; 0.96 to 0.97 on networks that find the same hulls either way


def halve_and_compare(module: Collision, device: torch.device) -> float:
    """Halve the network's weights; what that does to the first step's gradient.

    Args:
        module: a search in float32 that has not begun; its network stays in bf16-mixed.
        device: where the search is going to run.

    Returns:
        The smallest cosine, over the corners, between the gradients before and after.
    """
    per_batch = module.per_batch
    module.to(device)
    before = _gradient(module, False)
    halve_weights(module.network, "bf16-mixed")
    after = _gradient(module, True)
    module.cpu()
    module.per_batch = per_batch  # `auto` is measured where the steps run
    return float(torch.cosine_similarity(before, after, dim=1).nan_to_num(-1).min())


def _gradient(module: Collision, mixed: bool) -> Tensor:
    """Of the first step, (K, numbers of a corner) in float64."""
    (parameter,) = module.parameterisation.parameters()
    with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
        module._descend(0, Tensor.backward)
    gradient = parameter.grad
    assert gradient is not None
    parameter.grad = None
    return gradient.flatten(1).double()
