"""What the processes of one search exchange; here they are threads, or one process alone."""

import multiprocessing
import threading

import pytest
import torch
from torch import nn

from feature_collisions.errors import CollisionError
from feature_collisions.search.checkpoints import JointCheckpointFile, join_checkpoints
from feature_collisions.search.find_corners import Search
from feature_collisions.search.sharing import Task, _search_share
from feature_collisions.search.together import Together, pipes_of
from feature_collisions.settings.search import (
    LogSettings,
    LossSettings,
    OptimizerSettings,
    StopSettings,
)


def ends(count, patience=60.0):
    pipes = pipes_of(multiprocessing.get_context("spawn"), count)
    return [Together(rank, pipes[rank], patience) for rank in range(count)]


def in_threads(work, processes):
    """What `work` gives for each, all at once."""
    found = [None] * len(processes)

    def one(rank):
        found[rank] = work(processes[rank])

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_the_first_process_gathers_what_each_has():
    large = torch.arange(100_000.0)  # beyond what a pipe takes at once
    found = in_threads(lambda each: each.gather({"x": large + each.rank}), ends(3))
    assert found[1:] == [[], []]
    for rank, each in enumerate(found[0]):
        assert torch.equal(each["x"], large + rank)


@pytest.mark.parametrize("votes", [(True, True, True), (True, False, True), (False, True, True)])
def test_processes_agree_when_all_vote_for_it(votes):
    found = in_threads(lambda each: each.agree(votes[each.rank]), ends(3))
    assert found == [all(votes)] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_does_not_answer_ends_the_waiting(rank):
    both = ends(2, 0.05)
    with pytest.raises(
        CollisionError, match=rf"process {1 - rank} has not answered for 0 s; all were"
    ):
        both[rank].agree(True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_has_ended_ends_the_waiting_at_once(rank):
    both = ends(2)
    both[1 - rank].pipes[0].close()
    with pytest.raises(CollisionError, match=r"has ended; .* go on with ckpt_path=last, with"):
        both[rank].agree(True)


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("optimizer", ["adam", "descent"])
def test_a_checkpoint_in_parts_is_the_one_of_all_corners(tmp_path, optimizer):
    """Split by the reader, joined by the writer: every entry is as it was."""
    task(tmp_path, optimizer=OptimizerSettings(optimizer, 0.01, average=0.5)).run()
    path = tmp_path / "checkpoints" / "last.ckpt"
    rows = [[0, 2], [1]]
    whole = torch.load(path, weights_only=True)
    parts = [JointCheckpointFile(each, rows).load_checkpoint(path) for each in ends(2)]
    assert [len(part["state_dict"]["parameterisation.pixels"]) for part in parts] == [2, 1]
    for part, places in zip(parts, rows, strict=True):
        units = [whole["collision"]["problem"]["units"][place] for place in places]
        problem = whole["collision"]["problem"] | {"units": units}
        part["collision"] = whole["collision"] | {"problem": problem}
    same(join_checkpoints(parts, rows), whole)


def same(found, expected):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def toy():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))


def task(directory, **changes):
    generator = torch.Generator().manual_seed(0)
    settings = {
        "stop": StopSettings(None, 40, 40, None, None), "log": LogSettings(20, 20, 20),
        "directory": directory, "trainer": {"accelerator": "cpu"},
    }  # fmt: skip
    images = torch.rand(2, 1, 8, 8, generator=generator)
    return Search(toy(), "1", *images, range(3), **(settings | changes))


def alone(search):
    """What the only process of a shared search finds and reports."""
    arguments = {name: getattr(search, name) for name in Search.__dataclass_fields__}
    heard, report = multiprocessing.get_context("spawn").Pipe(duplex=False)
    found = torch.zeros(3, 1, 8, 8)
    work = Task(Search, arguments, [[0, 1, 2]], [0], [[]], [report], found, torch.zeros(3), 1)
    _search_share(0, work)
    return found, heard.recv()


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_search_goes_on_only_where_it_is_asked_to(tmp_path):
    """Checkpoints that an earlier search left in its directory are not its own."""
    weak, strong = LossSettings(1.0), LossSettings(100.0)
    first, _ = alone(task(tmp_path, loss=weak))
    second, report = alone(task(tmp_path, loss=strong))
    assert report["steps"] == 40
    assert report["earlier"] == 0
    assert torch.equal(second, task(None, loss=strong).run().corners)
    assert (first - second).abs().max() > 1e-3
    last = tmp_path / "checkpoints" / "last.ckpt"
    longer = StopSettings(None, 80, 80, None, None)
    _, report = alone(task(tmp_path, loss=strong, stop=longer, ckpt_path=last))
    assert report["earlier"] > 0
    assert [row.split(",")[0] for row in (tmp_path / "metrics.csv").read_text().split()] == [
        "step", "20", "40", "60", "80",
    ]  # fmt: skip
    assert not list(tmp_path.rglob(".*"))


def test_an_error_of_the_disk_keeps_its_reason(tmp_path):
    search = task(tmp_path)
    (tmp_path / "metrics.csv").mkdir()
    arguments = {name: getattr(search, name) for name in Search.__dataclass_fields__}
    heard, report = multiprocessing.get_context("spawn").Pipe(duplex=False)
    work = Task(
        Search, arguments, [[0]], [0], [[]], [report], torch.zeros(3, 1, 8, 8), torch.zeros(3), 1
    )
    with pytest.raises(OSError, match=r"metrics\.csv"):
        _search_share(0, work)
    assert "metrics.csv" in heard.recv()[1][2]
