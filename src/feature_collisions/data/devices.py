"""What a device lacks, and where that is computed instead."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..errors import SettingError

CPU = torch.device("cpu")
WITHOUT_FLOAT64 = {"mps"}  # Apple's
_backends: Any = torch.backends  # its hints lack these
_ON_CPU = _backends.mkldnn.matmul, _backends.mkldnn.conv


def able(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.device:
    """`device`, or the CPU where it does not compute in `dtype`."""
    lacking = dtype == torch.float64 and device.type in WITHOUT_FLOAT64
    return CPU if lacking else device


@contextmanager
def without_tf32() -> Iterator[None]:
    """Where float32 has all its bits, not TF32's ten on a GPU or bfloat16's seven on a CPU.

    cuDNN convolves in TF32 by default; products are reduced where the user says
    so, as by `torch.set_float32_matmul_precision`.
    """
    kinds = (_backends.cuda.matmul, _backends.cudnn.conv, *_ON_CPU)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


@contextmanager
def precision_flags_kept() -> Iterator[None]:
    """Where torch.export may run: it reads a flag that must not be set by halves, and sets it."""
    cudnn = _backends.cudnn.conv, _backends.cudnn.rnn
    kinds = (_backends.cuda.matmul, *cudnn, *_ON_CPU)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in cudnn:
            kind.fp32_precision = "tf32"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def may_reduce(device: torch.device) -> bool:
    """Whether products of float32 may be taken with fewer bits than float32 has."""
    allowed = any(kind.fp32_precision in ("tf32", "bf16") for kind in _ON_CPU)
    return device.type != "cpu" or allowed


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Where convolutions add products up: cuDNN may convolve by a transform."""
    before = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = False
        yield
    finally:
        torch.backends.cudnn.enabled = before


def in_half(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """Where networks compute in half `precision`; None leaves them as they are."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


@contextmanager
def explain_out_of_memory(device: torch.device) -> Iterator[None]:
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
    """Whether PyTorch says so, of the CPU or a GPU, or one of CUDA's libraries."""
    said = ("can't allocate memory", "MPS backend out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in said)
