"""SIGINT and SIGTERM: the status says so, what was found is kept, one line says how to go on."""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from feature_collisions import interrupts
from feature_collisions.data.files import load_tensors, save_tensors
from feature_collisions.interrupts import Interrupted, between_steps, interruptible
from feature_collisions.networks.mnist_mlp import MnistMLP
from helpers.commands import ROOT, run_command, start

SHORT = ("wandb.mode=disabled", "stop.min_steps=400", "stop.max_steps=400", "corner=[0,1]",
         "log.every=20", "log.checkpoint_every=1000",
         "classifier.weights=drawn.safetensors")  # fmt: skip

ONE = tuple(each for each in SHORT if not each.startswith("corner="))


@pytest.fixture(autouse=True)
def drawn(tmp_path):
    """Weights that were drawn and not trained: quick, and as good for these tests."""
    model = MnistMLP(torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "drawn.safetensors", model.state_dict())


@pytest.fixture
def told(monkeypatch):
    """Have a signal come after so many optimiser steps, counted over all searches."""

    def tell(number, at):
        from feature_collisions.search.parameterisations import Pixels

        project, steps = Pixels.project, iter(range(1, 10**9))

        def project_and_tell(self):
            project(self)
            if next(steps) == at:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(Pixels, "project", project_and_tell)

    return tell


def typed(message):
    """What a pasted line gives the script."""
    line = next(line for line in message.splitlines() if "To resume: " in line)
    python, script, *arguments = shlex.split(line.partition("To resume: ")[2])
    assert (python, script) == ("python", str(ROOT / "train.py"))
    return arguments


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_search_goes_on_at_the_step_where_a_signal_ended_it(
    tmp_path, told, capsys, number, status
):
    """Also in a place whose name Hydra and the shell read otherwise; to the same tensors."""
    assert run_command(tmp_path, "train.py", *SHORT, "hydra.run.dir=whole") is None
    told(number, 57)
    answer = run_command(tmp_path, "train.py", *SHORT, 'hydra.run.dir="it\'s a, {b}=1"')
    assert answer == status
    place = tmp_path / "it's a, {b}=1"
    assert not (place / "collision.safetensors").exists()
    checkpoint = torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["collision"]["step"] == 57
    error = capsys.readouterr().err
    assert f"interrupted by {signal.Signals(number).name}; written files are kept" in error
    arguments = typed(error)
    assert "ckpt_path=last" in arguments
    assert run_command(tmp_path, "train.py", *arguments) is None
    for name in ("metrics.csv", "collision.safetensors"):
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_search_that_is_continued_takes_no_step(tmp_path):
    quick = ("wandb.mode=disabled", "corner=0", "stop.min_steps=0", "hydra.run.dir=run",
             "classifier.weights=drawn.safetensors")  # fmt: skip
    assert run_command(tmp_path, "train.py", *quick) is None
    before = {name: (tmp_path / "run" / name).read_bytes()
              for name in ("metrics.csv", "collision.safetensors")}  # fmt: skip
    assert run_command(tmp_path, "train.py", *quick, "ckpt_path=last") is None
    for name, content in before.items():
        assert (tmp_path / "run" / name).read_bytes() == content


def test_a_signal_ends_the_whole_sweep_which_goes_on(tmp_path, told, capsys):
    """Job 0 was finished, job 1 had begun, job 2 had not."""
    sweep = (*ONE, "corner=0..2", "-m")
    assert run_command(tmp_path, "train.py", "hydra.sweep.dir=whole", *sweep) is None
    told(signal.SIGTERM, 457)
    assert run_command(tmp_path, "train.py", "hydra.sweep.dir=my sweep", *sweep) == 143
    place = tmp_path / "my sweep"
    assert sorted(path.parent.name for path in place.glob("*/config.yaml")) == ["0", "1"]
    assert run_command(tmp_path, "train.py", *typed(capsys.readouterr().err)) is None
    for job in "012":
        found, whole = (load_tensors(folder / job / "collision.safetensors")["corners"]
                        for folder in (place, tmp_path / "whole"))  # fmt: skip
        assert torch.equal(found, whole)


def test_a_signal_ends_all_pairs_which_go_on(tmp_path, told, capsys):
    (tmp_path / "pairs.csv").write_text("3,7\n1,4\n")
    told(signal.SIGTERM, 457)
    pairs = (*SHORT, "pairs=pairs.csv", "hydra.run.dir=many")
    assert run_command(tmp_path, "train.py", *pairs) == 143
    capture = capsys.readouterr()
    assert "pair 1" not in capture.out
    assert run_command(tmp_path, "train.py", *typed(capture.err)) is None
    assert len(list((tmp_path / "many").glob("*/collision.safetensors"))) == 2


@pytest.mark.parametrize("name", ["train_mnist_classifier", "load_data"])
def test_a_signal_before_the_first_step_leaves_nothing(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def told(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    module = "commands.train" if name == "load_data" else "networks.mnist_mlp"
    monkeypatch.setattr(f"feature_collisions.{module}.{name}", told)
    arguments = (*SHORT[:-1], "classifier.train=true")
    assert run_command(tmp_path, "train.py", *arguments) == 143
    assert typed(capsys.readouterr().err) == [*arguments]
    assert not list(tmp_path.glob("runs/mnist/*"))


def test_a_signal_ends_an_evaluation(tmp_path, monkeypatch, capsys):
    assert run_command(tmp_path, "train.py", *SHORT, "hydra.run.dir=runs/a b") is None

    def told(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("feature_collisions.commands.evaluate.evaluate", told)
    assert run_command(tmp_path, "evaluate.py", "samples=10") == 143
    line = capsys.readouterr().err.partition("To resume: ")[2]
    assert shlex.split(line)[1:] == [
        str(ROOT / "evaluate.py"), "samples=10", f"run={tmp_path}/runs/a b"
    ]  # fmt: skip


def test_stopped_leaves_whatever_a_library_makes_of_it():
    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except BaseException:
            raise RuntimeError("a library's own") from None

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"), interruptible():
        swallow()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_search_after_a_stopped_one_is_not_told_of_its_signal():
    with pytest.raises(Interrupted), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
    with between_steps() as is_interrupted:
        assert not is_interrupted()


def test_a_signal_waits_for_the_step_that_is_under_way():
    def step():
        with interruptible(), between_steps() as is_interrupted:
            assert not is_interrupted()
            os.kill(os.getpid(), signal.SIGINT)
            assert is_interrupted()
            done.append(True)

    done = []
    with pytest.raises(Interrupted):
        step()
    assert done == [True]


def test_the_second_signal_ends_at_once_its_echo_does_not(monkeypatch):
    """GNU timeout sends each signal twice."""

    def step():
        with interruptible(), between_steps() as is_interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_interrupted()
            monkeypatch.setattr(interrupts, "_ECHO", 0.0)
            monkeypatch.setattr(interrupts.os, "kill", lambda *call: sent.append(call))
            signal.raise_signal(signal.SIGTERM)
            sent.append(signal.getsignal(signal.SIGTERM))

    sent = []
    with pytest.raises(Interrupted):
        step()
    assert sent == [(os.getpid(), signal.SIGTERM), signal.SIG_DFL]


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_ends_all_processes_of_a_shared_search(tmp_path):
    """Told is the one that was started; its own processes end with it."""
    long = (*SHORT, "stop.min_steps=1000000", "stop.max_steps=1000000", "log.checkpoint_every=20")
    process = start("train.py", *long, "trainer.devices=2", "hydra.run.dir=run",
                    cwd=tmp_path, start_new_session=True)  # fmt: skip
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 200
    while not (checkpoints / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output = process.communicate()[0]
    assert process.returncode == 143
    assert "interrupted by SIGTERM; written files are kept. To resume: " in output
    assert "Traceback" not in output
    deadline = time.monotonic() + 60
    while alive(process.pid):  # nobody is left of the group; its resource tracker ends last
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(group):
    """Processes of a group that are no zombies."""
    lines = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True).stdout
    return [line for line in map(str.split, lines.splitlines()[1:])
            if line[0] == str(group) and line[1][0] != "Z"]  # fmt: skip


def ranks_of(process):
    """The processes that compute, of those that a process has started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in (place / "cmdline").read_bytes():
                found.append(place)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")
def test_a_killed_process_takes_those_with_it_that_it_has_spawned(tmp_path):
    """Its directory may then be another's; in a script's background they would ignore SIGINT."""
    endless = [each for each in SHORT if not each.startswith(("stop.", "log.checkpoint"))]
    options = ("stop.max_steps=10000000", "stop.min_steps=10000000", "log.checkpoint_every=20")
    process = start(
        "train.py", *endless, *options, "trainer.devices=2", "hydra.run.dir=run", cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    try:
        until((tmp_path / "run" / "checkpoints" / "last.ckpt").exists)
        ranks = ranks_of(process)
    finally:
        process.kill()
    assert len(ranks) == 2
    until(lambda: not any((place / "cmdline").exists() for place in ranks), 30)
    process.communicate(timeout=60)


def until(true, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
