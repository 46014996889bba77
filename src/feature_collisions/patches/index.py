"""A compressed index of the database's windows (faiss); its candidates are ranked exactly.

It replaces the paper's index, Prioritized DCI (Li and Malik, 2017), which has no maintained
package. A window is described by 63 coordinates and the norm of the residual (`patch_windows`).
These are stored as 8-bit codes in lists around centres (IVF). A query searches the nearest lists.
"""

import hashlib
import logging
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.caches import Cache
from ..data.files import load_tensors, save_tensors
from ..errors import SettingError, first_line
from .build import locked
from .database import PatchDatabase
from .patch_windows import Descriptions, basis_of, windows_at

logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it logs how it is loaded
import faiss  # noqa: E402

_RECIPE = 1  # raise when the construction of the index changes
_DIMENSIONS = 63  # 64 with the residual; faiss is five times as slow if it is not a multiple of 16
# Assumed cosine between the residuals of a query and its match. The bound takes 1, but then a true
# match is often beyond the hundredth candidate; with 1/4 it was among the first 30 of every query.
_COSINE = 0.25
_PROBES = 64  # lists per query, or a 32nd of all if that is more
_TRAINING = 64  # training windows per list
_CHUNK = 64  # images described at once


class PatchIndex:
    """The index of a database, with the basis of its descriptions.

    Args:
        index: faiss's index of descriptions.
        descriptions: computes descriptions.
    """

    def __init__(self, index: Any, descriptions: Descriptions) -> None:
        self.index, self.descriptions = _on_gpu(index), descriptions

    def candidates(self, queries: Tensor, count: int) -> Tensor:
        """Indices (Q, count) of windows near each query (Q, C, w, w), padded with -1."""
        few, _ = self.descriptions.of_windows(queries)
        few[:, -1] *= _COSINE
        _, found = self.index.search(few.numpy(), count)
        return torch.from_numpy(found)


def open_index(database: PatchDatabase, progress: bool = True) -> PatchIndex:
    """Build the index next to the database, or load it.

    The file is faiss's, in the user's cache. A damaged index is built again; an index of other
    windows has another name.
    """
    cache = Cache("index", _RECIPE, "the index of patches", database.folder)
    with locked(database.folder):
        found = cache.get_or_make(
            f"index-window{database.window}-stride{database.stride}",
            lambda: _build(database, progress),
            lambda path: _read(database, path),
            _keep,
        )
    return PatchIndex(*found)


def _path_of(path: Path, basis: Tensor) -> Path:
    """Path of the index: its name contains the hash of its basis."""
    digest = hashlib.sha256(basis.numpy().tobytes()).hexdigest()[:12]
    return path.with_name(f"{path.name}-{digest}.faiss")


def _read(database: PatchDatabase, path: Path) -> tuple[Any, Descriptions]:
    try:
        basis = load_tensors(path)["basis"]
        index = faiss.read_index(str(_path_of(path, basis)))
        if (index.ntotal, index.d) == (len(database), basis.shape[1] + 1):
            return index, Descriptions(basis, database.window, database.stride)
    except (ValueError, KeyError, RuntimeError):  # faiss raises RuntimeError if a file is damaged
        pass
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    raise SettingError("it is cut off, or of another database")


def _keep(path: Path, built: tuple[Any, Descriptions]) -> None:
    index, descriptions = built
    _write(index, _path_of(path, descriptions.basis))
    save_tensors(path, {"basis": descriptions.basis})


def _write(index: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        faiss.write_index(index, str(temporary))
        os.replace(temporary, path)
    except RuntimeError as error:  # raised by faiss if the disk is full
        raise OSError(first_line(error)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _build(database: PatchDatabase, progress: bool) -> tuple[Any, Descriptions]:
    """Train on a sample, then add all windows chunk by chunk."""
    lists = 2 ** round(math.log2(len(database)) / 2)  # about the square root, so lists and
    lists = max(1, min(lists, len(database) // _TRAINING))  # their lengths grow alike
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(len(database), (8192,), generator=generator).unique()
    basis = basis_of(windows_at(database, sample).float() / 255, _DIMENSIONS)
    descriptions = Descriptions(basis, database.window, database.stride)
    size = basis.shape[1] + 1
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatL2(size), size, lists, faiss.ScalarQuantizer.QT_8bit
    )
    index.nprobe = max(_PROBES, lists // 32)
    index = _on_gpu(index)
    trained_on = math.ceil(lists * _TRAINING / database.places**2)
    some = torch.randperm(len(database.images), generator=generator)[:trained_on]
    parts = some.split(_CHUNK)
    bar = tqdm(total=len(parts), desc="Training the index", mininterval=0.5, disable=not progress)
    with bar:
        training = []
        for part in parts:
            training.append(descriptions.of_images(database.images[part])[0])
            bar.update()
        index.train(torch.cat(training).numpy())
    chunks = database.images.split(_CHUNK)
    for chunk in tqdm(chunks, "Indexing patches", mininterval=0.5, disable=not progress):
        index.add(descriptions.of_images(chunk)[0].numpy())
    return _on_cpu(index), descriptions


def _on_gpu(index: Any) -> Any:
    """Move the index to the first GPU if faiss-gpu is installed."""
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)


def _on_cpu(index: Any) -> Any:
    """Move the index to the CPU, from which it can be saved."""
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        return index
    return faiss.index_gpu_to_cpu(index)
