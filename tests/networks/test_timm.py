import pytest
import torch
from safetensors.torch import save_file

from feature_collisions.errors import SettingError
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import TargetLayer, last_hidden_layer
from feature_collisions.settings.train import ClassifierSettings

timm = pytest.importorskip("timm", reason="timm is an extra")

from feature_collisions.networks.timm_models import load_timm, side_of_timm  # noqa: E402

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
        layer = last_hidden_layer(graph)
        assert layer == "bn2.batch_norm"
        assert TargetLayer(graph, layer)(images).shape[0] == 2
    assert graph.nodes.keys() >= {"conv_stem.pad", "blocks.0.0.bn1.batch_norm"}


def test_the_number_of_classes_is_that_of_the_weights(tmp_path):
    _, weights = saved(tmp_path, "resnet18", num_classes=7)
    model = load_timm(settings("resnet18", weights), SIZE).eval()
    assert model(torch.rand(1, *SIZE)).shape == (1, 7)
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("tf_efficientnet_lite", "x.pt", r"is none of timm's classifiers; near it are .*lite0"),
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
    assert side_of_timm("inception_v3") == 299
    assert side_of_timm("tf_efficientnet_lite0") == 224
    with pytest.raises(SettingError, match="near it are"):
        side_of_timm("inception_v33")


def test_it_is_said_where_timm_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(SettingError, match=r"pip install 'feature_collisions\[timm\]'"):
        load_timm(settings("resnet18", None), SIZE)
