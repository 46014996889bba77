"""Every setting has a rule: whatever is given is refused in one message, or a search runs with it.

Random settings, with numbers that are too large, too small, no numbers, or of another type.
"""

import dataclasses
import math
from collections import Counter

import pytest
import torch
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from feature_collisions.commands.start import expand_or_exit, explain
from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.evaluate import EvaluateSettings
from feature_collisions.settings.patches import PatchSettings
from feature_collisions.settings.search import (
    LogSettings,
    LossSettings,
    LossStage,
    OptimizerSettings,
    RateSettings,
    RateStage,
    StopSettings,
    images_per_batch,
)
from feature_collisions.settings.train import (
    DataSettings,
    Settings,
    check_arguments,
    overrides_first,
    parse_corners,
)
from feature_collisions.settings.trainer import check_trainer
from helpers.defaults import plain_optimizer, stop_at_once
from helpers.settings import CONF
from helpers.settings import settings as composed

ODD = [None, True, "5", "", [], {}, -1, 0, 1, 2, 1.5, -0.0, 1e-320, 1e308, 2**63, 10**400,
       math.nan, math.inf, -math.inf]  # fmt: skip
PARTS = [LossSettings, OptimizerSettings, RateSettings, StopSettings, LogSettings, PatchSettings,
         DataSettings, EvaluateSettings]  # fmt: skip


def leaves(part, path=()):
    """The paths of all settings in a dataclass and those inside it."""
    for each in dataclasses.fields(part):
        value = getattr(part, each.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, (*path, each.name))
        else:
            yield *path, each.name


def put(part, path, value):
    for name in path[:-1]:
        part = getattr(part, name)
    setattr(part, path[-1], value)


def made(part):
    return part("digits") if part is DataSettings else part()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_a_number_is_in_range_or_refused_by_name(part):
    """One setting at a time: what passes is a number a run can take, what does not is named."""
    for path in leaves(made(part)):
        kind = type(default := _get(made(part), path))
        for value in ODD:
            changed = made(part)
            put(changed, path, value)
            if kind not in (int, float) or isinstance(default, bool):
                continue
            try:
                changed.validate()
            except SettingError as refusal:
                message = str(refusal)
                assert ".".join(path) in message
                continue
            if value is None:  # a limit that is not set
                continue
            assert math.isfinite(value)
            assert not isinstance(value, bool | str)
            assert value >= 0
            if kind is int:
                assert isinstance(value, int)
                assert value < 2**33


def _get(part, path):
    for name in path:
        part = getattr(part, name)
    return part


def test_stages_have_rules_too():
    for value in ("5", None, math.nan, -1, 10**400, True):
        for part in (
            LossSettings.paper(stages=[LossStage(value, alpha=1.0)]),
            plain_optimizer(final_rate=0.1, stages=[RateStage(value, 0.1)]),
            plain_optimizer(final_rate=0.1, stages=[RateStage(5, value)]),
            RateSettings(paper_stages=[RateStage(5, value)]),
        ):
            with pytest.raises(SettingError, match=r"stages\[0\]\.(step|rate)="):
                part.validate()


def arguments():
    """Of `Search`, which with these takes three steps."""
    return {
        "loss": LossSettings.paper(),
        "optimizer": plain_optimizer(),
        "stop": stop_at_once(max_steps=3),
        "log": LogSettings(),
        "corners": [0, 2],
        "corners_per_batch": "auto",
        "corner_order": "flat",
        "trainer": {"accelerator": "cpu"},
    }


PATHS = [(name, *path) for name in ("loss", "optimizer", "stop", "log")
         for path in leaves(arguments()[name]) if path[-1] != "stages"]  # fmt: skip
PATHS += [("corners",), ("corners_per_batch",), ("corner_order",)]
PATHS += [("trainer", name) for name in ("precision", "accelerator", "max_steps")]
changes = st.dictionaries(
    st.sampled_from(PATHS),
    st.one_of(
        st.integers(0, 3),
        st.floats(0, 2),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from([*ODD, "half_square", "descent", "inactive_first", "64-true", "cpu"]),
    ),
    max_size=2,
)


def changed_by(change):
    found = arguments()
    for (name, *path), value in change.items():
        if not path:
            found[name] = value
        elif name == "trainer":
            found[name][path[0]] = value
        else:
            put(found[name], path, value)
    return found


@pytest.mark.filterwarnings("ignore:not converged")
def test_settings_are_refused_before_the_first_step_or_run(shift, shift_images):
    ends = Counter()

    @settings(max_examples=80, deadline=None, derandomize=True, database=None)
    @given(changes)  # derandomised: a suite that fails by chance teaches to ignore it
    def check(change):
        try:
            search = Search(shift, "hidden", *shift_images, **changed_by(change))
        except SettingError as refusal:
            message = str(refusal)
            assert "\n" not in message
            ends["refused"] += 1
            return
        assert search.stop.max_steps <= 3
        try:
            hull = search.run()
        except CollisionError as end:  # weights that float32 cannot hold
            message = str(end)
            assert "the loss is not finite at step" in message
            return
        assert hull.corners.isfinite().all()
        ends["ran"] += 1

    check()
    assert min(ends["refused"], ends["ran"]) > 8  # else it says little


@pytest.mark.parametrize("value", [*ODD, "9" * 5000, "0.." + "9" * 5000, "1..0", "٣", "a", "0..3"])
def test_corners_are_read_or_refused(value):
    for read in (parse_corners, images_per_batch):
        try:
            found = read(value)
        except SettingError:
            continue
        assert found is None or isinstance(found, int | list)


def test_a_range_is_measured_before_it_is_made():
    with pytest.raises(SettingError, match=r"corner=0\.\.99999999999: names 100,000,000,000 corn"):
        parse_corners("0..99999999999")
    with pytest.raises(SystemExit, match=r"corner=0\.\.99999999999: names 100,000,000,000 corners"):
        expand_or_exit(["corner=0..99999999999", "-m"], CONF)
    with pytest.raises(SettingError, match="no layer has as many units"):
        parse_corners("9" * 5000)
    assert len(parse_corners("0..9999")) == 10_000


@pytest.mark.parametrize("seed", [2**32, 99999999999999999999, -1])
def test_a_seed_is_one_that_every_generator_takes(seed):
    for name in ("config", "evaluate"):
        with pytest.raises(SettingError, match=f"seed={seed}: must be .* at most 4294967295"):
            composed(f"seed={seed}", name=name)
        torch.Generator().manual_seed(composed("seed=4294967295", name=name).seed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.alpha=many", "loss.alpha=many: must be a number"),
        ("stop.max_steps=1.5", "stop.max_steps=1.5: must be a whole number, without a decimal"),
        ("seed=true", "seed=True: must be a whole number"),
        ("seed=null", "seed=null: must have a value; leave it out for the default"),
        ("compile=maybe", "compile=maybe: must be true or false"),
        ("stop=3", r"stop=3: is a group of settings; set one of them with stop.NAME=VALUE"),
        ("loss=[1]", "loss: a list takes a list"),
        ("loss.stages=[{alpha:1}]", r"loss.stages\[0\].step: has no value; give loss.stages\[0\]"),
        ("name=[1]", r"name=\[1\]: must be a word"),
        ("loss.hull=10001", "loss.hull=10001: .* at most 10000"),
        ("loss={hull:2,hull_edges:3}", "loss.hull_edges=3: must be at most loss.hull=2"),
        ("data.size=100000", "data.size=100000: must be .* at most 4096"),
        ("patches.fraction=nan", r"patches.fraction=nan: must be in \(0, 1\]"),
        ("rates.paper=nan", "rates.paper=nan: must be a finite number"),
    ],
)
def test_a_wrong_type_is_one_message(override, message):
    with pytest.raises((SettingError, HydraException, OmegaConfBaseException)) as caught:
        composed(override)
    assert "\n" not in explain(caught.value)
    with pytest.raises(SettingError, match=message):
        raise SettingError(explain(caught.value))


def test_a_flag_may_stand_anywhere():
    """Hydra's argparse takes overrides in one piece."""
    given = ["corner=0..1", "-m", "data.root=DIR", "~x", "--cfg", "job", "seed=1"]
    ordered = ["corner=0..1", "data.root=DIR", "~x", "seed=1", "-m", "--cfg", "job"]
    assert overrides_first(given) == ordered
    assert expand_or_exit(given, CONF)[:2] == ["corner=0,1", "data.root=DIR"]


@pytest.mark.parametrize(
    "argument", ["seed=" + "9" * 5000, "corner=0.." + "9" * 301, "trainer=3", "data=true"]
)
def test_what_hydra_has_no_message_for_is_refused_before(argument):
    with pytest.raises(
        SettingError, match=r"digits; numbers may have at most|not one of the choices"
    ):
        check_arguments(["corner=0", argument])
    with pytest.raises(SystemExit, match="error: "):
        expand_or_exit([argument], CONF)


def test_settings_of_a_job_are_checked_whole():
    job = Settings(name="x", initial=0, target=1)
    job.classifier.name, job.classifier.layer, job.data.name = "mnist_mlp", "hidden1", "digits"
    job.validate()
    job.rates.adam = math.nan
    with pytest.raises(SettingError, match=r"rates\.adam=nan"):
        job.validate()


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"max_steps": 3},
            r"trainer\.max_steps=3: is not an argument of a search; .*set the length of the search",
        ),
        ({"accelerator": "abacus"}, r"trainer\.accelerator=abacus: must be one of auto, cpu"),
        ({"accelerator": "cpu", "devices": [0, 0]}, r"trainer\.devices=\[0, 0\]: .*different"),
        ({"accelerator": "cpu", "devices": ["a"]}, r"trainer\.devices=\['a'\]: must be a whole"),
        ({"accelerator": "cpu", "devices": "9" * 5000}, r"trainer\.devices=9+: must be a whole"),
        ({"accelerator": "cpu", "devices": 4096}, r"devices=4096: there are \d+ CPU cores here"),
        ({"accelerator": "cpu", "devices": [0, 4096]}, r"\d+ CPU cores here, numbered from 0"),
        (
            {"accelerator": "gpu", "devices": 99},
            r"devices=99: there are \d+ GPUs here|sees no GPU here",
        ),
        ({"devices": 0}, r"trainer\.devices=0: must be a whole number of at least 1"),
        ({"devices": "0"}, r"trainer\.devices=0: must be a whole number of at least 1"),
        ({"devices": []}, r"trainer\.devices=\[\]: must be a whole number of at least 1"),
        ({"devices": True}, r"trainer\.devices=True: must be a whole number"),
        ({"precision": "8-true"}, r"trainer\.precision=8-true: must be one of 32-true"),
        (
            {"accelerator": "cpu", "precision": "16-mixed"},
            r"the CPU has no float16 arithmetic; use 32-true",
        ),
        ({"strategy": "fsdp"}, r"trainer\.strategy=fsdp: must be one of auto, ddp"),
        ({"num_nodes": 2}, r"trainer\.num_nodes=2: .* -m hydra/launcher=submitit_slurm"),
    ],
)
def test_what_a_trainer_cannot_be_given_is_refused(trainer, message):
    with pytest.raises(SettingError, match=message):
        check_trainer(trainer)
