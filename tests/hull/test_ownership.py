"""A run directory has one owner: who comes second is refused and writes nothing."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from feature_collisions.data.files import save_tensors
from feature_collisions.errors import SettingError
from feature_collisions.networks.mnist_mlp import MnistMLP
from feature_collisions.runs.directories import LOCK, claimed, remove_if_empty
from helpers.commands import run_command
from helpers.hulls import made_hull

QUICK = ("wandb.mode=disabled", "corner=0", "stop.min_steps=50", "stop.max_steps=50",
         "classifier.weights=drawn.safetensors")  # fmt: skip
OWN = f"""
import pathlib, sys, time
from filelock import FileLock
place = pathlib.Path(sys.argv[1])
place.mkdir(parents=True, exist_ok=True)
with FileLock(place / {str(LOCK)!r}, timeout=0):
    print("owned", flush=True)
    time.sleep(60)
"""  # as `claimed` does, in a process that need not wait for PyTorch


@pytest.fixture
def owner(tmp_path):
    """A process that owns `run`."""
    command = [sys.executable, "-c", OWN, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


@pytest.fixture
def drawn(tmp_path):
    model = MnistMLP(torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "drawn.safetensors", model.state_dict())


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_the_second_run_is_refused_until_the_first_is_killed(tmp_path, drawn, owner):
    run = tmp_path / "run"
    message = f"error: hydra.run.dir={run}: another process is using it; wait until it ends"
    before = contents(run)
    assert run_command(tmp_path, "train.py", *QUICK, "hydra.run.dir=run").startswith(message)
    (run / "config.yaml").write_text("name: mnist\n")
    more = ["hydra.run.dir=run", "ckpt_path=last"]
    assert run_command(tmp_path, "train.py", *QUICK, *more).startswith(message)
    assert contents(run) == before | {run / "config.yaml": b"name: mnist\n"}
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert run_command(tmp_path, "train.py", *QUICK, "hydra.run.dir=run") is None


def test_who_is_at_work_is_said_before_what_lies_there(tmp_path, drawn, owner):
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    answer = run_command(tmp_path, "train.py", *QUICK, "hydra.run.dir=run")
    assert "another process is using it" in answer


def test_an_evaluation_is_refused_where_another_process_is_at_work(tmp_path, owner):
    hull = made_hull(3)
    hull.summary["seconds_total"] = 1.0
    hull.save(tmp_path / "run")
    before = contents(tmp_path / "run")
    answer = run_command(tmp_path, "evaluate.py", "run=run")
    assert answer.startswith("error: run=run: another process is using it")
    assert contents(tmp_path / "run") == before


def test_a_pair_that_another_process_works_on_is_refused(tmp_path, drawn, capsys):
    (tmp_path / "pairs.csv").write_text("3,7\n1,4\n")
    place = tmp_path / "many" / "000_3_to_7"
    command = [sys.executable, "-c", OWN, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "owned\n"
        run_command(tmp_path, "train.py", *QUICK, "pairs=pairs.csv", "hydra.run.dir=many")
        process.kill()
    assert "another process is using it" in capsys.readouterr().out
    assert [path.name for path in place.iterdir()] == [LOCK]
    assert (tmp_path / "many" / "001_1_to_4" / "collision.safetensors").exists()


def test_an_owner_may_claim_again_and_gives_up_at_the_end(tmp_path):
    run = tmp_path / "run"
    with claimed(run, "run"), claimed(run, "run"):
        pass
    assert _claims(run)
    with claimed(run, "run"):
        assert not _claims(run)


def _claims(run):
    command = [sys.executable, "-c", OWN.replace("60", "0"), str(run)]
    return subprocess.run(command, capture_output=True, text=True).stdout == "owned\n"


def test_an_empty_directory_is_left_to_its_owner(tmp_path, owner):
    remove_if_empty(tmp_path / "run")
    assert (tmp_path / "run" / LOCK).exists()
    owner.kill()
    owner.wait()
    remove_if_empty(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_strangers_lock_is_not_opened(tmp_path, kind):
    victim, path = tmp_path / "victim", tmp_path / "run" / LOCK
    victim.write_text("mine")
    path.parent.mkdir()
    {"link": lambda: path.symlink_to(victim), "pipe": lambda: os.mkfifo(path),
     "folder": path.mkdir}[kind]()  # fmt: skip
    with (
        pytest.raises(SettingError, match=r"\.lock: must be a regular file"),
        claimed(path.parent, "run"),
    ):
        pass
    assert victim.read_text() == "mine"
