"""How many images fit into memory at once: measured on one of them, before a search or a figure."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

_SHARE = 0.7  # of the free memory; the rest is for what a measurement on one corner cannot see
_WORKSPACE = 2  # gradients and buffers of a backward pass, over what the forward pass kept


def corners_that_fit(layer: nn.Module, images: Tensor, inside: int = 0, ranks: int = 1) -> int:
    """How many of `images` a forward and backward pass of `layer` can hold, at least 1.

    Args:
        layer: the network, on its device.
        images: (K, C, H, W), on that device.
        inside: points between the corners that may go with them.
        ranks: processes of this machine that do the same at the same time; they share the memory of
            a CPU, and each has its own GPU.

    Returns:
        From 1 to K + `inside`.
    """
    count, free = len(images) + inside, free_bytes(images.device)
    if free is None:
        return count
    if images.device.type == "cpu":
        free //= ranks
    return max(1, min(count, int(free * _SHARE) // bytes_of_one(layer, images[:1])))


_LARGE = 10_000  # numbers an image, over which few of them keep a processor busy
_BUSY = {"cpu": (256, 16)}  # small images, large ones: more of them take longer each
_BUSY_ELSEWHERE = (8192, 256)


@torch.inference_mode(False)
def images_at_once(layer: nn.Module, image: Tensor, beside: int = 1) -> int:
    """How many images like this one (1, C, H, W) to put through `layer` at once, at least 1.

    As many as keep the device busy, but no more than a forward and backward pass can hold.

    Args:
        layer: the network, on its device.
        image: (1, C, H, W), on that device.
        beside: threads that do the same at the same time; those of a CPU share its memory.
    """
    small, large = _BUSY.get(image.device.type, _BUSY_ELSEWHERE)
    most, free = large if image.numel() > _LARGE else small, free_bytes(image.device)
    if free is None:
        return most
    if image.device.type == "cpu":
        free //= beside
    return max(1, min(most, int(free * _SHARE) // bytes_of_one(layer, image.clone())))


def bytes_of_one(layer: nn.Module, image: Tensor) -> int:
    """What one image (1, C, H, W) needs in a forward and backward pass, beside the weights."""
    known = {tensor.untyped_storage().data_ptr() for tensor in layer.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.enable_grad(), saving:
        output = layer(image.detach().requires_grad_())
    outputs = output if isinstance(output, tuple) else (output,)
    activations = sum(size for pointer, size in kept.items() if pointer not in known)
    bytes_of_ends = image.nbytes + sum(output.nbytes for output in outputs)
    return int(_WORKSPACE * (activations + bytes_of_ends))


def free_bytes(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that is free on `device`, or None if unknown.

    On a CPU what the machine has left; the limit of a container or a cluster's job is not known.

    Args:
        device: a CPU or a GPU.
        meminfo: Linux's table of the machine's memory.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type != "cpu" or not meminfo.exists():
        return None
    found = re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text())
    return int(found[1]) * 1024 if found else None
