"""What the commands import: a start is mostly imports, and none is made before it is needed."""

import gc
import subprocess
import sys

import pytest

from feature_collisions.commands.start import importing
from feature_collisions.commands.train import usual_steps
from helpers.commands import ROOT

# Beside torch and Lightning, which brings torchvision, scipy and Matplotlib along.
_LATER = (
    "wandb", "timm", "faiss", "matplotlib.backends.backend_agg",
    "feature_collisions.proofs.whole_hull", "feature_collisions.report.figures",
    "feature_collisions.patches.nearest_patches", "feature_collisions.evaluation.evaluate",
)  # fmt: skip


def imported(script, *arguments, cwd):
    """The modules that a command imports, by what Python says of each."""
    command = [sys.executable, "-X", "importtime", str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    ("script", "arguments", "status"),
    [
        ("train.py", ["--help"], 0),
        ("train.py", ["--cfg", "job"], 0),
        ("train.py", ["data=mnits"], 1),
        ("train.py", ["corner=-1"], 1),
        ("evaluate.py", ["--help"], 0),
        ("evaluate.py", ["samples=0"], 1),
    ],
)
def test_what_needs_no_tensors_waits_for_none(tmp_path, script, arguments, status):
    ended, modules = imported(script, *arguments, cwd=tmp_path)
    assert ended == status
    assert "hydra" in modules
    assert not modules & {"torch", "lightning", "scipy", "matplotlib", "wandb"}


def test_a_search_imports_what_it_runs(tmp_path):
    short = ("stop.min_steps=0", "stop.max_steps=50", "wandb.mode=disabled")
    status, modules = imported("train.py", *short, "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0
    assert {"lightning", "feature_collisions.search.find_corners"} <= modules
    assert not modules & set(_LATER)


def test_the_collector_rests_while_lightning_is_imported_and_at_no_other_time(monkeypatch):
    import lightning  # noqa: F401

    with importing():
        assert gc.isenabled()
    assert not gc.get_freeze_count()
    monkeypatch.delitem(sys.modules, "lightning")
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


FAULTS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from feature_collisions.commands.start import keep_freed_memory
keep_freed_memory()
import torch

def faults(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        torch.ones(2**24)  # 64 MiB: 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as thread:
    for work in (faults, lambda count: thread.submit(faults, count).result()):
        work(12)
        print(work(10))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_what_a_step_frees_comes_back_without_new_pages_in_any_thread():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # one more may go by while freed pieces fit together; without it all ten tensors are new pages
    assert max(map(int, done.stdout.split())) < 3 * 16_384


def test_the_usual_steps_are_those_of_the_experiments_file_or_the_default():
    assert [usual_steps(name) for name in ("mnist", "small_pixel", "my_own")] == [1000, 500, 500]
