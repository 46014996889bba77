"""Lightning strategy for a search on several devices: each rank owns some of the corners.

Corners are independent, so gradients are not averaged over ranks as in DDP. Terms of several
corners, decisions and files go through Lightning's collectives. The first process spawns the ranks.
None runs the command line again, so a sweep does not start again in each of them.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.launcher import _Launcher
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from ..errors import CollisionError, SettingError
from ..interrupts import Interrupted, between_steps, interruptible, is_interrupted
from .lightning_module import Collision

_PATIENCE = timedelta(minutes=30)  # torch's default; compilation may delay a rank
_GRACE = 5  # seconds before the other ranks are killed after one failed
_HOST = "127.0.0.1"


class CornersOverRanks(DDPStrategy):
    """Spawned ranks that own corners: gloo between CPUs, NCCL between GPUs; one machine.

    From DDP it has the process group, the collectives and one device per rank. The module is not
    wrapped (Lightning has no public strategy without averaged gradients). `Collision.setup` keeps
    the rank's corners.

    Args:
        patience: how long a rank waits for another before it gives up.
    """

    port: int  # of the launcher's store, which connects the ranks

    def __init__(self, patience: timedelta = _PATIENCE) -> None:
        super().__init__(start_method="spawn", timeout=patience)
        self.patience = patience

    def _configure_launcher(self) -> None:
        self._launcher = RankLauncher(self)

    def configure_ddp(self) -> None:
        """Do not wrap the module: every rank has its corners' gradient."""

    def setup_distributed(self) -> None:
        """Connect through the launcher's store, whose port is known."""
        self.set_world_ranks()
        self._process_group_backend = self._get_process_group_backend()
        dist.init_process_group(
            self._process_group_backend,
            store=TCPStore(_HOST, self.port, is_master=False, timeout=self.patience),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=self.patience,
            device_id=None if self.root_device.type == "cpu" else self.root_device,
        )


class RankLauncher(_Launcher):
    """Spawns the ranks, returns the first one's result, and ends all if one fails.

    Lightning's launcher for spawned processes returns the whole network through a temporary file,
    and reports errors as the text of a traceback.
    """

    def __init__(self, strategy: CornersOverRanks) -> None:
        self.strategy = strategy

    @property
    def is_interactive_compatible(self) -> bool:
        """Whether it works in notebooks: if the model is imported, so that it can be pickled."""
        return True

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Trainer, **kwargs: Any
    ) -> None:
        """Run `function`, a method of `trainer`, in every rank; `found` of its module is set here.

        Raises:
            SettingError, CollisionError, OSError: the error of a rank.
        """
        module = trainer.lightning_module
        assert isinstance(module, Collision)
        module.cpu()  # to free the GPU for the ranks' copies
        store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        self.strategy.port = store.port
        count = self.strategy.num_processes
        heard, reports = zip(
            *(multiprocessing.get_context("spawn").Pipe(duplex=False) for _ in range(count)),
            strict=True,
        )
        threads = max(1, torch.get_num_threads() // count)
        work = (function, args, kwargs, reports, threads)
        said: list[Any] = [None] * count
        try:
            spawned = start_processes(_run_rank, work, count, join=False, start_method="spawn")
            with _ended_together(spawned) as ranks:
                _await(ranks, heard, said)
        except (ProcessRaisedException, ProcessExitedException) as error:
            _listen(heard, said)
            raise in_own_words(said, error) from None
        module.found = said[0]
        if module.found is None and not is_interrupted():
            raise CollisionError(
                "a process of trainer.devices was interrupted, and the others with it; resume with "
                "ckpt_path=last"
            )

    def kill(self, signum: Any) -> None:
        """Do nothing: the ranks end with `launch`."""

    def __getstate__(self) -> dict[str, Any]:
        return {"strategy": self.strategy}


def _run_rank(
    rank: int,
    function: Any,  # a method of the Trainer
    args: Any,
    kwargs: Any,
    reports: Sequence[Connection],
    threads: int,
) -> None:
    """One rank's process. A signal ends the steps of all ranks at the next check."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    os.environ["LOCAL_RANK"] = str(rank)
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:  # a search stays on one machine, whatever its name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    module, trainer = args[0], function.__self__
    # On SIGTERM Lightning starts a collective at any point of the program. Another rank may wait
    # in a different collective, and both hang. There is no public option against it.
    trainer._signal_connector.register_signal_handlers = _leave_signals
    try:
        with interruptible(), between_steps(), quiet_lightning():
            function(*args, **kwargs)
    except Interrupted:
        return
    except (SettingError, CollisionError, OSError) as error:
        reports[rank].send(error)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        reports[0].send_bytes(pickle.dumps(module.found))  # `send` would share its memory


def _end_with_parent() -> None:
    """End this process when its parent ends.

    A killed parent no longer locks the run directory, and another process may resume there.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _leave_signals() -> None:
    """Disable Lightning's signal handlers: `interruptible` handles signals."""


def _await(ranks: ProcessContext, heard: Sequence[Connection], said: list[Any]) -> None:
    """Wait until all ranks have ended, and receive their results; forward signals to them."""
    passed_on = False
    while not ranks.join(timeout=0.1, grace_period=_GRACE):
        _listen(heard, said)
        if is_interrupted() and not passed_on:
            passed_on = True
            for process in ranks.processes:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)
    _listen(heard, said)


def _listen(heard: Sequence[Connection], said: list[Any]) -> None:
    """Receive each rank's result or error."""
    for rank, connection in enumerate(heard):
        if connection.poll():
            said[rank] = connection.recv()


@contextmanager
def _ended_together(ranks: ProcessContext) -> Iterator[ProcessContext]:
    """End all ranks on leaving the block, for whatever reason."""
    try:
        yield ranks
    finally:
        for process in ranks.processes:
            if process.is_alive():
                process.kill()
            process.join()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages about the hardware, and warnings that do not apply."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The frozen network is in eval mode on purpose.
            warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")
            # One process is right, but Lightning recommends srun if SLURM is installed.
            warnings.filterwarnings("ignore", ".*srun. command is available")
            # The search runs on the device of its settings.
            warnings.filterwarnings("ignore", "GPU available but not used")
            # Lightning 2.6 uses functions that torch 2.12 deprecates.
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
            warnings.filterwarnings("ignore", "torch.distributed.nn.functional.* is deprecated")
            yield
    finally:
        logger.setLevel(level)


def in_own_words(said: Sequence[Any], error: Exception) -> Exception:
    """The error of the rank that failed; the others may have failed for want of its answer.

    Args:
        said: by rank, what was found or an error; None for a rank that said nothing.
        error: how the ranks ended.
    """
    failed = [each for each in said if isinstance(each, Exception)]
    if failed:
        return failed[0]
    last = str(error).strip().splitlines()[-1]
    return CollisionError(
        f"a process of trainer.devices failed ({last}); the others were stopped. Saved checkpoints "
        "are kept: resume with ckpt_path=last, and trainer.devices=1 if it happens again"
    )
