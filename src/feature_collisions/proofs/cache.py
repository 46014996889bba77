"""What is known of a hull's edges and pieces, kept from one evaluation to the next."""

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from ..data.files import load_tensors, read_json, save_tensors, write_json
from ..errors import SettingError
from ..graph.graph import held_by

_METHOD = 8  # raise it when the walk or its judgement changes: what was proved otherwise is stale


def proof_key(
    network: fx.GraphModule,
    corners: Tensor,
    target_class: int,
    target: Tensor | None = None,
    statement: str = "",
) -> str:
    """A SHA-256 of everything that a proof depends on.

    Args:
        network: the graph in the precision it is walked in.
        corners: (K, C, H, W), in the order that counts the edges.
        target_class: the class that is proved.
        target: the image that the corners collide with, where that matters.
        statement: what is proved of what follows the network, such as an activation.
    """
    digest = hashlib.sha256(f"{_METHOD} {torch.__version__} {target_class}\n".encode())
    digest.update(f"{statement} {fingerprint(network)}\n".encode())
    digest.update(f"{corners.dtype} {tuple(corners.shape)}\n".encode())
    if target is not None:
        digest.update(target.detach().cpu().contiguous().numpy().tobytes())
    digest.update(corners.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(network: fx.GraphModule) -> str:
    """A SHA-256 of all that a graph computes: its operations, their options and every tensor."""
    digest = hashlib.sha256()
    for node in network.graph.nodes:
        digest.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n".encode())
        if node.op == "get_attr":
            held = held_by(network, str(node.target))
            if isinstance(held, fx.GraphModule):
                digest.update(fingerprint(held).encode())
            else:
                _add(digest, held)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


@dataclass
class _Cache:
    """A file for each proof's key; where it cannot be read or written, one does without.

    Attributes:
        path: the file.
        writable: whether writing has not failed yet.
    """

    path: Path
    writable: bool = True
    what: ClassVar[str]
    anew: ClassVar[str]

    def _read(self, read: Callable[[Path], Any], is_sound: Callable[[Any], bool]) -> Any | None:
        """What an earlier evaluation kept, or None."""
        try:
            if not self.path.exists():
                return None
            kept = read(self.path)
            reason = "" if is_sound(kept) else "not what evaluate.py writes"
        except (SettingError, OSError, RecursionError) as error:
            reason = str(error)
        if reason:
            self.ignore(reason)
            return None
        return kept

    def ignore(self, reason: str) -> None:
        """Say that what was kept is not used, and why."""
        message = f"{self.path}: ignored ({reason}); {self.anew} anew"
        warnings.warn(message, stacklevel=5)

    def _write(self, write: Callable[[Path, Any], Any], known: Any) -> None:
        if not self.writable:
            return
        try:
            write(self.path, known)
        except OSError as error:
            self.writable = False
            warnings.warn(
                f"{self.path}: what is known of the {self.what} cannot be kept for the next "
                f"evaluation ({error.strerror or error}); this one goes on without",
                stacklevel=3,
            )


class EdgeCache(_Cache):
    """The edges of a hull."""

    what, anew = "edges", "the edges are walked"

    def load(self, count: int) -> list[dict[str, Any]] | None:
        """What an earlier evaluation kept of `count` edges, in their order, or None."""

        def is_sound(kept: Any) -> bool:
            return isinstance(kept, list) and len(kept) == count and all(map(_sound, kept))

        return self._read(read_json, is_sound)

    def save(self, edges: list[dict[str, Any]]) -> None:
        """Keep what is known."""
        self._write(write_json, edges)


class PieceCache(_Cache):
    """The pieces of one statement."""

    what, anew = "pieces", "the hull is begun"

    def load(self, corners: int, figures: int) -> dict[str, Tensor] | None:
        """What an earlier evaluation kept, or None.

        Args:
            corners: of the hull.
            figures: that are known of each piece.
        """
        return self._read(load_tensors, lambda kept: _whole(kept, corners, figures))

    def save(self, kept: dict[str, Tensor]) -> None:
        """Keep what is known."""
        self._write(save_tensors, kept)


_NAMES = {"weights", "volume", "figures", "settled", "numbers"}


def _whole(kept: dict[str, Tensor], corners: int, figures: int) -> bool:
    """Whether all pieces are there, as `splitting.Splitting` needs them, and make up the hull."""
    if kept.keys() != _NAMES or any(each.dtype != torch.float64 for each in kept.values()):
        return False
    weights, volume, numbers = kept["weights"], kept["volume"], kept["numbers"]
    count = len(volume) if volume.ndim == 1 else -1
    shapes = {"weights": (count, corners, corners), "volume": (count,), "figures": (count, figures),
              "settled": (figures,), "numbers": (4,)}  # fmt: skip
    if any(kept[name].shape != shape for name, shape in shapes.items()):
        return False
    if kept["figures"].isnan().any() or kept["settled"].isnan().any():
        return False
    if not (numbers.isfinite().all() and (numbers >= 0).all() and (volume > 0).all()):
        return False
    if not ((weights >= 0).all() and ((weights.sum(2) - 1).abs() < _SLACK).all()):
        return False
    return abs(float(volume.sum() + numbers[0]) - 1) < _SLACK


_SLACK = 1e-6  # lengths are sums, of float32 at the least
_NUMBERS = ("walked", "failed", "pieces", "rounding")
_OTHERS = ("first_failure", "margin_min", "unconfirmed")


def _sound(kept: Any) -> bool:
    """Whether an entry has what `edges.Edge` needs, within its range."""
    if not isinstance(kept, dict) or kept.keys() != {
        *_NUMBERS,
        "first_failure",
        "margin_min",
        "unconfirmed",
    }:
        return False
    first, least = kept["first_failure"], kept["margin_min"]
    if not all(_finite(kept[name]) and kept[name] >= 0 for name in _NUMBERS):
        return False
    lost = kept["unconfirmed"]
    if lost is not None and not (_finite(lost) and 0 <= lost <= kept["walked"] + _SLACK):
        return False
    if not kept["failed"] <= kept["walked"] + _SLACK <= 1 + _SLACK:
        return False
    if first is not None:
        whole = isinstance(first, list) and len(first) == 2 and all(map(_finite, first))
        if not (whole and 0 <= first[0] <= first[1] <= 1 + _SLACK):
            return False
    return _finite(least) if kept["walked"] else least is None


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
