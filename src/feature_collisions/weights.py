"""State dicts: read without executing anything, and fitted to a network key by key."""

import hashlib
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import SettingError
from .files import load_tensors


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
    if path.suffix == ".safetensors":
        return load_tensors(path)
    rule = (
        "give a safetensors file, or a state dict written by torch.save(model.state_dict(), FILE)"
    )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SettingError(f"classifier.weights={path}: there is no such file") from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise SettingError(
            f"classifier.weights={path}: cannot be read without executing what is in it "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else 'damaged'}); {rule}"
        ) from None
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise SettingError(f"classifier.weights={path}: holds no state dict; {rule}")
    return state


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
    model.load_state_dict(state)


def _shape(shape: torch.Size | None) -> str:
    return "x".join(map(str, shape)) or "scalar" if shape is not None else "none"


def weights_hash(model: nn.Module) -> str:
    """A short SHA-256 of the model's state dict, to tell one classifier from another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
