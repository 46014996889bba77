"""The network inside what PyTorch wraps around one: compiled, parallel or averaged models."""

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
    """The network itself: without wrappers, around it or around any module of it.

    The given model is not changed. It is returned itself where nothing is wrapped.

    Raises:
        SettingError: for an exported program, whose modules are gone.
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
    """The name in `unwrap(model)` of a layer that is named in `model`."""
    while name := _inner(model):
        layer = layer.removeprefix(f"{name}.")
        model = getattr(model, name)
    return layer.replace("._orig_mod.", ".")


def _inner(model: nn.Module) -> str | None:
    """The attribute in which a wrapper keeps the network; None for what is no wrapper."""
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
    """Whether a module came out of torch.export, which takes its `train` away."""
    return isinstance(model, torch.fx.GraphModule) and "train" in vars(model)
