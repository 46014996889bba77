from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from torch import nn

from feature_collisions.commands.pairs import parse_pairs
from feature_collisions.commands.start import register_schemas
from feature_collisions.errors import SettingError
from feature_collisions.settings.survey import tell_of_networks
from feature_collisions.settings.train import ClassifierSettings, Settings, to_settings
from helpers.settings import CONF


class Knows(nn.Module):
    """Right about the digits that hold less ink than `most`, else off by one."""

    def __init__(self, images, most):
        super().__init__()
        self.most = most
        self.labels = {
            image.numpy().tobytes(): int(label)
            for image, label in zip(images[:], images.labels, strict=True)
        }

    def forward(self, images):
        labels = torch.tensor([self.labels[image.numpy().tobytes()] for image in images])
        wrong = images.mean((1, 2, 3)) > self.most
        return nn.functional.one_hot((labels + wrong) % 10, 10).float()


@pytest.fixture
def images(digits):
    return digits.test


def right(model, images, pair):
    found = [images.find("initial", pair.initial), images.find("target", pair.target)]
    return all(int(model(each.image[None]).argmax()) == each.label for each in found)


def test_pairs_of_a_survey_are_right_in_every_network_whatever_their_order(images):
    models = [Knows(images, most) for most in (0.12, 0.15, 1.0)]
    pairs = parse_pairs("random:20", images, 0, models)
    assert pairs == parse_pairs("random:20:0", images, 0, models[::-1])
    assert all(right(model, images, pair) for model in models for pair in pairs)
    # the same draw, of which each network leaves out what it is wrong about
    every = parse_pairs("random:300", images, 0, models[2:])
    kept = [pair for pair in every if all(right(model, images, pair) for model in models)]
    assert pairs == kept[:20]
    assert pairs != every[:20]


def test_a_single_network_need_not_be_right_unless_it_is_asked_for(images):
    model = Knows(images, 0.12)
    assert not all(
        right(model, images, pair) for pair in parse_pairs("random:20", images, 0, [model])
    )
    assert all(
        right(model, images, pair) for pair in parse_pairs("random:20:0", images, 0, [model])
    )


def test_a_survey_without_a_pair_that_all_are_right_about_says_so(images):
    models = [Knows(images, most) for most in (1.0, -1.0)]
    with pytest.raises(
        SettingError,
        match=r"pairs=random:2: only 0 of 200 draws have images that all 2 classifiers are right "
        r"about \(they are, in their order, about (\d+), 0 of \1, and 0 is chance: are weights "
        r"missing\?\); leave the worst out",
    ):
        parse_pairs("random:2", images, 0, models)


def test_a_classifier_of_other_classes_is_right_about_nothing_known(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    with pytest.raises(SettingError, match="a classifier has 3 classes and the data set 10"):
        parse_pairs("random:2:0", images, 0, [model])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["classifier.path=m:a,m:b"], [{"path": "m:a"}, {"path": "m:b"}]),
        (["classifier.path=m:a,m:b", "classifier.layer=x,y"], [{"path": "m:a"}, {"path": "m:b"}]),
        (
            ["classifier.name=resnet18,vgg11", "classifier.weights='a b.pt',null"],
            [
                {"name": name, "weights": weights}
                for name in ("resnet18", "vgg11")
                for weights in ("a b.pt", None)
            ],
        ),
        (
            ["classifier=resnet50,vgg16"],
            [
                {"name": "resnet50", "weights": "IMAGENET1K_V2"},
                {"name": "vgg16", "weights": "IMAGENET1K_V1"},
            ],
        ),
        (
            ["classifier.path=m:a::a.pt,m:a::b.pt::ema"],
            [{"path": "m:a::a.pt"}, {"path": "m:a::b.pt::ema"}],
        ),
        (
            ["classifier.name=resnet18::a.pt,vgg11", "classifier=timm"],
            [{"name": "resnet18::a.pt"}, {"name": "vgg11"}],
        ),
        (["corner=1,2"], []),
        (["classifier.path=m:a"], []),
        (["classifier.path=m:a,m:b", "networks=[{path:c}]"], [{"path": "c"}]),
    ],
)
def test_every_job_of_a_sweep_over_classifiers_is_told_of_all(arguments, expected):
    told = tell_of_networks([*arguments, "pairs=random:8"], CONF)
    register_schemas(ConfigStore.instance())
    job = [each for each in told if each.startswith("networks=")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = to_settings(compose("config", job))
    assert settings.networks == expected
    assert [vars(each) for each in settings.classifiers()] == [
        vars(replace(settings.classifier, **each).paired()) for each in expected or [{}]
    ]


def test_weights_are_of_the_network_that_names_them():
    """Those of one job are not another network's; `weights` is for networks that name none."""
    own = ClassifierSettings("file", None, "auto", path="m:a::a.pt")
    networks = [{"path": "m:a::a.pt"}, {"path": "m:b"}, {"path": "m:c::~/c.pt::ema"}]
    settings = Settings("x", own, networks=networks).paired()
    expected = [("m:a", "a.pt"), ("m:b", None), ("m:c", str(Path("~/c.pt::ema").expanduser()))]
    assert [(each.path, each.weights) for each in settings.classifiers()] == expected
    assert (settings.classifier.path, settings.classifier.weights) == expected[0]
    assert settings.paired() == settings
    shared = Settings("x", replace(own, weights="w.pt"), networks=networks).classifiers()
    assert [each.weights for each in shared[:2]] == ["a.pt", "w.pt"]
    named = ClassifierSettings("resnet18::r.pt", None, "auto").paired()
    assert (named.name, named.weights, named.path) == ("resnet18", "r.pt", None)


def test_a_sweep_without_random_pairs_is_left_as_it_is():
    arguments = ["classifier.path=m:a,m:b", "pairs=FILE.csv"]
    assert tell_of_networks(arguments, CONF) == arguments


def test_networks_say_nothing_but_which_network(command):
    answer = command("train.py", "networks=[{layer:x}]")
    rule = "an entry has library, name, path and weights, not layer"
    assert answer.startswith(f"error: networks: {rule}")
