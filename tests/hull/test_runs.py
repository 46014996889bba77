import copy
import json
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from feature_collisions import Hull, find_corners
from feature_collisions.data.files import load_tensors, save_tensors
from feature_collisions.data.images import load_image
from feature_collisions.errors import SettingError
from feature_collisions.runs.directories import claimed, is_claimed, newest_run, place_of_run
from feature_collisions.runs.run import hulls_below, load_run
from feature_collisions.settings.search import LossSettings, StopSettings

STOP = StopSettings(None, 20, 20, None, None)


@pytest.fixture
def search(shift, shift_images):
    return lambda corners: find_corners(
        shift, "hidden", *shift_images, corners, loss=LossSettings.paper(), stop=STOP
    )


def test_a_run_is_read_back_as_it_was_written(search, tmp_path):
    hull = search([0, 2])
    hull.save(tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert len(repr(run)) < 100 + len(str(run.directory)), "pixels are printed"
    assert "2 corners (1, 3, 3)" in repr(run)
    for name in ("corners", "initial", "target", "units"):
        assert torch.equal(getattr(run, name), getattr(hull, name))
    assert run.summary == hull.summary
    tensors = load_tensors(tmp_path / "run" / "collision.safetensors")
    assert tensors["corners"].dtype == torch.float32
    assert tensors["units"].dtype == torch.int64
    for name, image in [("corner_0", hull.corners[0]), ("corner_2", hull.corners[1])]:
        saved = load_image(tmp_path / "run" / "images" / f"{name}.png", (1, 3, 3))
        assert (saved - image).abs().max() <= 0.5 / 255 + 1e-6


def test_a_hull_is_loaded_with_its_model_and_with_no_other(search, shift, tmp_path):
    hull = search([0, 2])
    hull.save(tmp_path)
    loaded = Hull.load(tmp_path, shift)
    assert torch.equal(loaded.corners, hull.corners)
    assert loaded.summary == hull.summary
    assert loaded.sample(20) == hull.sample(20)
    other = copy.deepcopy(shift)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    with pytest.raises(SettingError, match=r"^model=.*hash"):
        Hull.load(tmp_path, other)


def test_a_sweeps_jobs_are_put_together_in_the_corners_order(search, tmp_path):
    together = search([0, 1, 3])
    for job, corner in enumerate([3, 0, 1]):
        search([corner]).save(tmp_path / str(job))
    run = load_run(tmp_path)
    assert (run.corners - together.corners).abs().max() < 1e-5
    assert torch.equal(run.units, together.units)
    assert [entry["corner"] for entry in run.summary["corners"]] == [0, 1, 3]


def test_jobs_of_different_hulls_are_not_put_together(search, shift, shift_images, tmp_path):
    search([0]).save(tmp_path / "0")
    search([0]).save(tmp_path / "1")
    with pytest.raises(SettingError, match="a corner occurs in several jobs"):
        load_run(tmp_path)
    other = find_corners(shift, "hidden", *(0.5 * i for i in shift_images), [1], stop=STOP)
    other.save(tmp_path / "1")
    with pytest.raises(
        SettingError, match=r"1 and 0 differ in .*initial, target, so their corners"
    ):
        load_run(tmp_path)


def test_a_directory_without_corners_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"no corners there \(collision.safetensors is missing"):
        load_run(tmp_path)
    with pytest.raises(SettingError, match=r"run=.*nowhere: there is no such folder"):
        load_run(tmp_path / "nowhere")


def damage(name, value):
    def change(tensors):
        tensors[name] = value(tensors[name])

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage("corners", lambda c: c * float("nan")), r"pixels outside \[0, 1\] or NaN"),
        (damage("corners", lambda c: c + 1), r"pixels outside \[0, 1\] or NaN"),
        (damage("corners", lambda c: c[:, :, :2]), "do not fit each other"),
        (damage("corners", lambda c: c[:0]), "differ in number"),
        (damage("target", lambda t: t[0]), "do not fit each other"),
        (damage("units", lambda u: u[:1]), "corners, units and summary differ in number"),
        (lambda tensors: tensors.pop("initial"), "'initial' is missing; the run is incomplete"),
    ],
)
def test_a_damaged_run_is_refused(search, tmp_path, change, message):
    search([0, 2]).save(tmp_path)
    tensors = load_tensors(tmp_path / "collision.safetensors")
    change(tensors)
    save_tensors(tmp_path / "collision.safetensors", tensors)
    with pytest.raises(SettingError, match=message):
        load_run(tmp_path)


def test_a_run_without_its_summary_is_refused(search, tmp_path):
    search([0]).save(tmp_path)
    (tmp_path / "summary.json").unlink()
    with pytest.raises(SettingError, match=r"summary\.json: the file is missing"):
        load_run(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"corners": None}))
    with pytest.raises(SettingError, match=r"in summary\.json: .* required"):
        load_run(tmp_path)


def test_the_newest_run_is_the_sweep_of_the_newest_job(tmp_path):
    with pytest.raises(SettingError, match="no run with corners below"):
        newest_run(tmp_path)
    (tmp_path / "a" / "b" / "0").mkdir(parents=True)
    (tmp_path / "a" / "b" / "0" / "collision.safetensors").touch()
    assert newest_run(tmp_path) == tmp_path / "a" / "b" / "0"
    (tmp_path / "a" / "b" / "multirun.yaml").touch()
    assert newest_run(tmp_path) == tmp_path / "a" / "b"


def test_last_continues_the_newest_run_in_place(tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    with pytest.raises(SettingError, match="ckpt_path=last: there is no earlier run in"):
        place_of_run("last", new, sweep=False)
    with pytest.raises(SettingError, match=r"with -m .* add hydra\.sweep\.dir=DIR"):
        place_of_run("last", new, sweep=True)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").touch()
    assert place_of_run("last", new, sweep=False) == (tmp_path / "old", None)
    assert not new.exists()
    checkpoint = tmp_path / "old" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    new.mkdir()
    assert place_of_run("last", new, sweep=False) == (tmp_path / "old", checkpoint)
    assert place_of_run("last", tmp_path / "old", sweep=True) == (tmp_path / "old", checkpoint)
    with pytest.raises(SettingError, match=r"hydra\.run\.dir=.*old: there is a run in it"):
        place_of_run(None, tmp_path / "old", sweep=False)
    assert place_of_run("a.ckpt", tmp_path, sweep=False)[1].name == "a.ckpt"


def test_a_job_that_has_only_just_started_was_not_killed(tmp_path):
    """Whoever owns it: this process, or another one, whose lock is not this process's."""
    older, begun, output = (tmp_path / name for name in ("1", "2", "3"))
    for place in (older, begun, output):
        place.mkdir()
    for name in ("config.yaml", "collision.safetensors"):
        (older / name).touch()
        os.utime(older / name, (1, 1))
    for owned in (claimed(begun, "hydra.run.dir"), FileLock(begun / ".lock")):
        with owned:
            output.mkdir(exist_ok=True)
            with pytest.raises(SettingError, match=r"ckpt_path=last: another process") as error:
                place_of_run("last", output, sweep=False)
            assert "killed" not in str(error.value)
            assert f"hydra.run.dir={older}" in str(error.value)
            with pytest.warns(UserWarning, match="still running"):
                assert newest_run(tmp_path) == older
            assert "a process is using" in hulls_below(tmp_path)[1]["2"]
    assert "ckpt_path=last" in hulls_below(tmp_path)[1]["2"]
    output.mkdir(exist_ok=True)
    with pytest.raises(SettingError, match=r"ckpt_path=last.*killed"):
        place_of_run("last", output, sweep=False)


def test_a_lock_that_is_a_link_is_not_opened(tmp_path):
    (tmp_path / "note").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "note")
    assert not is_claimed(tmp_path / "run")
    assert not is_claimed(tmp_path)
    assert not (tmp_path / ".lock").exists()
    assert (tmp_path / "note").read_text() == "kept"


def test_home_is_expanded(search, shift, shift_images, tmp_path, monkeypatch):
    hull = search([0, 2])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    hull.save("~/run")
    hull.save(Path("~/other"))
    assert not (tmp_path / "~").exists()
    for name in ("~/run", Path("~/run"), "~/other"):
        assert torch.equal(load_run(name).corners, hull.corners)
    with pytest.raises(SettingError, match="none: there is no such folder"):
        load_run("~/none")
    problem = (shift, "hidden", *shift_images, [0, 2])
    for start, kept in ((None, "~/kept"), ("~/kept/checkpoints/last.ckpt", Path("~/more"))):
        find_corners(
            *problem, loss=LossSettings.paper(), stop=STOP, directory=kept, ckpt_path=start
        )
        assert (tmp_path / Path(kept).name / "metrics.csv").exists()
    assert not (tmp_path / "~").exists()


def test_a_job_that_left_its_lock_alone_is_not_passed_over_in_silence(tmp_path):
    older, killed, output = (tmp_path / name for name in ("1", "2", "3"))
    for place in (older, killed, output):
        place.mkdir()
    for name in ("config.yaml", "collision.safetensors"):
        (older / name).touch()
        os.utime(older / name, (1, 1))
    (killed / ".lock").touch()
    with pytest.raises(SettingError, match=r"ckpt_path=last.*killed"):
        place_of_run("last", output, sweep=False)
    with pytest.warns(UserWarning, match=r"run: .*killed"):
        assert newest_run(tmp_path) == older
    assert sorted(hulls_below(tmp_path)[1]) == ["1", "2"]
    os.utime(killed / ".lock", (0, 0))
    output.mkdir(exist_ok=True)
    assert place_of_run("last", output, sweep=False)[0] == older
