import pytest

from feature_collisions.errors import SettingError
from feature_collisions.settings.train import expand_corner_sweep, parse_corners
from helpers.settings import CONF, settings

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize(
    ("corner", "expected"),
    [
        (2, [2]),
        ("2", [2]),
        ("0..4", [0, 1, 2, 3, 4]),
        ("3..3", [3]),
        ([0, 3, 7], [0, 3, 7]),
        (["0..2", 7], [0, 1, 2, 7]),
        (range(3), [0, 1, 2]),
    ],
)
def test_corner_is_an_index_a_list_or_a_range(corner, expected):
    assert parse_corners(corner) == expected


@pytest.mark.parametrize(
    ("corner", "message"),
    [
        (-1, r"corner=-1: corner counts the target's inactive units from 0"),
        ("4..0", r"corner=4..0: a range must increase; write corner=0..4"),
        ([], r"corner=\[\]: no corner is named"),
        ("", r"corner=: corner counts"),
        ("some", r"corner=some: corner counts .* write one index \(2\), a list \(\[0,3,7\]\)"),
        (1.5, r"corner=1.5: corner counts"),
        (True, r"corner=True: corner counts"),
        (None, r"corner=None: corner counts"),
        ([0, 0], r"corner=\[0, 0\]: a corner is named twice"),
    ],
)
def test_other_corners_are_refused(corner, message):
    with pytest.raises(SettingError, match=message):
        parse_corners(corner)


def test_a_range_becomes_a_choice_in_a_sweep_only():
    assert expand_corner_sweep(["a=1", "corner=0..2"]) == ["a=1", "corner=0..2"]
    for flag in ("-m", "--multirun", "hydra.mode=MULTIRUN"):
        for given in ("corner=0..2", "corner='0..2'"):
            assert expand_corner_sweep([given, flag]) == ["corner=0,1,2", flag]
        assert expand_corner_sweep(["corner=[0,3]", flag]) == ["corner=[0,3]", flag]
    with pytest.raises(SettingError, match="a range must increase"):
        expand_corner_sweep(["corner=2..0", "-m"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.alpha=-1", "loss.alpha=-1.0: must be a finite number of at least 0"),
        ("loss.beta=nan", "loss.beta=nan: must be a finite number"),
        ("loss.positive_form=cube", "loss.positive_form=cube: must be one of norm, half_square"),
        ("loss.stages=[{step:9,beta:-1}]", r"loss.stages\[0\].beta=-1.0: must be a finite number"),
        (
            "loss.stages=[{step:9,beta:1},{step:9,beta:2}]",
            r"loss.stages: stages begin at steps \[9, 9\]; they must increase",
        ),
        ("optimizer.stages=[{step:0,rate:1}]", r"optimizer.stages: stages begin at steps \[0\]"),
        (
            "optimizer.stages=[{step:9,rate:1}]",
            "optimizer.final_rate=0.0: optimizer.stages .*set it to optimizer.rate=0.1",
        ),
        ("optimizer.name=lion", "optimizer.name=lion: must be one of adam, descent"),
        ("optimizer.average=1", r"optimizer.average=1.0: .*must be in \[0, 1\)"),
        ("optimizer.square_average=-1", r"optimizer.square_average=-1.0: .*; 0.999 is usual"),
        ("stop.max_steps=0", "stop.max_steps=0: must be a finite number of at least 1"),
        ("stop.min_steps=2000", "stop.min_steps=2000: must not exceed stop.max_steps=1000"),
        ("log.every=0", "log.every=0: must be a finite number of at least 1"),
        ("wandb.mode=maybe", "wandb.mode=maybe: must be one of online, offline, disabled"),
        ("seed=-1", "seed=-1: must be a finite number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(override, message):
    with pytest.raises(SettingError, match=message):
        settings(override)


def test_stages_are_read():
    """The authors' macro settings, from facts.md's table."""
    found = settings(
        "optimizer=paper", "optimizer.stages=[{step:2200,rate:0.01},{step:3200,rate:0.02}]",
        "loss.stages=[{step:14000,alpha:1000,beta:1}]",
    )  # fmt: skip
    assert [(stage.step, stage.rate) for stage in found.optimizer.stages] == [
        (2200, 0.01), (3200, 0.02),
    ]  # fmt: skip
    (stage,) = found.loss.stages
    assert (stage.step, stage.alpha, stage.beta) == (14000, 1000, 1)


def test_seed_0_is_a_seed():
    assert settings("seed=0").seed == 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("optimizer", ["adam", "paper"])
def test_every_experiment_composes(experiment, optimizer):
    composed = settings(f"experiment={experiment}", f"optimizer={optimizer}")
    assert composed.name == experiment
    assert parse_corners(composed.corner) == [0, 1, 2, 3, 4]
    if optimizer == "paper":
        assert composed.optimizer.final_rate == composed.optimizer.rate  # a fixed rate
        assert composed.optimizer.average == 0.99


def test_evaluation_settings():
    assert settings(name="evaluate").samples == 2000
    with pytest.raises(SettingError, match="samples=0: must be a finite number of at least 1"):
        settings("samples=0", name="evaluate")
