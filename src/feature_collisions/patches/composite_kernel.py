"""The composite's C kernel, compiled on first use if there is a compiler.

Plain PyTorch moves each of the 12.8 million control parameters of five corners through memory about
forty times a step, the kernel six times.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.caches import Cache
from ..data.files import write_atomically

_SOURCE = Path(__file__).with_name("composite.c")
_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-shared", "-fPIC"]
_LARGEST_SIDE = 1024  # of the kernel's buffers
_BANDS = 4  # of rows, per thread and corner; small bands balance the threads


class _Composite(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("windows", "channels", "side", "height", "width")),
        *((name, ctypes.c_void_p) for name in ("logits", "sources", "top", "left")),
        *((name, ctypes.c_void_p) for name in ("lse", "push", "images")),
        *((name, ctypes.c_void_p) for name in ("gradient", "logits_gradient")),
    ]


def usable(logits: Tensor) -> bool:
    """Whether the kernel takes these logits (float32 on the CPU) and could be compiled."""
    fits = logits.shape[-1] <= _LARGEST_SIDE
    taken = logits.device.type == "cpu" and logits.dtype == torch.float32
    return fits and taken and _library() is not None


class Blend(torch.autograd.Function):
    """Logits (K, M, w, w) and sources (M, C, w, w) to images (K, C, H, W) and R (K,).

    The kernel gets raw pointers: `Sources` and `blend` check shapes and types.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, sources: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Save per pixel the log of the sum of exp(P) and the sum of p dR/dp for the backward pass.

        Raises:
            ValueError: if the kernel does not support the logits.
        """
        if not usable(logits):
            raise ValueError(
                f"logits: the kernel takes float32 on the CPU, windows of up to {_LARGEST_SIDE} "
                f"pixels and a C compiler; these are {logits.dtype} on {logits.device}, "
                f"{tuple(logits.shape)}"
            )
        logits, count = logits.contiguous(), len(logits)
        lse, push = logits.new_empty(2, count, *size)
        images = logits.new_empty(count, sources.shape[1], *size)
        kept = (logits, sources, top, left, lse, push, images)
        _run("blend", _arguments(*kept), count, size[0])
        parts = _run("variation", _arguments(*kept), count, size[0])
        variation = logits.new_tensor([sum(corner) for corner in parts])
        ctx.save_for_backward(*kept)
        return images, variation

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, weight: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        """Gradient with respect to the logits."""
        logits, sources, top, left, lse, push, images = ctx.saved_tensors
        (height, width), side = images.shape[2:], logits.shape[3]
        found = torch.empty_like(logits)
        out = (top < 0) | (left < 0) | (top + side > height) | (left + side > width)
        found[:, out.nonzero().flatten()] = 0  # windows that the kernel does not fully write
        kept = (logits, sources, top, left, lse, push.clone(), images)
        arguments = _arguments(*kept, gradient.to(images).contiguous(), found)
        _run("descend", arguments, len(logits), height, weight.tolist())
        return found, None, None, None, None


def _arguments(*tensors: Tensor) -> tuple[_Composite, tuple[Tensor, ...]]:
    """The kernel's argument, and the tensors behind its pointers, in the structure's order."""
    sources, images = tensors[1], tensors[6]
    numbers = (*sources.shape[:3], *images.shape[2:])
    return _Composite(*numbers, *(tensor.data_ptr() for tensor in tensors)), tensors


def _run(
    name: str,
    arguments: tuple[_Composite, tuple[Tensor, ...]],
    corners: int,
    height: int,
    weights: list[float] | None = None,
) -> list[list[Any]]:
    """Call a function of the kernel on every band of every corner; return the results."""
    function = getattr(_library(), name)
    threads = torch.get_num_threads()
    bands = max(1, min(height, -(-_BANDS * threads // max(1, corners))))
    edges = [band * height // bands for band in range(bands + 1)]

    def call(task: tuple[int, int]) -> Any:
        corner, band = task
        last = () if weights is None else (ctypes.c_float(weights[corner]),)
        ends = (ctypes.c_int64(edges[band]), ctypes.c_int64(edges[band + 1]))
        return function(ctypes.byref(arguments[0]), ctypes.c_int64(corner), *ends, *last)

    tasks = [(corner, band) for corner in range(corners) for band in range(bands)]
    found = list(_pool(threads).map(call, tasks)) if threads > 1 else [call(task) for task in tasks]
    return [found[start : start + bands] for start in range(0, len(found), bands)]


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)  # ctypes releases the interpreter's lock


@functools.cache
def _library() -> ctypes.CDLL | None:
    compiler = shlex.split(os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "")
    if not compiler or platform.system() == "Windows":
        _without("no C compiler was found")
        return None
    source = _SOURCE.read_bytes()
    key = hashlib.sha256(source + f"{compiler}{_FLAGS}{_processor()}".encode()).hexdigest()[:16]
    cache = Cache("kernels", 1, "the composite's kernel")
    library = cache.load(key, _load) or _compiled(compiler, cache, key)
    if library is not None:
        library.variation.restype = ctypes.c_double
        library.blend.restype = library.descend.restype = None
    return library


def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _compiled(compiler: list[str], cache: Cache, key: str) -> ctypes.CDLL | None:
    """Compile the kernel, and cache it if possible."""
    with tempfile.TemporaryDirectory(prefix="feature_collisions-") as folder:
        made = Path(folder) / "composite.so"
        if not _compile(compiler, made):
            _without(f"{compiler[0]} could not compile {_SOURCE.name}")
            return None
        cache.save(key, made.read_bytes(), write_atomically)
        # The temporary folder may forbid execution, and the cache may be missing.
        for path in (cache.path(key), made):
            with suppress(OSError):
                return _load(path)
        _without(f"what {compiler[0]} made of {_SOURCE.name} cannot be loaded")
        return None


def _without(reason: str) -> None:
    warnings.warn(
        f"composites are computed by plain PyTorch, a hundred times slower: {reason}; install one, "
        "or name it in the variable CC",
        stacklevel=2,
    )


def _compile(compiler: list[str], made: Path) -> bool:
    """Compile for this processor, otherwise for its architecture."""
    for native in (["-march=native"], []):
        command = [*compiler, *_FLAGS, *native, "-o", str(made), str(_SOURCE), "-lm"]
        try:
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return True
        except OSError:  # there is no such compiler
            return False
    return False


def _processor() -> str:
    """Identify the processor: machines of a cluster may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("flags")), platform.processor())
