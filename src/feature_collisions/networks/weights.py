"""Read state dicts without executing code, and fit them to a network key by key."""

import hashlib
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..data.files import DAMAGED, load_saved, load_tensors, opened
from ..errors import SettingError
from ..paths import expanded


def load_weights(model: nn.Module, weights: str | Path) -> None:
    """Load a file, safetensors or of `torch.save`, into `model`; see `read_weights`.

    Raises:
        SettingError: if the file cannot be read, or keys or shapes differ; some are named.
    """
    fit_weights(model, read_weights(weights), f"classifier.weights={weights}")


State = dict[str, Tensor]


def read_weights(weights: str | Path) -> dict[str, State]:
    """Read the state dicts of a file, by entry; "" is the file itself.

    Args:
        weights: FILE, or FILE::ENTRY for one entry of a checkpoint. The content decides between
            safetensors and `torch.save`. No code in the file is executed.

    Raises:
        SettingError: if the file cannot be read, or has no state dict there.
    """
    path, entry = split_entry(weights)
    found = _loaded(path)
    states = _states(found)
    if entry:
        states = {entry: states[entry]} if entry in states else {}
    if not states:
        where = f" in its entry {entry}" if entry else ""
        raise SettingError(
            "classifier.weights",
            weights,
            f"holds no state dict{where}, but {_contents(found)}",
            _RULE,
        )
    return states


def split_entry(weights: str | Path) -> tuple[Path, str]:
    """Split FILE::ENTRY of `classifier.weights` into file and entry, or ""."""
    file, _, entry = str(weights).partition("::")
    return Path(expanded(file)), entry


_RULE = (
    "give a safetensors file, or a state dict written by torch.save(model.state_dict(), FILE); "
    "FILE::ENTRY names an entry of a checkpoint"
)


def _loaded(path: Path) -> Any:
    source = f"classifier.weights={path}"
    wrong = partial(SettingError, source, None)
    try:
        if _is_safetensors(path):
            return load_tensors(path)
        return load_saved(path, stands_for=_unread)
    except SettingError as error:  # which begins with the path
        raise SettingError(f"classifier.weights={error}; {_RULE}") from None
    except FileNotFoundError:
        raise wrong("there is no such file") from None
    except OSError as error:
        reason = error.strerror or error
        raise wrong(f"cannot be read ({reason})") from None
    except DAMAGED:  # torch's message advises to execute the file
        raise wrong("is damaged, or contains what no checkpoint does", _RULE) from None


def _is_safetensors(path: Path) -> bool:
    """Decide by the first bytes, the header's length and its brace; if unclear, by the name."""
    with opened(path) as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not start.startswith(_TORCH)


_TORCH = (b"PK\x03\x04", b"\x80\x02")  # torch.save writes a zip file, formerly a pickle


class Unread:
    """Replaces a value that is not a tensor; its content is dropped."""

    def __new__(cls, *_: object) -> Self:
        """Drop the arguments of a constructor."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Drop the arguments of a call."""

    def __setstate__(self, state: object) -> None:
        """Drop a state."""


def _mapping(*_: object) -> OrderedDict[Any, Any]:
    """Replaces a call that makes a dictionary; its items, which follow, are kept."""
    return OrderedDict()


def _unread(name: str) -> Callable[..., Any]:
    """What stands for a class or function that a file names, which is never called."""
    if name == "collections.defaultdict":
        return _mapping
    return OrderedDict if name.lower().endswith("dict") else Unread


def _states(found: Any) -> dict[str, State]:
    """Possible states of a network: the file's tensors, and each entry with tensors."""
    if not isinstance(found, dict):
        return {}
    states = {"": _tensors(found)}
    for name, inner in found.items():
        if isinstance(name, str) and isinstance(inner, dict):
            states[name] = _tensors(inner)
    return {name: state for name, state in states.items() if state}


def _tensors(found: dict[Any, Any]) -> State:
    return {
        name: tensor
        for name, tensor in found.items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _contents(found: Any) -> str:
    if isinstance(found, Unread):
        return "a saved object, which is not read"
    if not isinstance(found, dict):
        return f"one {type(found).__name__}"
    return f"the keys {_listed(found)}" if found else "nothing"


def _listed(names: Iterable[Any], most: int = 6) -> str:
    names = [str(name)[:80] for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def fit_weights(
    model: nn.Module, states: dict[str, State], source: str, classes: int | None = None
) -> None:
    """Load the state that fits into `model`.

    Names may have a wrapper's prefix: `module.`, `_orig_mod.`, `model.` or another. Counts of
    batches, which no classifier reads, may be missing. If several states fit, the one that is not
    an average (EMA) is loaded, and the others are named.

    Args:
        model: the network.
        states: tensors by name, by entry of the file.
        source: the setting that named them, for messages.
        classes: outputs of the network's heads, which are resized to the weights; None: heads keep
            their size.

    Raises:
        SettingError: if keys or shapes differ; the first few are named.
    """
    wanted = model.state_dict().keys()
    named = {entry: state for entry in states if (state := _renamed(states[entry], wanted))}
    if not named:
        raise _misfit(model, states, source)
    entry = min(named, key=lambda name: ("ema" in name.lower(), list(named).index(name)))
    state = named[entry]
    others = [f"{source.partition('=')[2]}::{name}" for name in named if name != entry]
    if others:
        warnings.warn(
            f"{source}: took the entry {entry or 'at its top'}; also there: {', '.join(others)}",
            stacklevel=2,
        )
    if classes is not None:
        _size_heads(model, state, classes)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if any(expected[name] != tensor.shape for name, tensor in state.items()):
        raise _misfit(model, {"": state}, source)
    strange = [name for name, tensor in state.items() if not _is_plain(tensor)]
    if strange:
        raise SettingError(
            source,
            None,
            f"{strange[0]} is not a dense real tensor",
            "save the weights with model.state_dict()",
        )
    model.load_state_dict(state)


_COUNT = "num_batches_tracked"  # PyTorch before 0.4.1 had none
_BESIDES = ("n_averaged",)  # a wrapper's own tensors
_PREFIX = re.compile(r"(module\.|_orig_mod\.|model\.)*")


def _renamed(state: State, wanted: Collection[str]) -> State:
    """Rename tensors to the network's names; {} if some are missing or left over."""
    needed = [name for name in wanted if not name.endswith(_COUNT)]
    plain = {_without_wrappers(name): tensor for name, tensor in state.items()}
    for candidate in (state, plain):
        for prefix in _prefixes(candidate, needed):
            inner = {
                name.removeprefix(prefix): tensor
                for name, tensor in candidate.items()
                if name.startswith(prefix) and name not in _BESIDES
            }
            if inner.keys() <= set(wanted) and inner.keys() >= set(needed):
                counts = {name: torch.tensor(0) for name in wanted if name.endswith(_COUNT)}
                return counts | inner
    return {}


def _without_wrappers(name: str) -> str:
    """Remove a wrapper's modules from the middle of a name."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module"))


def _prefixes(state: State, needed: Sequence[str]) -> list[str]:
    """Possible prefixes of all names: none, those of wrappers, then any that is unique."""
    if not needed:
        return [""]
    ends = [name.removesuffix(needed[0]) for name in state if name.endswith(f".{needed[0]}")]
    known = sorted((each for each in ends if _PREFIX.fullmatch(each)), key=len)
    other = [each for each in ends if each not in known]
    return ["", *known, *(other if len(other) == 1 else [])]


def _misfit(model: nn.Module, states: dict[str, State], source: str) -> SettingError:
    """The error that names what differs from the state that is most like the network's."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    candidates = [
        {name.removeprefix(prefix): tensor.shape for name, tensor in state.items()}
        for state in states.values()
        for prefix in _prefixes(state, list(expected))
    ]
    found = max(candidates, key=lambda each: len(each.keys() & expected.keys()))
    differing = sorted(k for k in expected.keys() | found if expected.get(k) != found.get(k))
    listed = "; ".join(
        f"{k}: expected {_shape(expected.get(k))}, found {_shape(found.get(k))}"
        for k in differing[:4]
    )
    held = _listed(states[""] if list(states) == [""] else (name for name in states if name))
    return SettingError(
        f"{source}: {len(differing)} entries do not fit {type(model).__name__} ({listed}); the "
        f"file's top keys are {held}; give the weights of this architecture"
    )


def _size_heads(model: nn.Module, state: State, classes: int) -> None:
    """Resize each layer with `classes` outputs to its weights, in place."""
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if not isinstance(module, nn.Linear | nn.Conv2d) or weight is None or not weight.ndim:
            continue
        count = len(weight)
        if len(module.weight) != classes or count in (0, classes):
            continue
        module.weight = nn.Parameter(module.weight.new_empty(count, *module.weight.shape[1:]))
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.new_empty(count))
        size = "out_features" if isinstance(module, nn.Linear) else "out_channels"
        setattr(module, size, count)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, not quantised and not empty, as a layer's weights are."""
    known = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return known and not (tensor.is_quantized or tensor.is_complex())


def _shape(shape: torch.Size | None) -> str:
    return "x".join(map(str, shape)) or "scalar" if shape is not None else "none"


def weights_hash(model: nn.Module) -> str:
    """Short SHA-256 of the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def untrained(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` returns, with the same random weights each time; warns of it."""
    warnings.warn(
        "classifier.weights=random: the network is untrained, so its classes mean nothing",
        stacklevel=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()
