"""Remove PyTorch's wrappers: compiled, parallel and averaged models."""

import copy

import torch
from torch import nn

from ..errors import SettingError

_WRAPPERS: dict[type[nn.Module], str] = {
    torch._dynamo.OptimizedModule: "_orig_mod",
    nn.DataParallel: "module",
    nn.parallel.DistributedDataParallel: "module",
    torch.optim.swa_utils.AveragedModel: "module",
}


def unwrap(model: nn.Module) -> nn.Module:
    """Remove wrappers around the network and around any of its modules.

    The given model is not changed; without wrappers it is returned.

    Raises:
        SettingError: if it is an exported program, which has no modules.
    """
    if isinstance(model, torch.export.ExportedProgram) or _is_exported(model):
        raise SettingError(
            "model",
            None,
            "is exported (torch.export), so it has no modules and no eval mode",
            "give the torch.nn.Module that it was exported from",
        )
    return _unwrapped(model) if isinstance(model, nn.Module) else model


def unwrap_layer(model: nn.Module, layer: str) -> str:
    """Name in `unwrap(model)` of a layer of `model`."""
    while name := _inner(model):
        layer = layer.removeprefix(f"{name}.")
        model = getattr(model, name)
    return layer.replace("._orig_mod.", ".")


def _inner(model: nn.Module) -> str | None:
    """Attribute of a wrapper that contains the network; None if it is not a wrapper."""
    return next((name for kind, name in _WRAPPERS.items() if isinstance(model, kind)), None)


def _unwrapped(model: nn.Module) -> nn.Module:
    while name := _inner(model):
        model = getattr(model, name)
    if isinstance(model, torch.jit.ScriptModule):
        return model
    children = {name: child and _unwrapped(child) for name, child in model._modules.items()}
    compiled = getattr(model, "_compiled_call_impl", None) is not None  # of model.compile()
    if not compiled and all(model._modules[name] is child for name, child in children.items()):
        return model
    plain = copy.copy(model)
    plain._modules = children
    plain._compiled_call_impl = None
    return plain


def _is_exported(model: object) -> bool:
    """Whether a module is from torch.export, which disables its `train`."""
    return isinstance(model, torch.fx.GraphModule) and "train" in vars(model)
