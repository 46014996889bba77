"""One search on several ranks: what one process finds, one directory, one end for all."""

import csv
import errno
import multiprocessing
import pickle
import threading
import time

import pytest
import torch

from feature_collisions.data.files import save_tensors
from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.networks.mnist_mlp import MnistMLP
from feature_collisions.search import strategy
from feature_collisions.search.callbacks import Curves
from feature_collisions.search.find_corners import Search
from feature_collisions.search.strategy import in_own_words
from feature_collisions.settings.search import LossSettings, StopSettings
from helpers.commands import start
from helpers.searches import ALONE, APART, convolutions, search

SHARED = {"accelerator": "cpu", "devices": 2}
TIED = LossSettings.paper(10.0, 0.1, positive_form="half_square", output=0.5, hull=3, distance=1.0)


def rows_of(directory):
    return list(csv.reader((directory / "metrics.csv").read_text().splitlines()))


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(
    ("loss", "precision", "layout"),
    [(APART, "32-true", False), (TIED, "64-true", True)],
    ids=["apart", "tied by points and distances"],
)
def test_two_ranks_find_what_one_process_finds(pair, tmp_path, loss, precision, layout):
    """And write one directory, as one process would; any number of ranks goes on from it."""
    limit = 1e-5 if precision == "32-true" else 1e-7  # saved in float32
    same = {"loss": loss, "channels_last": layout}
    alone, shared = ALONE | {"precision": precision}, SHARED | {"precision": precision}
    one = search(pair, **same, trainer=alone, directory=tmp_path / "one")
    two = search(pair, **same, trainer=shared, directory=tmp_path / "two")
    assert (one.corners - two.corners).abs().max() < limit
    assert torch.equal(one.units, two.units)
    assert one.summary["steps"] == two.summary["steps"]
    tables = [rows_of(tmp_path / name) for name in ("one", "two")]
    assert tables[0][0] == tables[1][0]
    for first, second in zip(tables[0][1:], tables[1][1:], strict=True):
        assert list(map(float, second)) == pytest.approx(list(map(float, first)), rel=1e-3)
    names = [sorted(p.name for p in (tmp_path / n).rglob("*")) for n in ("one", "two")]
    assert names[0] == names[1]
    longer = same | {"stop": StopSettings(None, 80, 80, 0.1, None)}
    last = [tmp_path / name / "checkpoints" / "last.ckpt" for name in ("one", "two")]
    whole, other = (search(pair, **longer, trainer=alone, ckpt_path=path) for path in last)
    assert (whole.corners - one.corners).abs().max() > 1e-3
    assert (whole.corners - other.corners).abs().max() < 10 * limit
    if loss is APART:
        return
    # One image at a time; the points of `loss.hull` fall on one rank more than on the other.
    goes_on = {"trainer": shared, "directory": tmp_path / "one", "ckpt_path": last[0]}
    both = search(pair, **longer, **goes_on, corners_per_batch=1)
    assert (both.corners - whole.corners).abs().max() < 10 * limit
    assert [row[0] for row in rows_of(tmp_path / "one")] == ["step", "20", "40", "60", "80"]


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_checkpoint_lies_in_memory_as_the_search_that_goes_on_wants_it(pair, tmp_path):
    """Fused Adam reads its means in the parameter's order, whatever theirs is."""
    settings = {"stop": StopSettings(None, 40, 40), "directory": tmp_path}
    search(pair, **settings, channels_last=False)
    last = tmp_path / "checkpoints" / "last.ckpt"
    longer = {"stop": StopSettings(None, 60, 60), "ckpt_path": last}
    found = [search(pair, **longer, channels_last=layout) for layout in (False, True)]
    assert (found[0].corners - found[1].corners).abs().max() < 1e-4


@pytest.mark.parametrize(
    "error",
    [
        CollisionError("the loss is not finite at step 3"),
        SettingError("compile", "true", "is not possible here"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "metrics.csv"),
    ],
)
def test_the_error_of_the_rank_that_failed_is_raised(error):
    ended = RuntimeError("rank 0 ended\nwith status 1")
    found = in_own_words([None, pickle.loads(pickle.dumps(error)), None], ended)
    assert (type(found), str(found)) == (type(error), str(error))
    assert "with status 1" in str(in_own_words([None, {"step": 3}], ended))


def test_an_error_of_the_disk_keeps_its_reason(pair, tmp_path, monkeypatch):
    """Its ranks are forked, which imports nothing anew; they end before a gradient forbids it."""
    started = strategy.start_processes

    def fork(*given, start_method, **options):
        return started(*given, start_method="fork", **options)

    def full(curves, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(curves.path))

    monkeypatch.setattr(strategy, "start_processes", fork)
    monkeypatch.setattr(Curves, "on_train_start", full)
    with pytest.raises(OSError, match=r"metrics\.csv") as raised:
        search(pair, trainer=SHARED, directory=tmp_path)
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_rank_that_is_killed_ends_the_others_and_the_search_goes_on(pair, tmp_path):
    """With the reason; one process ends where it would have without the kill."""
    double = {"precision": "64-true"}
    never = {"stop": StopSettings(None, 10**6, 10**6), "directory": tmp_path}
    last = tmp_path / "checkpoints" / "last.ckpt"
    killed = []

    def kill():
        while not last.exists():
            time.sleep(0.02)
        ranks = multiprocessing.active_children()
        killed.append(len(ranks))
        ranks[-1].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(CollisionError, match=r"a process of trainer\.devices failed \(.*SIGKILL"):
        search(pair, **never, trainer=SHARED | double)
    assert killed == [2]
    step = torch.load(last, weights_only=True)["collision"]["step"]
    stop = StopSettings(None, step + 20, step + 20)
    resumed = search(pair, stop=stop, ckpt_path=last, trainer=ALONE | double)
    whole = search(pair, stop=stop, trainer=ALONE | double)
    assert (resumed.corners - whole.corners).abs().max() < 1e-6


def test_corners_take_no_more_devices_than_there_are_of_them(pair):
    task = Search(convolutions(), "2", *pair, [0], trainer=SHARED)
    assert task.lightning.world_size == 1


def jobs_of_a_sweep(run, tmp_path, *arguments):
    """Sweep with a classifier that costs no training; the folders of the jobs with corners."""
    weights = MnistMLP(torch.Generator().manual_seed(0)).state_dict()
    save_tensors(tmp_path / "weights.safetensors", weights)
    quick = ("stop.min_steps=0", "stop.max_steps=50", "wandb.mode=disabled")
    options = ("-m", "classifier.weights=weights.safetensors", "hydra.sweep.dir=sweep")
    run("train.py", *options, *quick, *arguments)
    return sorted(path.parent.name for path in tmp_path.rglob("collision.safetensors"))


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_sweep_over_two_processes_each_does_not_start_again(command, tmp_path):
    """Were the command line replayed, each process would make a sweep of its own."""
    arguments = ("trainer.devices=2", "corner=[0,1],[2]")
    assert jobs_of_a_sweep(command, tmp_path, *arguments) == ["0", "1"]
    assert len(list(tmp_path.rglob("multirun.yaml"))) == 1


def test_joblib_runs_a_sweep_with_two_workers(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="the launcher is not there")

    def run(*arguments):  # as a user does: the workers import train.py by its path
        process = start(*arguments, cwd=tmp_path)
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said

    options = ("corner=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert jobs_of_a_sweep(run, tmp_path, *options) == ["0", "1"]
