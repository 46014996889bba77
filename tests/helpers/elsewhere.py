"""A device that is not there: CPU tensors that say they lie elsewhere, and refuse to meet others.

Tensors `elsewhere` hold real numbers, which the CPU computes, so that a whole search or evaluation
runs on them, gradients and decisions included, and must find what it finds on the CPU. What a GPU
would refuse is refused: tensors of two devices in one operation, `.numpy()`, a generator of the
CPU's that is to draw elsewhere; and float64, where the device is to have none, as Apple's.

(torch's own fake CUDA tensors hold no numbers, and have no backward pass. `lazy` is a device type
whose backward pass runs in the CPU's thread; it is used as a name only.)
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map

from feature_collisions.data import devices

DEVICE = torch.device("lazy", 0)
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_BY_INDEX = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}


class Elsewhere(torch.Tensor):
    """A tensor of `DEVICE`, by the CPU tensor that holds its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        """Copied to the CPU, as every device's."""
        return self.inner.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.inner, spec)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: within `Device` only")


@contextmanager
def elsewhere(float64: bool = True) -> Iterator[None]:
    """Within it `DEVICE` exists.

    Args:
        float64: whether it has float64.
    """
    with pytest.MonkeyPatch.context() as patch, Device(float64), _Given():
        if not float64:
            patch.setattr(devices, "WITHOUT_FLOAT64", {"mps", DEVICE.type})
        # Parameters are exchanged when a module moves: their numbers are not in a storage.
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        # Inference tensors come to a dispatch mode in other parts, whose place nothing tells.
        modes = {True: torch.no_grad, False: nullcontext}
        patch.setattr(torch._C, "_InferenceMode", lambda mode: modes[mode]())
        cast = torch.autocast  # knows real devices only

        def autocast(device: str, *given: Any, **options: Any) -> Any:
            return nullcontext() if device == DEVICE.type else cast(device, *given, **options)

        patch.setattr(torch, "autocast", autocast)
        export = torch.export.export  # makes copies without numbers, of real devices' tensors alone

        def export_here(model: nn.Module, images: Any, **options: Any) -> Any:
            with _disable_current_modes(), _on_cpu(model) as originals:
                program = export(model, tuple(map(_inner, images)), **options)
            for held in (program.state_dict, program.constants):
                held.update({name: originals.get(id(value), value) for name, value in held.items()})
            return program

        patch.setattr(torch.export, "export", export_here)
        supported = optimizer._get_fused_kernels_supported_devices()
        patch.setattr(
            optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported, DEVICE.type]
        )
        yield


@contextmanager
def _on_cpu(model: nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Within it the model's tensors are the CPU's; yields the originals by those's ids."""
    originals: dict[int, torch.Tensor] = {}
    places = []
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if isinstance(tensor, Elsewhere):
                    places.append((held, name, tensor))
                    inner = tensor.inner.detach()
                    held[name] = nn.Parameter(inner) if held is module._parameters else inner
                    originals[id(held[name])] = tensor
    try:
        yield originals
    finally:
        for held, name, tensor in places:
            held[name] = tensor


class _There(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


@contextmanager
def searching_there() -> Iterator[None]:
    """Within it Lightning moves a search to `DEVICE`, and takes its steps there."""

    def make(**arguments: Any) -> Trainer:
        del arguments["accelerator"], arguments["devices"]
        strategy = SingleDeviceStrategy(device=DEVICE, accelerator=_There())
        return Trainer(**arguments | {"strategy": strategy})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feature_collisions.search.trainer.Trainer", make)
        yield


class _Given(TorchFunctionMode):
    """Numbers that Python gives are brought to `DEVICE` here: C++ would ask the device for room."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Elsewhere):
            dtype = kwargs.get("dtype", args[0].dtype)
            return torch.tensor(args[1], dtype=dtype).to(DEVICE)
        if func is torch.Tensor.__getitem__ and isinstance(args[1], list):
            return args[0][torch.tensor(args[1])]
        return func(*args, **kwargs)


class Device(TorchDispatchMode):
    """Within it `DEVICE` exists.

    Args:
        float64: whether it has float64.
    """

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self.float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [
            each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)
        ]
        ours = [each for each in tensors if isinstance(each, Elsewhere)]
        device = kwargs.get("device")
        there = bool(ours) if device is None else torch.device(device).type == DEVICE.type
        if there and device is not None:
            generator = kwargs.get("generator")
            if generator is not None and not ours:
                raise RuntimeError(f"{func}: a CPU generator cannot draw on {DEVICE}")
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        if ours and func not in _COPIES:
            self._check_place(func, args, tensors)
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        found = func(*inner_args, **inner_kwargs)
        if func is _aten.copy_.default:
            there = isinstance(args[0], Elsewhere)
        if func is _aten._to_copy.default and device is None:
            there = bool(ours)
        if func in (_aten._local_scalar_dense.default, _aten.equal.default):
            return found
        if not there:
            if (
                ours
                and func in _COPIES
                and isinstance(found, torch.Tensor)
                and found is inner_args[0]
            ):
                return found.clone()
            return found if func is not _aten.copy_.default else args[0]
        wrapped = tree_map(self._outer, found)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped

    def _check_place(self, func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
        strangers = [each for each in tensors if not isinstance(each, Elsewhere)]
        if torch.Tag.pointwise in func.tags:
            strangers = [each for each in strangers if each.dim()]
        if func in _BY_INDEX and isinstance(args[0], Elsewhere):
            values = [each for each in args[2:3] if isinstance(each, torch.Tensor)]
            strangers = [each for each in values if not isinstance(each, Elsewhere) and each.dim()]
        if strangers:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} got one of {DEVICE} and "
                f"one of the CPU, {tuple(strangers[0].shape)}"
            )

    def _outer(self, found: Any) -> Any:
        if not isinstance(found, torch.Tensor) or isinstance(found, Elsewhere):
            return found
        if found.dtype == torch.float64 and not self.float64:
            raise TypeError(f"{DEVICE} has no float64")
        return Elsewhere(found)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, Elsewhere) else value
