"""Certificates: what is proved of a hull, as a file that may be a stranger's.

It says into which subdomains the hull is cut and on which of these a statement is said to hold. The
check takes nothing else from it, so a wrong one can claim less or be refused, and never more.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.files import load_tensors, save_tensors
from ..errors import SettingError
from ..networks.weights import weights_hash
from ..proofs.problem import Problem
from .bisections import Node, read_tree, tree_of

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


def write_certificate(
    directory: Path, statement: Statement, weights: Tensor, holds: Tensor
) -> None:
    """Write what is proved, unless the certificate that is there says more of the same hull.

    Args:
        directory: the run's.
        statement: what holds.
        weights: (n, K, K) of the vertices of subdomains that cover the hull.
        holds: (n,) on which of them.
    """
    if not holds.any():
        return
    tree = tree_of(weights.cpu().numpy(), holds.cpu().numpy())
    path = directory / statement.file
    try:
        old = share_of(read_certificate(path, statement))
    except SettingError:
        old = 0.0
    if old <= share_of(read_tree(tree, weights.shape[2])):
        save_tensors(path, {"tree": torch.from_numpy(tree)} | statement.tensors())


def share_of(hull: Node) -> float:
    """The share of the hull's volume on which the statement is said to hold."""
    return float(sum(leaf.volume for leaf in hull.leaves() if leaf.holds))


def read_certificate(path: Path, statement: Statement) -> Node:
    """The hull as a certificate cuts it.

    Raises:
        SettingError: for a file that is missing, damaged, of another statement, or no such tree.
    """
    found, expected = load_tensors(path), statement.tensors()
    if found.keys() != {"tree", *expected}:
        raise SettingError(path, None, "is no certificate of this statement", _REMEDY)
    for name, value in expected.items():
        if found[name].dtype != value.dtype or not torch.equal(found[name], value):
            raise SettingError(path, None, f"is of another {name}", _REMEDY)
    tree = found["tree"]
    if tree.dtype != torch.int16 or tree.shape[1:] != (2,) or not 0 < len(tree) <= _MOST:
        raise SettingError(path, None, f"its tree is {tree.dtype} {tuple(tree.shape)}", _REMEDY)
    try:
        return read_tree(tree.numpy().astype(np.int64), len(statement.problem.corners))
    except ValueError as error:
        raise SettingError(path, None, f"its tree {error}", _REMEDY) from None
