"""How many corners fit into memory at once: measured on one corner, before the search."""

from pathlib import Path

import torch
from torch import Tensor, nn

_SHARE = 0.7  # of the free memory; the rest is for what a measurement on one corner cannot see
_WORKSPACE = 2  # gradients and buffers of a backward pass, over what the forward pass kept


def corners_that_fit(layer: nn.Module, images: Tensor) -> int:
    """How many of `images` a forward and backward pass of `layer` can hold, at least 1.

    Args:
        layer: the network, on its device.
        images: (K, C, H, W), on that device.
    """
    free = free_bytes(images.device)
    if free is None:
        return len(images)
    return max(1, min(len(images), int(free * _SHARE) // bytes_of_one(layer, images[:1])))


def bytes_of_one(layer: nn.Module, image: Tensor) -> int:
    """What one image (1, C, H, W) needs in a forward and backward pass, beside the weights."""
    known = {tensor.untyped_storage().data_ptr() for tensor in layer.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(image.detach().requires_grad_())
    outputs = output if isinstance(output, tuple) else (output,)
    activations = sum(size for pointer, size in kept.items() if pointer not in known)
    bytes_of_ends = image.nbytes + sum(output.nbytes for output in outputs)
    return int(_WORKSPACE * (activations + bytes_of_ends))


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on `device`, or None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    available = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(available[0]) * 1024 if device.type == "cpu" and available else None
