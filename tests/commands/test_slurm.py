"""The documented commands on a real SLURM of this one machine: docs/how-to/scale.md."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pytest
import torch

from feature_collisions.data.files import save_tensors
from feature_collisions.networks.mnist_mlp import MnistMLP
from helpers.commands import ROOT, start
from helpers.surveys import BOTH, MEASURE, SWEEP, write_networks

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(600),  # a minute each on a quiet machine; SLURM waits for nobody
    pytest.mark.skipif(
        not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))),
        reason="SLURM is not there (apt-get install slurm-wlm munge)",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="SLURM's daemons are started by root"),
]
CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """One node that is this machine, with daemons, keys and ports of its own."""
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    with socket.socket() as one, socket.socket() as other:
        one.bind(("", 0))
        other.bind(("", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=ports))
    files = ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("seed-file", "seed")
    munge = ["munged", "--foreground", "--force", f"--log-file={folder}/munge.log"]
    munge += [f"--{option}={folder}/munge.{name}" for option, name in files]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
            if name != "SLURM_CONF":
                patch.delenv(name)
        daemons = []
        try:
            for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
                with (folder / f"{command[0]}.txt").open("w") as log:
                    daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
                until((folder / "munge.socket").exists)
            until(lambda: told("sinfo", "-h", "-o", "%t") == "idle")
            yield folder
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


def told(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def until(true, seconds=200):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def place(tmp_path):
    """A folder with a classifier that costs no training."""
    weights = MnistMLP(torch.Generator().manual_seed(0)).state_dict()
    save_tensors(tmp_path / "weights.safetensors", weights)
    return tmp_path


def arguments(place, steps):
    return (
        f"classifier.weights={place / 'weights.safetensors'}", "wandb.mode=disabled",
        f"stop.min_steps={steps}", f"stop.max_steps={steps}", "log.checkpoint_every=50",
    )  # fmt: skip


def summary(directory):
    return json.loads((directory / "summary.json").read_text())


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["collision"]["step"]


LAUNCHER = (
    "hydra/launcher=submitit_slurm", "hydra.launcher.partition=main",
    "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=10",
)  # fmt: skip


def sweep(place, steps, *more):
    return start(
        "train.py", "-m", *arguments(place, steps), "corner=0..1", f"hydra.sweep.dir={place}/sweep",
        *LAUNCHER, *more, cwd=place,
    )  # fmt: skip


def test_a_sweep_is_killed_and_goes_on(place):
    """By hydra-submitit: one job per corner, both killed by SLURM, then continued to their end."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher is not there")
    first = sweep(place, 10**7)
    checkpoints = [place / "sweep" / job / "checkpoints" / "last.ckpt" for job in "01"]
    until(lambda: all(path.exists() for path in checkpoints))
    subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], check=True)
    first.kill()  # without accounting, submitit does not see its jobs end
    first.communicate(timeout=60)
    until(lambda: not told("squeue", "-h"))
    steps = [step_of(path) for path in checkpoints]
    assert min(steps) >= 50
    second = sweep(place, max(steps) + 100, "ckpt_path=last")
    said, _ = second.communicate(timeout=200)
    assert second.returncode == 0, said
    for job in "01":
        found = summary(place / "sweep" / job)
        assert found["steps"] == max(steps) + 100
        assert [entry["corner"] for entry in found["corners"]] == [int(job)]


def test_a_survey_of_many_jobs_is_one_table(tmp_path, digits):
    """A job for each network, at the same time; evaluate.py then compares them pair by pair."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the launcher is not there")
    write_networks(tmp_path, digits)
    said, _ = start(
        "train.py", *SWEEP, "pairs=random:2", "hydra.sweep.dir=survey", "-m", *LAUNCHER,
        cwd=tmp_path,
    ).communicate(timeout=300)  # fmt: skip
    assert "Traceback" not in said
    jobs = {path.name for path in (tmp_path / "survey" / ".submitit").glob("[0-9]*_*")}
    assert len(jobs) == 2
    pairs = [json.loads((tmp_path / "survey" / job / "pairs.json").read_text()) for job in "01"]
    assert [(pair["initial"], pair["target"]) for pair in pairs[0]] == [
        (pair["initial"], pair["target"]) for pair in pairs[1]
    ]
    evaluation = start("evaluate.py", "run=survey", BOTH, *MEASURE, cwd=tmp_path)
    said, _ = evaluation.communicate(timeout=200)
    assert evaluation.returncode == 0, said
    with (tmp_path / "survey" / "survey.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == ["survey_networks:plain", "survey_networks:clipped"]


JOB = """#!/bin/bash
#SBATCH --time=2 --signal=B:TERM@60 --requeue --open-mode=append --output={place}/job.txt
{python} {root}/train.py {arguments} hydra.run.dir={place}/run ckpt_path=last &
trap 'kill -TERM $!; wait $!; scontrol requeue $SLURM_JOB_ID' TERM
wait
"""


def test_a_job_that_slurm_ends_at_its_time_limit_goes_on_in_the_next(place):
    """SIGTERM, a checkpoint, requeued: what is left of the steps is taken by the same script."""
    command = " ".join(arguments(place, 10**7))
    job = JOB.format(place=place, python=sys.executable, root=ROOT, arguments=command)
    (place / "job.sh").write_text(job)
    number = told("sbatch", "--parsable", str(place / "job.sh"))
    last = place / "run" / "checkpoints" / "last.ckpt"

    hurried = []

    def restarts():
        shown = told("scontrol", "show", "job", number)
        # SLURM leaves two minutes before it starts a job anew; in the second in which the job was
        # killed its daemon would refuse it.
        if "Reason=BeginTime" in shown and not hurried:
            hurried.append(told("scontrol", "update", f"JobId={number}", "StartTime=now+5"))
        return int(shown.split("Restarts=")[1].split()[0])

    until(lambda: restarts() >= 0 and last.exists())
    before, first = restarts(), step_of(last)
    until(lambda: restarts() > before)
    assert "interrupted by SIGTERM; written files are kept" in (place / "job.txt").read_text()
    kept = step_of(last)
    assert kept > first >= 50
    until(lambda: restarts() > before and step_of(last) > kept)
    subprocess.run(["scancel", number], check=True)
