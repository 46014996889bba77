"""Certificates: what is proved of a hull, as a file that may be a stranger's.

It says into which subdomains the hull, or a part of it, is cut and on which of these a statement is
said to hold. The check takes nothing else from it, so a wrong one can claim less or be refused, and
never more.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.files import load_tensors, save_tensors
from ..errors import SettingError
from ..networks.weights import weights_hash
from ..proofs.problem import Cover, Problem
from .bisections import WHOLE, Node, Size, read_tree, size_of, tree_of

Kind = Literal["class", "collision"]
_MOST = 2**24  # nodes of a tree
_REMEDY = "prove it again, without proof.check"


@dataclass(frozen=True)
class Statement:
    """What is proved: on some of a hull, the class, or a feature error of at most `limit`.

    Attributes:
        problem: the hull and its target.
        kind: `class` or `collision`.
    """

    problem: Problem
    kind: Kind

    @property
    def file(self) -> str:
        """The certificate's name in a run directory."""
        return f"proof_{self.kind}.safetensors"

    @property
    def aside(self) -> str:
        """The name of a certificate that claims more than what was proved here."""
        return f"proof_{self.kind}_claimed.safetensors"

    def tensors(self) -> dict[str, Tensor]:
        """What a certificate says it is of, which the checker compares."""
        problem = self.problem
        said = [problem.target_class] if self.kind == "class" else [problem.limit]
        found = {
            "network": torch.tensor(list(bytes.fromhex(weights_hash(problem.graph.model)))),
            "corners": _digest(problem.corners),
            "statement": torch.tensor(said, dtype=torch.float64),
        }
        if self.kind == "collision":
            found["target"] = _digest(problem.target)
            found["layer"] = torch.tensor(list(hashlib.sha256(problem.layer.encode()).digest()))
        return found


def _digest(images: Tensor) -> Tensor:
    content = images.detach().cpu().contiguous().numpy().tobytes()
    return torch.tensor(list(hashlib.sha256(content).digest()))


def write_certificate(directory: Path, statement: Statement, covers: Sequence[Cover]) -> None:
    """Write what is proved; a certificate that claims more, maybe a stranger's, is put aside.

    Args:
        directory: the run's.
        statement: what holds.
        covers: of the hull, and then of the part of it that the proved size rests on.
    """
    if not any(cover.holds.any() for cover in covers):
        return
    found = statement.tensors()
    for name, cover in zip(("tree", "inner"), covers, strict=False):
        arrays = (each.cpu().numpy() for each in (cover.weights, cover.holds, cover.least))
        found[name] = torch.from_numpy(tree_of(*arrays))
    if len(covers) > 1:
        found["least"] = (covers[1].least.cpu() * WHOLE).long()
    path, aside = directory / statement.file, directory / statement.aside
    old, new = _claimed_at(path, statement), claimed(_parts(found, len(statement.problem.corners)))
    if old.exceeds(new) and old.exceeds(_claimed_at(aside, statement)):
        path.replace(aside)
    save_tensors(path, found)


def _claimed_at(path: Path, statement: Statement) -> Size:
    try:
        return claimed(read_certificate(path, statement))
    except SettingError:
        return Size(0.0, 0.0)


def claimed(parts: Sequence[Node]) -> Size:
    """On how much of the hull the statement is said to hold, by the best of some parts."""
    return Size.best(
        size_of(part, [leaf for leaf in part.leaves() if not leaf.holds]) for part in parts
    )


def read_certificate(path: Path, statement: Statement) -> list[Node]:
    """The hull as a certificate cuts it, and then a part of the hull, if there is one.

    Raises:
        SettingError: for a file that is missing, damaged, of another statement, or no such trees.
    """
    found, expected = load_tensors(path), statement.tensors()
    if found.keys() - {"inner", "least"} != {"tree", *expected}:
        raise SettingError(path, None, "is no certificate of this statement", _REMEDY)
    for name, value in expected.items():
        if found[name].dtype != value.dtype or not torch.equal(found[name], value):
            raise SettingError(path, None, f"is of another {name}", _REMEDY)
    try:
        return _parts(found, len(statement.problem.corners))
    except ValueError as error:
        raise SettingError(path, None, f"its tree {error}", _REMEDY) from None


def _parts(found: dict[str, Tensor], corners: int) -> list[Node]:
    """The hull and its part.

    Raises:
        ValueError: for what are no such trees.
    """
    least = torch.zeros(corners, dtype=torch.int64)
    parts = [_part(found["tree"], least)]
    if found.keys() & {"inner", "least"}:
        begin = found.get("least", least)
        if begin.dtype != least.dtype or begin.shape != least.shape:
            raise ValueError("is of no part of the hull")
        parts.append(_part(found.get("inner", least), begin))
    return parts


def _part(tree: Tensor, least: Tensor) -> Node:
    if tree.dtype != torch.int16 or tree.shape[1:] != (2,) or not 0 < len(tree) <= _MOST:
        raise ValueError(f"is {tree.dtype} {tuple(tree.shape)}")
    return read_tree(tree.numpy().astype(np.int64), least.numpy())
