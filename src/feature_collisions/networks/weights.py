"""State dicts: read without executing anything, and fitted to a network key by key."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.files import DAMAGED, load_saved, load_tensors
from ..errors import SettingError


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file, safetensors or a state dict of `torch.save`, into `model`.

    Raises:
        SettingError: when the file cannot be read, or keys or shapes differ; some are named.
    """
    fit_weights(model, read_weights(path), f"classifier.weights={path}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, safetensors or of `torch.save`; nothing in it can execute.

    Raises:
        SettingError: when the file cannot be read.
    """
    rule = (
        "give a safetensors file, or a state dict written by torch.save(model.state_dict(), FILE)"
    )
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)
        state = load_saved(path)
    except SettingError as error:  # which begins with the path
        raise SettingError(f"classifier.weights={error}; {rule}") from None
    except FileNotFoundError:
        raise SettingError(f"classifier.weights={path}: there is no such file") from None
    except OSError as error:
        reason = error.strerror or error
        raise SettingError(f"classifier.weights={path}: cannot be read ({reason})") from None
    except DAMAGED:  # torch's own words advise to execute what is in the file
        raise SettingError(
            f"classifier.weights={path}: is damaged, or holds more than tensors, and nothing in a "
            f"file is executed; {rule}"
        ) from None
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not (named and all(isinstance(tensor, Tensor) for tensor in state.values())):
        raise SettingError(f"classifier.weights={path}: holds no state dict; {rule}")
    return dict(state)


def fit_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `model`.

    Args:
        model: the network.
        state: tensors by name.
        source: the setting that named them, for messages.

    Raises:
        SettingError: when keys or shapes differ; the first few are named.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    differing = sorted(k for k in expected.keys() | found if expected.get(k) != found.get(k))
    if differing:
        listed = "; ".join(
            f"{k}: expected {_shape(expected.get(k))}, found {_shape(found.get(k))}"
            for k in differing[:4]
        )
        raise SettingError(
            f"{source}: {len(differing)} entries do not fit "
            f"{type(model).__name__} ({listed}); give the weights of this architecture"
        )
    strange = [name for name, tensor in state.items() if not _is_plain(tensor)]
    if strange:
        raise SettingError(
            f"{source}: {strange[0]} is no tensor of real numbers held whole in memory; give the "
            "weights as model.state_dict() has them"
        )
    model.load_state_dict(state)


def _is_plain(tensor: Tensor) -> bool:
    """Neither sparse, quantised, complex nor without values: what a layer's weights can be."""
    known = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return known and not (tensor.is_quantized or tensor.is_complex())


def _shape(shape: torch.Size | None) -> str:
    return "x".join(map(str, shape)) or "scalar" if shape is not None else "none"


def weights_hash(model: nn.Module) -> str:
    """A short SHA-256 of the model's state dict, to tell one classifier from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
