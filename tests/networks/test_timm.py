import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from feature_collisions.data.datasets import DataSplit, Images
from feature_collisions.errors import SettingError
from feature_collisions.graph.flow import last_layer
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import TargetLayer
from feature_collisions.settings.train import ClassifierSettings

timm = pytest.importorskip("timm", reason="timm is an extra")

from timm.models import save_for_hf  # noqa: E402

from feature_collisions.networks.classifiers import load_classifier  # noqa: E402
from feature_collisions.networks.timm_models import load_timm, size_of_timm  # noqa: E402

SIZE = (3, 64, 64)


def saved(tmp_path, name, **options):
    torch.manual_seed(0)
    network = timm.create_model(name, **options).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return network, str(tmp_path / "weights.safetensors")


def settings(name, weights):
    return ClassifierSettings(name, weights, "auto", None, library="timm")


@pytest.mark.parametrize("size", [SIZE, (3, 75, 52)])
def test_a_classifier_is_timms_own_behind_its_normalisation(tmp_path, size):
    """Padded by constants, for images of one size, where timm pads as TensorFlow does."""
    network, weights = saved(tmp_path, "tf_efficientnet_lite0")
    model = load_timm(settings("tf_efficientnet_lite0", weights), size).eval()
    images = torch.rand(2, *size)
    with torch.no_grad():
        expected = network((images - 0.5) / 0.5)
        assert torch.allclose(model(images), expected, rtol=1e-4, atol=1e-6)
        graph = trace(model, size)
        layer = last_layer(graph).layer
        assert layer == "bn2.batch_norm"
        assert TargetLayer(graph, layer)(images).shape[0] == 2
    assert graph.nodes.keys() >= {"conv_stem.pad", "blocks.0.0.bn1.batch_norm"}


def test_the_number_of_classes_is_that_of_the_weights(tmp_path):
    _, weights = saved(tmp_path, "resnet18", num_classes=7)
    model = load_timm(settings("resnet18", weights), SIZE).eval()
    assert model(torch.rand(1, *SIZE)).shape == (1, 7)
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_random_weights_are_the_same_each_time_and_said_to_be_untrained():
    with pytest.warns(UserWarning, match="untrained"):
        models = [load_timm(settings("resnet18", "random"), SIZE).eval() for _ in range(2)]
    images = torch.rand(1, *SIZE)
    assert torch.equal(models[0](images), models[1](images))
    assert settings("resnet18", "random").in_reports == "resnet18 (untrained)"
    before = torch.random.get_rng_state()
    with pytest.warns(UserWarning, match="untrained"):
        load_timm(settings("resnet18", "random"), SIZE)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "tf_efficientnet_lite",
            "x.pt",
            r"is not one of timm's classifiers; similar names are .*lite0",
        ),
        ("resnet18", None, r"resnet18 needs weights; give a file, .*downloaded: .*a1_in1k"),
        ("resnet18", "nonsense", r"weights=nonsense: resnet18 needs weights"),
        ("resnet18", "none.safetensors", r"none\.safetensors"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, weights, message):
    with pytest.raises(SettingError, match=message):
        load_timm(settings(name, weights), SIZE)


def test_weights_of_another_network_are_refused(tmp_path):
    _, weights = saved(tmp_path, "resnet18")
    with pytest.raises(SettingError, match=r"entries do not fit .*; give the weights of this arch"):
        load_timm(settings("resnet34", weights), SIZE)


def test_a_tag_is_downloaded_and_a_failure_is_one_message(monkeypatch):
    asked = []

    def create(name, pretrained=False, **options):
        asked.append((name, pretrained))
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(SettingError, match=r"weights=a1_in1k: resnet18\.a1_in1k cannot be downl"):
        load_timm(settings("resnet18", "a1_in1k"), SIZE)
    assert asked == [("resnet18.a1_in1k", True)]


def test_grey_images_are_refused(tmp_path):
    _, weights = saved(tmp_path, "resnet18")
    with pytest.raises(SettingError, match="takes images of 3 channels, and these have 1"):
        load_timm(settings("resnet18", weights), (1, 28, 28))


def test_images_have_the_classifiers_own_size_where_none_is_given():
    assert size_of_timm(settings("inception_v3", None)) == (299, 299)
    assert size_of_timm(settings("tf_efficientnet_lite0", None)) == (224, 224)
    with pytest.raises(SettingError, match="similar names are"):
        size_of_timm(settings("inception_v33", None))


def in_folder(folder, name="resnet18", **changes):
    """A network that timm saved for the hub, and the settings that read it."""
    arguments = changes.pop("arguments", {})
    network = timm.create_model(name, **arguments).eval()
    save_for_hf(network, folder, safe_serialization=True, model_args=arguments)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return network, ClassifierSettings("timm", None, "auto", str(folder), library="timm")


def test_a_folder_says_its_architecture_size_mean_and_names(tmp_path):
    arguments = {"img_size": [64, 32], "num_classes": 3, "patch_size": 16}
    given = {"mean": [0.1, 0.2, 0.3], "label_names": ["a", "b", "c"], "url": "https://nowhere"}
    network, settings = in_folder(tmp_path, "vit_tiny_patch16_224", arguments=arguments, **given)
    assert size_of_timm(settings) == (64, 32)
    model = load_timm(settings, (3, 64, 32)).eval()
    images = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        expected = network((images - torch.tensor(given["mean"]).view(3, 1, 1)) / 0.5)
        assert torch.allclose(model(images), expected, atol=1e-5)
    assert model.class_names == ("a", "b", "c")
    assert settings.paired().name == tmp_path.name
    with pytest.raises(SettingError, match=r"are 3x64x64 .*set data\.size=\[64,32\]"):
        load_timm(settings, SIZE)


def test_a_folder_may_hold_an_encoder_of_grey_images(tmp_path):
    arguments = {"num_classes": 0, "in_chans": 1}
    network, settings = in_folder(
        tmp_path, "test_resnet", arguments=arguments, mean=[0.4], std=[0.2]
    )
    model = load_timm(settings, (1, 28, 28)).eval()
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.allclose(model(images), network((images - 0.4) / 0.2), atol=1e-5)
    network, settings = in_folder(tmp_path, "test_resnet", arguments=arguments)
    model = load_timm(settings, (1, 28, 28)).eval()
    assert model.mean.item() == model.std.item() == 0.5  # the mean of its three


def test_weights_without_a_head_are_an_encoders(tmp_path):
    network, weights = saved(tmp_path, "test_resnet", num_classes=0)
    model = load_timm(settings("test_resnet", weights), SIZE).eval()
    with torch.no_grad():
        assert model(torch.rand(1, *SIZE)).shape == (1, network.num_features)
    images = Images(torch.zeros(1, *SIZE, dtype=torch.uint8), torch.zeros(1).long(), ("a",))
    with pytest.raises(SettingError, match=r"^classifier\.output=classes: .* is an encoder"):
        load_classifier(settings("test_resnet", weights), DataSplit(images, images))
    asked = replace(settings("test_resnet", weights), output="features")
    assert load_classifier(asked, DataSplit(images, images)).is_encoder
    _, weights = saved(tmp_path, "test_resnet")
    asked = replace(settings("test_resnet", weights), output="features")
    with pytest.raises(SettingError, match=r"^classifier\.output=features: .* a classifier"):
        load_classifier(asked, DataSplit(images, images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "resnet1"}, "architecture resnet1: is not one of timm's classifiers"),
        ({"model_args": {"checkpoint_path": "x.pt"}}, "model_args of config.json has checkpoint"),
        ({"model_args": {"wings": 2}}, "timm cannot make the test_resnet .*wings"),
        ({"pretrained_cfg": 3}, "config.json is not a config of timm"),
        ({"architecture": "test_vit"}, r"classifier\.weights=.*entries do not fit"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(tmp_path, change, message):
    _, settings = in_folder(tmp_path, "test_resnet")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SettingError, match=message):
        load_timm(settings, (3, 160, 160))


def test_it_is_said_where_timm_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(SettingError, match=r"pip install 'feature_collisions\[timm\]'"):
        load_timm(settings("resnet18", None), SIZE)
