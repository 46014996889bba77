"""What a device lacks, and where that is computed instead."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..errors import SettingError

CPU = torch.device("cpu")
WITHOUT_FLOAT64 = {"mps"}  # Apple's


def able(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.device:
    """`device`, or the CPU where it does not compute in `dtype`."""
    lacking = dtype == torch.float64 and device.type in WITHOUT_FLOAT64
    return CPU if lacking else device


@contextmanager
def without_tf32() -> Iterator[None]:
    """Where GPUs convolve in float32 as it is, not with the ten bits of TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def in_half(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """Where networks compute in half `precision`; None leaves them as they are."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


@contextmanager
def sparing(device: torch.device) -> Iterator[None]:
    """Say in a SettingError what to do when the device's memory runs out."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        elsewhere = (
            "" if device.type == "cpu" else ", or measure on the CPU: trainer.accelerator=cpu"
        )
        raise SettingError(
            f"out of memory on {device}; end what else runs there{elsewhere}. What was measured "
            "before is kept"
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch says so, of a GPU or of the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
