"""Batch sizes that fit into memory, from a measurement of one image."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

_SHARE = 0.7  # of the free memory; the rest is a margin
_WORKSPACE = 2  # a backward pass's memory, relative to the tensors that the forward pass saved


def corners_that_fit(layer: nn.Module, images: Tensor, inside: int = 0, ranks: int = 1) -> int:
    """Largest number of images that fit in a forward and backward pass of `layer`.

    Args:
        layer: the network, on its device.
        images: (K, C, H, W), on that device.
        inside: number of interior points in the same batch.
        ranks: processes on this machine that run at the same time. They share the memory of a
            CPU; each has its own GPU.

    Returns:
        From 1 to K + `inside`.
    """
    return _that_fit(layer, images[:1], len(images) + inside, ranks)


_LARGE = 10_000  # values per image, above which a small batch keeps a processor busy
_BUSY = {"cpu": (256, 16)}  # batch sizes for small, large images; larger batches are slower
_BUSY_ELSEWHERE = (8192, 256)


@torch.inference_mode(False)
def images_at_once(layer: nn.Module, image: Tensor, beside: int = 1) -> int:
    """Batch size for images like this one, at least 1.

    It keeps the device busy and fits in a forward and backward pass.

    Args:
        layer: the network, on its device.
        image: (1, C, H, W), on that device.
        beside: number of threads that run at the same time; on a CPU they share its memory.
    """
    small, large = _BUSY.get(image.device.type, _BUSY_ELSEWHERE)
    return _that_fit(layer, image.clone(), large if image.numel() > _LARGE else small, beside)


def _that_fit(layer: nn.Module, image: Tensor, most: int, sharing: int) -> int:
    """At most `most` images; `sharing` processes or threads divide the memory of a CPU."""
    free = free_bytes(image.device)
    if free is None:
        return most
    if image.device.type == "cpu":
        free //= sharing
    return max(1, min(most, int(free * _SHARE) // bytes_of_one(layer, image)))


def bytes_of_one(layer: nn.Module, image: Tensor) -> int:
    """Bytes that a forward and backward pass of one image (1, C, H, W) needs, without weights."""
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
    """Free memory of `device` in bytes, or None if unknown.

    For a CPU it is the machine's free memory; limits of containers and cluster jobs are ignored.

    Args:
        device: a CPU or a GPU.
        meminfo: Linux's memory table.
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
