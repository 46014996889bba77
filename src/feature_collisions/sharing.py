"""One search's corners shared out over processes, one a device.

Corners are independent of each other, so nothing but the decision to stop is exchanged: no
gradient, as Lightning's own DDP would. The processes are spawned; none runs the command line again.
"""

import csv
import multiprocessing
import signal
import sys
import tempfile
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from .callbacks import Checkpoints, Curves, IntermediateImages, Progress, curve_terms
from .errors import CollisionError, SettingError
from .files import load_tensors, read_json, save_tensors, write_json, write_text
from .fitting import fit, make_trainer
from .precision import device_ids

_PATIENCE = 5.0  # seconds for a process to end by itself
_MENDABLE = {"SettingError": SettingError, "CollisionError": CollisionError}


class Shared(NamedTuple):
    """What the processes found: corners (K, C, H, W), steps, `Collision`'s seconds at most.

    `variation` (K,) is R(P) of composites, 0 of pixels.
    """

    corners: Tensor
    variation: Tensor
    steps: int
    seconds: float
    earlier: float


def search_shared(arguments: dict[str, Any], logger: Logger | None) -> Shared:
    """Run one search on several devices.

    Args:
        arguments: of `Search`; `trainer` names the devices.
        logger: gets the curves at the end.

    Raises:
        SettingError: for settings that a process refuses.
        CollisionError: when a process fails; the others are ended.
    """
    if arguments["ckpt_path"] is not None:
        raise SettingError(
            f"ckpt_path={arguments['ckpt_path']}: was written on one device; continue it with "
            "trainer.devices=1"
        )
    for name in ("hull", "distance"):
        if value := getattr(arguments["loss"], name):
            raise SettingError(
                f"loss.{name}={value}: takes all corners on one device; set loss.{name}=0, or "
                "trainer.devices=1"
            )
    corners, devices = arguments["corners"], device_ids(arguments["trainer"])
    count = min(len(devices), len(corners))
    shares = [corners[rank::count] for rank in range(count)]
    context = multiprocessing.get_context("spawn")
    votes = torch.zeros(count, dtype=torch.bool).share_memory_()
    threads = max(1, torch.get_num_threads() // count)
    with tempfile.TemporaryDirectory() as folder:
        # Kept in `work` while the processes start: an unreferenced barrier is gone at once.
        work = (context.Barrier(count), shares, devices, arguments, Path(folder), votes, threads)
        try:
            _wait(spawn(_work, work, count, join=False))
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise _in_own_words(Path(folder), error) from None
        order = torch.tensor([corners.index(corner) for share in shares for corner in share])
        found = [load_tensors(Path(folder) / f"{r}.safetensors") for r in range(count)]
        reports = [read_json(Path(folder) / f"{rank}.json") for rank in range(count)]
    if arguments["directory"] is not None:
        path = arguments["directory"] / "metrics.csv"
        _join_curves(Curves(path, corners, curve_terms(arguments["sources"])), count, logger)
    seconds, earlier = (max(report[key] for report in reports) for key in ("seconds", "earlier"))
    corners_found, variation = (
        torch.cat([share[name] for share in found])[order.argsort()]
        for name in ("corners", "variation")
    )
    return Shared(corners_found, variation, reports[0]["steps"], seconds, earlier)


def _wait(processes: Any) -> None:
    """Wait for all processes; whatever ends the waiting ends them too."""
    try:
        while not processes.join():
            pass
    finally:
        for process in processes.processes:
            process.terminate()
        for process in processes.processes:
            process.join(_PATIENCE)
            process.kill()
            process.join()


def _work(rank: int, *arguments: Any) -> None:
    """`_search_share`, which a signal ends without a word: the command that was typed says it."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    _search_share(rank, *arguments)


def _search_share(
    rank: int,
    barrier: Barrier,
    shares: list[list[int]],
    devices: list[int],
    arguments: dict[str, Any],
    folder: Path,
    votes: Tensor,
    threads: int,
) -> None:
    """One process: its corners, on its device."""
    from .search import Search  # which imports this file

    torch.set_num_threads(threads)
    directory = arguments["directory"]
    place = directory and directory / "checkpoints" / f"rank_{rank}_of_{len(shares)}"
    last = place / "last.ckpt" if place and (place / "last.ckpt").exists() else None
    own = {
        "corners": shares[rank],
        "trainer": arguments["trainer"] | {"devices": _devices_of(rank, devices, arguments)},
        "directory": None,
        "ckpt_path": last,
    }

    def agree(converged: bool) -> bool:
        votes[rank] = converged
        barrier.wait()
        everywhere = bool(votes.all())
        barrier.wait()
        return everywhere

    terms = curve_terms(arguments["sources"])
    try:
        search = Search(**(arguments | own))
        search.module.agree = agree
        callbacks: list[Callback] = [Progress()] if rank == 0 else []
        if directory is not None:
            steps, log = directory / "images" / "steps", search.log
            callbacks += [
                Curves(_curves_of(directory, rank), search.corners, terms),
                IntermediateImages(steps, search.corners, log.images_every),
                Checkpoints(place, log.checkpoint_every),
            ]
        fit(make_trainer(search.trainer, callbacks, directory), search.module, None, last)
    except (SettingError, CollisionError) as error:
        write_json(folder / "error.json", [type(error).__name__, str(error)])
        raise
    module = search.module
    images, variation = module.parameterisation.penalised()
    found = {"corners": images.float(), "variation": variation.float()}
    save_tensors(folder / f"{rank}.safetensors", found)
    figures = {"steps": module.step, "seconds": module.seconds, "earlier": module.earlier}
    write_json(folder / f"{rank}.json", figures)


def _devices_of(rank: int, devices: list[int], arguments: dict[str, Any]) -> int | list[int]:
    return 1 if arguments["trainer"]["accelerator"] == "cpu" else [devices[rank]]


def _in_own_words(folder: Path, error: Exception) -> Exception:
    path = folder / "error.json"
    if path.exists():
        kind, message = read_json(path)
        return _MENDABLE[kind](message)
    last = str(error).strip().splitlines()[-1]
    return CollisionError(
        f"a process of trainer.devices failed ({last}); the others were ended. Checkpoints written "
        "before are kept: go on with ckpt_path=last"
    )


def _curves_of(directory: Path, rank: int) -> Path:
    return directory / f"metrics.rank_{rank}.csv"


def _join_curves(curves: Curves, count: int, logger: Logger | None) -> None:
    """One `metrics.csv` of the processes' own, in the order one process would write."""
    paths = [_curves_of(curves.path.parent, rank) for rank in range(count)]
    tables = [list(csv.DictReader(path.read_text().splitlines())) for path in paths]
    rows = [{k: v for row in step for k, v in row.items()} for step in zip(*tables, strict=True)]
    names = curves.names()
    lines = [",".join(names), *(",".join(row[name] for name in names) for row in rows)]
    write_text(curves.path, "\n".join(lines) + "\n")
    for path in paths:
        path.unlink()
    if logger:
        for row in rows:
            values = {name: float(row[name]) for name in names[1:]}
            logger.log_metrics(values, step=int(row["step"]))
