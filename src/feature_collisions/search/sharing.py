"""One search's corners shared out over processes, one a device.

Corners are independent of each other, so nothing but the decision to stop, the curves and the
checkpoints are exchanged: no gradient, as Lightning's own DDP would. The processes are spawned;
none runs the command line again.
"""

import csv
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from ..errors import CollisionError, SettingError
from ..settings.trainer import device_ids
from .callbacks import (
    Checkpoints,
    CollisionCallback,
    Curves,
    IntermediateImages,
    Progress,
    curve_terms,
    due,
    has_row,
)
from .checkpoints import JointCheckpointFile, join_rows
from .collision import Collision
from .together import Together, pipes_of
from .trainer import fit, make_trainer

_GRACE = 5  # seconds that the others have when one process has failed, before they are killed


class Shared(NamedTuple):
    """What the processes found: corners (K, C, H, W), steps, `Collision`'s seconds at most.

    `variation` (K,) is R(P) of composites, 0 of pixels.
    """

    corners: Tensor
    variation: Tensor
    steps: int
    seconds: float
    earlier: float


class Task(NamedTuple):
    """What every process is given.

    Attributes:
        search: the class `Search`, which each process makes one of.
        arguments: of it.
        rows: of each process, its corners' places among all.
        devices: one a process.
        pipes: between the processes, as `Together` takes them.
        reports: where each process says how it ended.
        corners, variation: what is found, (K, C, H, W) and (K,), in shared memory.
        threads: of torch, in each process.
    """

    search: Callable[..., Any]
    arguments: dict[str, Any]
    rows: list[list[int]]
    devices: list[int]
    pipes: list[list[Connection]]
    reports: list[Connection]
    corners: Tensor
    variation: Tensor
    threads: int


def search_shared(
    search: Callable[..., Any], arguments: dict[str, Any], logger: Logger | None
) -> Shared:
    """Run one search on several devices.

    Args:
        search: the class `Search`.
        arguments: of it; `trainer` names the devices.
        logger: gets the curves at the end.

    Raises:
        SettingError: for settings that a process refuses.
        CollisionError: when a process fails; the others are ended.
    """
    for name in ("hull", "distance"):
        if value := getattr(arguments["loss"], name):
            raise SettingError(
                f"loss.{name}={value}: takes all corners on one device; set loss.{name}=0, or "
                "trainer.devices=1"
            )
    corners, devices = arguments["corners"], device_ids(arguments["trainer"])
    count = min(len(devices), len(corners))
    context = multiprocessing.get_context("spawn")
    heard, reports = zip(*(context.Pipe(duplex=False) for _ in range(count)), strict=True)
    shape = (len(corners), *arguments["initial"].shape)
    task = Task(
        search,
        arguments,
        [list(range(rank, len(corners), count)) for rank in range(count)],
        devices,
        pipes_of(context, count),
        list(reports),
        torch.zeros(shape).share_memory_(),
        torch.zeros(len(corners)).share_memory_(),
        max(1, torch.get_num_threads() // count),
    )
    try:
        with _ended_together(spawn(_search_share, (task,), count, join=False)) as processes:
            while not processes.join(grace_period=_GRACE):
                pass
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise _in_own_words(heard, error) from None
    found = [report.recv() for report in heard]
    if arguments["directory"] is not None and logger:
        _log_curves(arguments["directory"] / "metrics.csv", logger)
    seconds, earlier = (max(each[name] for each in found) for name in ("seconds", "earlier"))
    return Shared(task.corners.clone(), task.variation.clone(), found[0]["steps"], seconds, earlier)


@contextmanager
def _ended_together(processes: Any) -> Iterator[Any]:
    """End every process when this one goes on, whatever the reason: a signal, say."""
    try:
        yield processes
    finally:
        for process in processes.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _search_share(rank: int, task: Task) -> None:
    """One process: its corners, on its device."""
    for each in (signal.SIGINT, signal.SIGTERM):  # the process that was told says so
        signal.signal(each, lambda number, _: sys.exit(128 + number))
    try:
        found = _search_rows(rank, task)
    except (SettingError, CollisionError, OSError) as error:
        told = (error.errno, error.strerror, error.filename) if isinstance(error, OSError) else ()
        task.reports[rank].send((type(error).__name__, told or (str(error),)))
        raise
    task.reports[rank].send(found)


def _search_rows(rank: int, task: Task) -> dict[str, Any]:
    torch.set_num_threads(task.threads)
    arguments, rows = task.arguments, task.rows
    directory, last = arguments["directory"], arguments["ckpt_path"]
    together = Together(rank, task.pipes[rank])
    own = {
        "corners": [arguments["corners"][place] for place in rows[rank]],
        "trainer": arguments["trainer"] | {"devices": _devices_of(rank, task.devices, arguments)},
        "directory": None,
        "ckpt_path": None,  # it is of all corners, and has been checked
    }
    search = task.search(**(arguments | own))
    module = search.module
    module.agree = together.agree
    callbacks: list[Callback] = [Progress()] if rank == 0 else []
    if directory is not None:
        log = search.log
        curves = Curves(
            directory / "metrics.csv", arguments["corners"], curve_terms(arguments["sources"])
        )
        keep = Checkpoints if rank == 0 else CheckpointParts
        callbacks += [
            JointCurves(curves, together, rows),
            IntermediateImages(directory / "images" / "steps", search.corners, log.images_every),
            keep(directory / "checkpoints", log.checkpoint_every),
        ]
    file = JointCheckpointFile(together, rows)
    fit(make_trainer(search.trainer, callbacks, directory, file), module, None, last)
    images, variation = module.parameterisation.penalised()
    task.corners[rows[rank]] = images.detach().float().cpu()
    task.variation[rows[rank]] = variation.detach().float().cpu()
    return {"steps": module.step, "seconds": module.seconds, "earlier": module.earlier}


class JointCurves(CollisionCallback):
    """One `metrics.csv` of all corners, which the first process writes.

    Args:
        curves: of all corners.
        together: this process's way to the others.
        rows: of each process, its corners' places among all.
    """

    def __init__(self, curves: Curves, together: Together, rows: Sequence[Sequence[int]]) -> None:
        self.curves, self.together, self.rows = curves, together, rows

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """See Curves."""
        if self.together.rank == 0:
            self.curves.on_train_start(trainer, module)

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Add one row; see Curves."""
        if not has_row(module):
            return
        own = torch.stack([module.curves[name] for name in self.curves.terms], 1)
        parts = self.together.gather(own.cpu())
        if parts:
            self.curves.add(trainer, module.step, join_rows(parts, self.rows).T)


class CheckpointParts(Checkpoints):
    """Hands a process's part to the first, which keeps the checkpoint, as often as it asks."""

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Take part when due, and at the end."""
        if due(module, self.every) or module.finished:
            trainer.save_checkpoint(self.folder / "last.ckpt")  # JointCheckpointFile writes none


def _devices_of(rank: int, devices: list[int], arguments: dict[str, Any]) -> int | list[int]:
    return 1 if arguments["trainer"]["accelerator"] == "cpu" else [devices[rank]]


_MENDABLE = {"SettingError": SettingError, "CollisionError": CollisionError}


def _in_own_words(heard: Sequence[Connection], error: Exception) -> Exception:
    """What the process that failed says; another may have failed for want of its answer."""
    told = [report.recv() for report in heard if report.poll()]
    failed = [each for each in told if isinstance(each, tuple)]
    if failed:
        kind, arguments = failed[0]
        return _MENDABLE.get(kind, OSError)(*arguments)
    last = str(error).strip().splitlines()[-1]
    return CollisionError(
        f"a process of trainer.devices failed ({last}); the others were ended. Checkpoints written "
        "before are kept: go on with ckpt_path=last"
    )


def _log_curves(path: Path, logger: Logger) -> None:
    for row in csv.DictReader(path.read_text().splitlines()):
        values = {name: float(value) for name, value in row.items() if name != "step"}
        logger.log_metrics(values, step=int(row["step"]))
