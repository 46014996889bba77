"""A hull's points shared out over several devices: what one finds, in as many threads."""

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from feature_collisions import Hull, SettingError
from feature_collisions.data.threads import Threads
from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.hull.evaluator import Replica
from feature_collisions.settings.evaluate import (
    EdgeSettings,
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WorstCaseSettings,
)
from helpers.hulls import made_hull

SETTINGS = EvaluateSettings(
    samples=600,
    worst_case=WorstCaseSettings(starts=9, steps=20),
    plain=PlainSettings(15),
    edges=EdgeSettings(seconds=0.0),
    proof=ProofSettings(0.0, False),
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """How many threads a hull takes by itself: one."""

    def say(count):
        monkeypatch.setattr("feature_collisions.hull.evaluator.threads_of_cpu", lambda: count)

    say(1)
    return say


def shared(hull, devices):
    parts = hull.corners, hull.initial, hull.target, hull.units, hull.summary
    return Hull(hull.model, hull.layer, *parts, batch=16, others=[CPU] * (devices - 1))


def alike(found, expected):
    """The same entries; numbers to rounding."""
    if isinstance(expected, dict):
        keys = found.keys() == expected.keys()
        return keys and all(alike(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    close = pytest.approx(expected, rel=1e-6, abs=1e-6) if isinstance(expected, float) else expected
    return found == close


@pytest.mark.parametrize("devices", [2, 3])
def test_an_evaluation_on_several_devices_finds_what_one_finds(tmp_path, devices):
    hull = made_hull(4, (1, 12, 12))
    hull.model.double()
    threads, observe = set(), Replica.observe

    def observed(self, images):
        threads.add(threading.get_ident())
        return observe(self, images)

    with pytest.MonkeyPatch.context() as patch:
        one = evaluate(shared(hull, 1), lambda: {1: 2.0}, SETTINGS, tmp_path)
        several = shared(hull, devices)
        patch.setattr(Replica, "observe", observed)
        found = evaluate(several, lambda: {1: 2.0}, SETTINGS, tmp_path)
    assert len(threads - {threading.get_ident()}) == devices
    assert not found.failed
    assert alike(found.entries(), one.entries())
    assert found["dirichlet"]["samples"] == 600


def test_calls_are_made_in_turn_and_their_results_come_in_order():
    threads = Threads(3, processor=True)
    calls = [lambda n=n: (n, threading.get_ident(), torch.get_num_threads()) for n in range(20)]
    before = torch.get_num_threads()
    numbers, idents, cores = zip(*threads.results(calls), strict=True)
    assert list(numbers) == list(range(20))
    assert len(set(idents)) == 3
    assert all(one == idents[k % 3] for k, one in enumerate(idents))
    assert set(cores) == {max(1, before // 3)}
    assert torch.get_num_threads() == before


def test_few_calls_wait_and_what_fails_ends_the_others():
    threads, begun, asked = Threads(2, processor=True), [], []

    def call(number):
        begun.append(number)
        if number == 4:
            raise OSError("the fifth")
        return number

    def calls():
        for number in range(100):
            asked.append(number)
            yield partial(call, number)

    found = []
    with pytest.raises(OSError, match="the fifth"):
        found.extend(threads.results(calls()))
    assert max(begun) <= max(asked) <= 8
    assert list(threads.results(partial(str, n) for n in range(5))) == list("01234")  # goes on


def test_a_processors_threads_have_modules_of_their_own_and_the_same_weights(cores):
    cores(3)
    hull = replace(made_hull(), batch=16)
    replicas = hull.evaluator.replicas
    assert len(replicas) == 3
    modules = [set(map(id, (*each.model.modules(), each.observed))) for each in replicas]
    assert len(set.union(*modules)) == sum(map(len, modules))
    for other in replicas[1:]:
        assert all(map(lambda a, b: a is b, other.model.parameters(), hull.model.parameters()))
        assert all(map(lambda a, b: a is b, other.observed.parameters(), hull.model.parameters()))
        assert not other.model.training
    several = hull.sample(600).entries()
    cores(1)
    assert alike(several, shared(hull, 1).sample(600).entries())


def test_a_model_that_cannot_be_copied_is_measured_in_one_thread(cores):
    cores(2)
    hull = made_hull()
    hull.model.lock = threading.Lock()
    assert hull.evaluator.replicas == [hull.evaluator.own]
    assert hull.sample(20)["samples"] == 20
    with pytest.raises(SettingError, match="model: cannot be copied"):
        shared(hull, 2).sample(20)


def test_a_device_that_runs_out_of_memory_is_named(monkeypatch):
    hull = shared(made_hull(), 2)

    def ask(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(hull.evaluator.replicas[1].observed, "forward", ask)
    with pytest.raises(SettingError, match="out of memory on cpu"):
        hull.sample(100)
