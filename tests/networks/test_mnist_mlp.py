"""The classifier that ships: nobody waits for it, and its figures are the same everywhere."""

import json
import os

import pytest
import torch

from feature_collisions.data.files import load_tensors
from feature_collisions.errors import SettingError
from feature_collisions.networks import mnist_mlp
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.networks.weights import weights_hash
from feature_collisions.settings.train import ClassifierSettings
from helpers.commands import run_command, start

MLP = ClassifierSettings("mnist_mlp", None, "hidden1")
TRAINED = ClassifierSettings("mnist_mlp", None, "hidden1", train=True)


def test_what_ships_is_taken_whatever_the_seed(digits, monkeypatch):
    monkeypatch.setattr(mnist_mlp, "train_mnist_classifier", None)
    hashes = {weights_hash(load_classifier(MLP, digits, seed)) for seed in (0, 1)}
    assert hashes == {"e66617e9e506281b"}  # the README's figures are this network's
    assert mnist_mlp.accuracy(load_classifier(MLP, digits), digits.test) == pytest.approx(0.938)


def test_it_is_trained_anew_when_asked(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    train = mnist_mlp.train_mnist_classifier
    monkeypatch.setattr(mnist_mlp, "train_mnist_classifier", lambda on, seed: train(on, seed, 5))
    hashes = [weights_hash(load_classifier(TRAINED, digits, seed)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(list(tmp_path.rglob("classifiers/*"))) == 2


@pytest.mark.parametrize(
    "settings",
    [
        ClassifierSettings("squeezenet1_1", None, "features.12.squeeze", train=True),
        ClassifierSettings("mnist_mlp", "weights.safetensors", "hidden1", train=True),
    ],
)
def test_only_the_digits_classifier_is_trained_here(digits, settings):
    with pytest.raises(
        SettingError, match=r"classifier\.train=true: only mnist_mlp without weights"
    ):
        load_classifier(settings, digits)


def test_one_thread_and_two_give_the_same_figures(tmp_path):
    """The main job to the end; the second one, as a user starts it, does as an older processor."""
    older = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
    environment = os.environ | older | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    jobs = "1", "2"
    arguments = [("wandb.mode=disabled", f"hydra.run.dir={job}") for job in jobs]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with start("train.py", *arguments[1], cwd=tmp_path, env=environment) as job:
            assert run_command(tmp_path, "train.py", *arguments[0]) is None
            assert job.wait() == 0, job.stdout.read()
    finally:
        torch.set_num_threads(before)
    one, two = (load_tensors(tmp_path / n / "collision.safetensors")["corners"] for n in jobs)
    assert (one - two).abs().max() < 1e-6
    first, second = (json.loads((tmp_path / n / "summary.json").read_text()) for n in jobs)
    assert first["classifier_hash"] == second["classifier_hash"]
    for here, there in zip(first["corners"], second["corners"], strict=True):
        assert here.pop("side") == there.pop("side")
        assert here == pytest.approx(there, rel=1e-5)
