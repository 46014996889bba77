"""On a cluster: SLURM installed, or inside one of its allocations."""

import os

import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from feature_collisions.search.find_corners import find_corners
from feature_collisions.settings.search import LogSettings, LossSettings, StopSettings

# What jobs see: `salloc`, a batch script that asks for tasks, and one of several `srun` started.
ALLOCATIONS = {
    "installed": {},
    "salloc": {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "1"},
    "named salloc": {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "corners", "SLURM_NTASKS": "4"},
    "sbatch": {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "job.sh",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    },
    "srun": {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "python",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
    },
    "torchrun": {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "7"},
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with `srun`, and no variable of an allocation that the tests run in."""

    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}{os.pathsep}{os.environ['PATH']}")


def search(shift, shift_images, directory):
    return find_corners(
        shift,
        "hidden",
        *shift_images,
        corners=[0, 1],
        loss=LossSettings.paper(beta=0.1),
        stop=StopSettings(None, 0, 20, None, None),
        log=LogSettings(every=10, checkpoint_every=10),
        directory=directory,
    )


def test_a_gpu_that_is_not_asked_for_is_not_spoken_of(shift, shift_images, tmp_path, monkeypatch):
    """Warnings are errors here: Lightning has one for a search on the CPU beside a GPU."""

    class There(CUDAAccelerator):
        @staticmethod
        def is_available():
            return True

    monkeypatch.setattr("lightning.pytorch.trainer.setup.CUDAAccelerator", There)
    assert search(shift, shift_images, tmp_path).corners.isfinite().all()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_search_is_the_same_on_a_cluster(
    shift, shift_images, slurm, tmp_path, monkeypatch, allocation
):
    """Warnings are errors here: Lightning's hint about srun would be one."""
    with monkeypatch.context() as outside:
        outside.setenv("PATH", "/usr/bin:/bin")
        expected = search(shift, shift_images, tmp_path / "outside")
    for name, value in ALLOCATIONS[allocation].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", int(ALLOCATIONS[allocation].get("SLURM_PROCID", 0)))
    found = search(shift, shift_images, tmp_path / "inside")
    assert torch.equal(found.corners, expected.corners)
    assert rank_zero_only.rank == 0  # W&B's logger writes on this rank alone
    inside, outside = (sorted(p.name for p in (tmp_path / n).rglob("*")) for n in
                       ("inside", "outside"))  # fmt: skip
    assert inside == outside
