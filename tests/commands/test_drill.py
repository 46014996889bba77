"""Kills at random moments: `pytest -m drill -s`. Whatever was killed is resumed as documented, and
must end as if nothing had happened, with no file more or less."""

import contextlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time

import pytest
import torch

from feature_collisions.data.files import save_tensors
from feature_collisions.networks.mnist_mlp import MnistMLP
from helpers.commands import ROOT
from helpers.patches import SETTINGS, images_of

pytestmark = [pytest.mark.drill, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("DRILL_KILLS", "20"))
_MOST = 120  # seconds that one undisturbed command may take
QUICK = (
    "wandb.mode=disabled", "classifier.weights=weights.safetensors", "stop.max_steps=600",
    "stop.min_steps=600", "log.every=10", "log.checkpoint_every=50", "log.images_every=200",
)  # fmt: skip

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["lightning.pytorch", "torchmetrics", "hydra", "wandb", "feature_collisions.commands.train",
     "feature_collisions.search.find_corners", "feature_collisions.evaluation.evaluate",
     "feature_collisions.report.report", "feature_collisions.report.wandb_logs"]
)  # fmt: skip


def in_own_group(folder, work, *arguments):
    """What a process of the drill does: `work`, with its own caches and temporary files."""
    os.setsid()
    os.chdir(folder)
    for variable, name in (("XDG_CACHE_HOME", "cache"), ("TMPDIR", "tmp")):
        os.environ[variable] = str(folder / name)
        (folder / name).mkdir(exist_ok=True)
    tempfile.tempdir = None
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    work(*arguments)


def command(script, *arguments):
    """A user's command."""
    sys.argv = [str(ROOT / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def build_patches():
    """A patch database and its index, of images that take a while to read."""
    from feature_collisions.patches.database import open_database
    from feature_collisions.patches.index import open_index

    pixels = torch.randint(256, (600, 3, 28, 28), generator=torch.Generator().manual_seed(0))
    images = images_of(pixels.to(torch.uint8))
    read = type(images).at_side

    def slowly(self, index, side):
        time.sleep(0.004)
        return read(self, index, side)

    type(images).at_side = slowly
    open_index(open_database(SETTINGS, images, 0))


def begin(folder, works):
    processes = [context.Process(target=in_own_group, args=(folder, *work)) for work in works]
    for process in processes:
        process.start()
    return processes


def to_the_end(folder, works):
    started = time.monotonic()
    processes = begin(folder, works)
    for process in processes:
        process.join(_MOST)
    said = (folder / "log.txt").read_text()[-3000:]
    assert [process.exitcode for process in processes] == [0] * len(works), said
    return time.monotonic() - started


def drill(name, tmp_path, works, resumed, prepare=lambda folder: None):
    """Kill `works`, go on with `resumed(folder)`, and compare with the undisturbed."""

    def fresh(folder):
        folder.mkdir()
        weights = MnistMLP(torch.Generator().manual_seed(0)).state_dict()
        save_tensors(folder / "weights.safetensors", weights)
        prepare(folder)
        return folder

    whole = fresh(tmp_path / "whole")
    longest = to_the_end(whole, works)
    longest = max(0.5, min(longest, to_the_end(fresh(tmp_path / "timed"), works)))
    draw, kills, rounds = random.Random(0), 0, 0
    while kills < KILLS:
        folder = fresh(tmp_path / f"round{rounds}")
        rounds, now, done = rounds + 1, works, False
        while kills < KILLS and not done:
            processes = begin(folder, now)
            time.sleep(draw.uniform(0, longest))
            chosen = draw.sample(processes, draw.randint(1, len(processes)))
            for process in chosen:
                if process.is_alive():
                    with contextlib.suppress(ProcessLookupError):  # it has no group yet
                        os.killpg(process.pid, signal.SIGKILL)
                        kills += 1
            for process in processes:
                process.join(_MOST)
            said = (folder / "log.txt").read_text()[-3000:] if (folder / "log.txt").exists() else ""
            assert {process.exitcode for process in processes} <= {0, -signal.SIGKILL}, said
            done = all(process.exitcode == 0 for process in processes)
            now = resumed(folder)
        to_the_end(folder, now)
        same(folder, whole)
        shutil.rmtree(folder)
    print(f"\n{name}: {kills} kills of a living process, {rounds} rounds", flush=True)


def same(found, expected):
    """Every file of a folder is there, and none beside; what is no timing is bitwise the same."""
    files = [
        sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in (found, expected)
    ]
    assert files[0] == files[1]
    for name in files[0]:
        one, other = (folder / name for folder in (found, expected))
        if name.suffix in (".safetensors", ".csv", ".png", ".u8", ".faiss"):
            assert one.read_bytes() == other.read_bytes(), name
        elif name.suffix == ".json":
            assert timeless(json.loads(one.read_text())) == timeless(
                json.loads(other.read_text())
            ), name
        elif name.suffix == ".ckpt":
            assert torch.load(one, weights_only=True)["collision"]["step"] in (300, 600)


def timeless(value):
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if "seconds" not in key}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def train(*arguments):
    given = sorted((*QUICK, *arguments), key=lambda each: each != "-m")  # Hydra wants it first
    return [(command, "train.py", *given)]


@pytest.mark.parametrize("name", ["search", "shared"])
def test_a_search(name, tmp_path):
    arguments = ["corner=[0,1,2]", "hydra.run.dir=run"]
    if name == "shared":
        arguments += ["trainer=ddp", "trainer.devices=2"]

    def resumed(folder):
        begun = (folder / "run" / "config.yaml").exists()
        return train(*arguments, *(["ckpt_path=last"] if begun else []))

    drill(name, tmp_path, train(*arguments), resumed)


def test_pairs(tmp_path):
    works = train("pairs=pairs.csv", "corner=[0,1]", "hydra.run.dir=run")

    def prepare(folder):
        (folder / "pairs.csv").write_text("3,7\n1,4\n8,2\n")

    drill("pairs", tmp_path, works, lambda _: works, prepare)


def test_a_sweep(tmp_path):
    corners = ",".join(map(str, range(10)))
    arguments = ["-m", f"corner={corners}", "hydra.sweep.dir=sweep", "stop.max_steps=300"]
    arguments += ["stop.min_steps=300"]
    works = train(*arguments)
    drill("sweep", tmp_path, works, lambda _: train(*arguments, "ckpt_path=last"))


def test_an_evaluation(tmp_path):
    arguments = (
        "run=run",
        "samples=200",
        "edges.share=1",
        "proof.seconds=0",
        "wandb.mode=disabled",
    )
    arguments += ("worst_case.steps=10", "plain.steps=20")
    made = tmp_path / "made"
    made.mkdir()
    save_tensors(
        made / "weights.safetensors", MnistMLP(torch.Generator().manual_seed(0)).state_dict()
    )
    to_the_end(made, train("corner=[0,1,2]", "hydra.run.dir=run"))
    works = [(command, "evaluate.py", *arguments)]

    def prepare(folder):
        shutil.copytree(made / "run", folder / "run")

    drill("evaluation", tmp_path, works, lambda _: works, prepare)
    assert list((tmp_path / "whole" / "cache" / "feature_collisions" / "edges").iterdir())


def test_a_patch_database_by_two(tmp_path):
    works = [(build_patches,), (build_patches,)]
    drill("patches", tmp_path, works, lambda _: works)
