"""Cached results about a hull's edges and subdomains, reused by later evaluations."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import ConfigDict, Field, RootModel, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, fx

from ..data.caches import Cache
from ..data.files import load_tensors, save_tensors, write_json
from ..errors import SettingError
from ..graph.graph import held_by
from ..runs.evaluation import Figure
from ..runs.records import Count, Record, read_record

_METHOD = 13  # raise it when the walk or the proofs change, to invalidate cached results


def proof_key(
    network: fx.GraphModule,
    corners: Tensor,
    target_class: int,
    target: Tensor | None = None,
    statement: str = "",
) -> str:
    """A SHA-256 of everything that a proof depends on.

    Args:
        network: the graph in the precision of the proof.
        corners: (K, C, H, W), in the order that numbers the edges.
        target_class: the class that is proved.
        target: the image that the corners collide with, if relevant.
        statement: further parts of the statement, such as the activation.
    """
    digest = hashlib.sha256(f"{torch.__version__} {target_class}\n".encode())
    digest.update(f"{statement} {fingerprint(network)}\n".encode())
    digest.update(f"{corners.dtype} {tuple(corners.shape)}\n".encode())
    if target is not None:
        digest.update(target.detach().cpu().contiguous().numpy().tobytes())
    digest.update(corners.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fingerprint(network: fx.GraphModule) -> str:
    """SHA-256 of a graph: its operations, their options and all tensors."""
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


class _Kept:
    """Cached results for one hull, under `key` in a directory."""

    kind: ClassVar[str]
    what: ClassVar[str]

    def __init__(self, directory: Path, key: str) -> None:
        self.cache, self.key = Cache(self.kind, _METHOD, self.what, directory), key


_SLACK = 1e-6  # lengths are sums, of float32 at the least
Length = Annotated[float, Field(ge=0, le=1 + _SLACK)]


class KeptEdge(Record):
    """What is kept of an `edges.Edge`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    walked: Length
    failed: Length
    first_failure: Annotated[list[Length], Field(min_length=2, max_length=2)] | None
    margin_min: Figure | None
    pieces: Count
    rounding: Annotated[Figure, Field(ge=0)]
    unconfirmed: Length | None

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        most, (low, high) = self.walked + _SLACK, self.first_failure or (0.0, 0.0)
        lost = max(self.failed, self.unconfirmed or 0.0)
        if lost > most or low > high or (self.margin_min is None) == (self.walked > 0):
            raise PydanticCustomError("impossible", "the lengths do not fit each other")
        return self


class KeptEdges(RootModel[list[KeptEdge]]):
    """The edges of a hull, in their order."""


class EdgeCache(_Kept):
    """Cached results for the edges of one hull."""

    kind, what = "edges", "the walk of the edges"

    def load(self, count: int) -> list[KeptEdge] | None:
        """Cached results of `count` edges, in order; None if there are none."""

        def load(path: Path) -> list[KeptEdge]:
            kept = read_record(KeptEdges, path).root
            if len(kept) != count:
                raise SettingError("not what evaluate.py writes")
            return kept

        return self.cache.load(self.key, load)

    def save(self, edges: list[KeptEdge]) -> None:
        """Keep what is known."""
        self.cache.save(self.key, [edge.entries() for edge in edges], write_json)


class PieceCache(_Kept):
    """Cached subdomains of one hull, for one statement."""

    kind, what = "hulls", "the proof over pieces"

    def load(self, corners: int, figures: int) -> dict[str, Tensor] | None:
        """Cached subdomains, or None.

        Args:
            corners: number of corners.
            figures: number of figures per subdomain.
        """

        def load(path: Path) -> dict[str, Tensor]:
            kept = load_tensors(path)
            if not _whole(kept, corners, figures):
                raise SettingError("not what evaluate.py writes")
            return kept

        return self.cache.load(self.key, load)

    def save(self, kept: dict[str, Tensor]) -> None:
        """Keep what is known."""
        self.cache.save(self.key, kept, save_tensors)

    def ignore(self, reason: str) -> None:
        """Warn that the cached results are not used, with the reason."""
        self.cache.ignore(self.key, reason)


def _whole(kept: dict[str, Tensor], corners: int, figures: int) -> bool:
    """Whether all pieces are there, as `splitting.Splitting` needs them, and make up the hull."""
    counts = {name: len(kept[name]) if name in kept and kept[name].ndim else -1
              for name in ("volume", "held", "inner_held")}  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {name: (count,) for name, count in counts.items()}
    square = {"weights": "volume", "done": "held", "inner": "inner_held"}
    shapes |= {name: (counts[of], corners, corners) for name, of in square.items()}
    shapes |= {"figures": (counts["volume"], figures), "settled": (figures,), "there": (figures,),
               "numbers": (6,), "least": (corners,)}  # fmt: skip
    if {name: tuple(each.shape) for name, each in kept.items()} != shapes:
        return False
    if any(each.dtype != torch.float64 for each in kept.values()):
        return False
    volume, numbers = kept["volume"], kept["numbers"]
    if any(kept[name].isnan().any() for name in ("figures", "settled", "there")):
        return False
    if not (numbers.isfinite().all() and (numbers >= 0).all() and (volume > 0).all()):
        return False
    if not ((kept["least"] >= 0).all() and kept["least"].sum() < 1):
        return False
    weights = torch.cat([kept[name] for name in square])
    if not ((weights >= 0).all() and ((weights.sum(2) - 1).abs() < _SLACK).all()):
        return False
    return abs(float(volume.sum() + numbers[0]) - 1) < _SLACK
