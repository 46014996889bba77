"""Precision and memory of devices, and the CPU as a substitute."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..errors import SettingError

CPU = torch.device("cpu")
WITHOUT_FLOAT64 = {"mps"}  # Apple's
_backends: Any = torch.backends  # PyTorch's type hints lack these
_ON_CPU = _backends.mkldnn.matmul, _backends.mkldnn.conv


def device_for(device: torch.device, dtype: torch.dtype = torch.float64) -> torch.device:
    """Return `device`, or the CPU if it does not support `dtype`."""
    lacking = dtype == torch.float64 and device.type in WITHOUT_FLOAT64
    return CPU if lacking else device


@contextmanager
def _precision(kinds: Sequence[Any], name: str) -> Iterator[None]:
    """Set the precision of float32 of some kinds of operations, and restore that of all."""
    every = (*_ON_CPU, _backends.cuda.matmul, _backends.cudnn.conv, _backends.cudnn.rnn)
    before = [kind.fp32_precision for kind in every]
    try:
        for kind in kinds:
            kind.fp32_precision = name
        yield
    finally:
        for kind, precision in zip(every, before, strict=True):
            kind.fp32_precision = precision


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 with all its bits: no TF32 (10 bits) on a GPU, no bfloat16 (7) on a CPU.

    cuDNN's convolutions use TF32 by default. Matrix products do after
    `torch.set_float32_matmul_precision`.
    """
    with _precision((_backends.cuda.matmul, _backends.cudnn.conv, *_ON_CPU), "ieee"):
        yield


@contextmanager
def precision_flags_kept() -> Iterator[None]:
    """Make the TF32 flags consistent for torch.export, and restore them afterwards."""
    with _precision((_backends.cudnn.conv, _backends.cudnn.rnn), "tf32"):
        yield


def may_reduce(device: torch.device) -> bool:
    """Whether products of float32 numbers may be computed with fewer bits."""
    allowed = any(kind.fp32_precision in ("tf32", "bf16") for kind in _ON_CPU)
    return device.type != "cpu" or allowed


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Convolve by adding products: cuDNN may use a transform, whose rounding differs."""
    before = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = False
        yield
    finally:
        torch.backends.cudnn.enabled = before


def in_half(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[Any]:
    """Run networks in half `precision`; None changes nothing."""
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


@contextmanager
def explain_out_of_memory(device: torch.device) -> Iterator[None]:
    """Turn an out-of-memory error of `device` into a SettingError with a remedy."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        elsewhere = (
            "" if device.type == "cpu" else ", or measure on the CPU: trainer.accelerator=cpu"
        )
        raise SettingError(
            f"out of memory on {device}; end other programs there{elsewhere}. What was measured "
            "before is kept"
        ) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Whether `error` is an out-of-memory error of PyTorch or a CUDA library."""
    said = ("can't allocate memory", "MPS backend out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in said)
