"""Nothing that was computed is lost for Weights & Biases' sake; a wrong key is said at once."""

import os

import pytest
import torch
import wandb

from feature_collisions.data.files import save_tensors
from feature_collisions.errors import SettingError
from feature_collisions.networks.mnist_mlp import MnistMLP
from feature_collisions.report.wandb_logs import check_login, use_account, wandb_logger
from feature_collisions.settings.train import WandbSettings
from helpers.commands import run_command

QUICK = ("corner=0", "stop.min_steps=100", "stop.max_steps=100", "hydra.run.dir=run",
         "classifier.weights=drawn.safetensors")  # fmt: skip


@pytest.fixture
def drawn(tmp_path):
    model = MnistMLP(torch.Generator().manual_seed(0))
    save_tensors(tmp_path / "drawn.safetensors", model.state_dict())


def refuse(*_, **__):
    raise wandb.errors.AuthenticationError("the key is wrong\nlong story")


def test_a_wrong_key_is_said_before_anything_is_done(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.login", refuse)
    answer = run_command(tmp_path, "train.py", *QUICK, "wandb.mode=online")
    assert answer == (
        "error: wandb.mode=online: the key is wrong; log in with `wandb login`, or write only "
        "files with wandb.mode=offline"
    )
    assert not (tmp_path / "run").exists()


def test_no_key_is_said(monkeypatch):
    monkeypatch.setattr("wandb.login", lambda **_: False)
    with pytest.raises(SettingError, match=r"^wandb\.mode=online: no API key is configured; log"):
        check_login("online")


def test_runs_go_to_the_account_that_the_user_names(monkeypatch):
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    use_account(None)
    assert "WANDB_ENTITY" not in os.environ
    monkeypatch.setenv("WANDB_ENTITY", "before")  # so that it is put back
    use_account("a_team")
    assert wandb.Settings().entity is None  # read when a run starts
    settings = wandb.Settings()
    settings.update_from_env_vars(os.environ)
    assert settings.entity == "a_team"


class Dead:
    """A W&B run whose own process has died."""

    step = 0
    summary: dict = {}  # noqa: RUF012

    def log(self, *_, **__):
        raise BrokenPipeError("W&B is gone")

    finish = log


def test_the_hull_is_kept_where_wandb_dies_on_the_way(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr("wandb.init", lambda **_: Dead())
    with pytest.warns(UserWarning, match="W&B failed to") as warned:
        assert run_command(tmp_path, "train.py", *QUICK) is None
    told = [str(each.message) for each in warned if "W&B failed to" in str(each.message)]
    assert [each.split(" (")[0] for each in told] == [
        "W&B failed to log", "W&B failed to log the corners", "W&B failed to finish",
    ]  # fmt: skip
    assert (tmp_path / "run" / "collision.safetensors").exists()


def test_a_job_goes_on_offline_where_the_server_fails(tmp_path, monkeypatch):
    modes = []

    def init(*, mode, settings, **_):
        modes.append(mode)
        assert settings.init_timeout == 30
        if mode == "online":
            raise wandb.errors.CommError("no answer")
        return type("Run", (Dead,), {"finish": lambda *_, **__: None})()

    monkeypatch.setattr("wandb.init", init)
    settings = WandbSettings("online")
    with (
        pytest.warns(UserWarning, match=r"no answer; .* Continuing with wandb\.mode=offline"),
        wandb_logger(settings, tmp_path, "name", "group", {}) as logger,
    ):
        assert logger is not None
    assert modes == ["online", "offline"]
