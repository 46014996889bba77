import sys

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from feature_collisions import load_network
from feature_collisions.data import image_folder
from feature_collisions.data.datasets import load_data
from feature_collisions.data.files import save_tensors, write_text
from feature_collisions.data.image_folder import class_names
from feature_collisions.data.images import save_png
from feature_collisions.errors import SettingError
from feature_collisions.evaluation.hull_of_run import hull_of
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.networks.torchvision_models import Classifier, load_torchvision
from feature_collisions.runs.run import load_run
from feature_collisions.search.find_corners import Search, find_corners
from feature_collisions.settings.evaluate import EvaluateSettings
from feature_collisions.settings.search import LossSettings, StopSettings
from feature_collisions.settings.train import ClassifierSettings, DataSettings
from helpers.commands import SHARED
from helpers.graphs import cut_at

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def squeezenet(weights):
    return load_classifier(
        ClassifierSettings("squeezenet1_1", str(weights), "features.12.squeeze"), None
    )


@pytest.fixture(scope="module")
def sample():
    root = SHARED / "data" / "imagenet-sample"
    if not root.exists():
        pytest.skip("the sample of ImageNet is not beside the checkout")
    return load_data(DataSettings("image_folder", str(root))).test


@pytest.fixture(scope="module")
def trained():
    weights = SHARED / "weights" / "squeezenet1_1.safetensors"
    if not weights.exists():
        pytest.skip("SqueezeNet's weights are not beside the checkout")
    return squeezenet(weights)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Classifier(models.squeezenet1_1(weights=None), MEAN, STD).eval()


def test_load_network_reads_a_file_of_weights(small, tmp_path):
    save_tensors(tmp_path / "weights.safetensors", small.network.state_dict())
    loaded = load_network("torchvision", "squeezenet1_1", str(tmp_path / "weights.safetensors"))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(loaded(images), small(images))
    with pytest.raises(SettingError, match="library=hub"):
        load_network("hub", "squeezenet1_1")


def test_normalisation_is_inside(small):
    images = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(small(images), small.network((images - mean) / std))


def test_layers_keep_torchvisions_names(small):
    images = torch.rand(1, 3, 64, 64)
    normal = (images - small.mean) / small.std
    for block in range(12):
        normal = small.network.features[block](normal)
    expected = small.network.features[12].squeeze(normal).flatten(1)
    torch.testing.assert_close(cut_at(small, "features.12.squeeze", images)(images), expected)
    with pytest.raises(SettingError, match=r"layer=nowhere: is not .* features\.12\.squeeze"):
        cut_at(small, "nowhere", images)


@pytest.mark.parametrize(
    ("name", "layer"), [("shufflenet_v2_x0_5", "conv5.1"), ("resnet18", "layer4.1.add")]
)
def test_weights_are_read_from_either_kind_of_file(tmp_path, name, layer):
    network = models.get_model(name, weights=None)
    save_tensors(tmp_path / "weights.safetensors", network.state_dict())
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    images = torch.rand(1, 3, 64, 64)
    outputs = []
    for ending in ("safetensors", "pth"):
        settings = ClassifierSettings(name, str(tmp_path / f"weights.{ending}"), layer)
        model = load_classifier(settings, None)
        assert not any(parameter.requires_grad for parameter in model.parameters())
        cut_at(model, layer, images)(images)
        outputs.append(model(images))
    expected = network.eval()((images - model.mean) / model.std)
    assert torch.equal(outputs[0], expected)
    assert torch.equal(outputs[1], expected)


class Payload:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_pickled_payload_in_weights_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Payload()}, "weights.pth")
    with pytest.raises(SettingError, match=r"weights\.pth: .*holds no state dict"):
        squeezenet("weights.pth")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_architecture_name_the_keys(tmp_path):
    save_tensors(tmp_path / "other.safetensors", models.shufflenet_v2_x0_5().state_dict())
    with pytest.raises(SettingError, match=r"entries do not fit SqueezeNet .*expected none, found"):
        squeezenet(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("vgg61", "DEFAULT", r"classifier.name=vgg61: must be .* similar names are .*vgg16"),
        ("vgg16", None, r"classifier.weights=None: give .*IMAGENET1K_V1.* or a file"),
        ("vgg16", "IMAGENET", r"weights=IMAGENET: must be one of DEFAULT, IMAGENET1K_V1"),
        ("vgg16", "gone.pth", r"weights=gone\.pth: there is no such file"),
        ("vgg16", "gone.safetensors", r"weights=gone\.safetensors: there is no such file"),
    ],
)
def test_what_names_no_classifier_is_refused(name, weights, message):
    with pytest.raises(SettingError, match=message):
        load_classifier(ClassifierSettings(name, weights, "classifier.0"), None)


def test_weights_that_cannot_be_downloaded_say_what_to_bring(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        SettingError, match=r"squeezenet1_1-.*pth cannot be .*no route.* copy that file from .* to"
    ):
        squeezenet("IMAGENET1K_V1")


MODULE = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3))
number = 7
def count():
    return 7
"""


def test_a_classifier_of_the_users_own_is_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_classifier_a.py").write_text(MODULE)
    model = load_classifier(ClassifierSettings("file", None, "1", "own_classifier_a:make"), None)
    assert isinstance(model, nn.Sequential)
    for path, message in [
        (None, "classifier.path: give MODULE:NAME"),
        ("own_classifier_a", "give MODULE:NAME"),
        (
            "own_classifier_a:mak",
            "a has no mak; did you mean make.* without arguments: make, count",
        ),
        ("own_classifier_a.py", "without .py; .* and give own_classifier_a:NAME"),
        ("no_such_module_x:make", "No module named"),
        ("models/own_classifier_a.py:make", "without .py; .* and give own_classifier_a:make"),
        ("own_classifier_a:count", "must be a torch.nn.Module, is a int"),
    ]:
        with pytest.raises(SettingError, match=message):
            load_classifier(ClassifierSettings("file", None, "1", path), None)


def test_a_run_cannot_name_code_to_import(tmp_path, monkeypatch, shift, shift_images):
    hull = find_corners(shift, "hidden", *shift_images, [0, 1], trainer={"accelerator": "cpu"})
    hull.summary["classifier"] = "file"
    hull.save(tmp_path / "run")
    (tmp_path / "own_classifier_b.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    write_text(
        tmp_path / "run" / "config.yaml",
        "seed: 0\ndata: {name: digits, root: null}\nclassifier: {name: file, weights: null, "
        "layer: hidden, path: 'own_classifier_b:make'}\n",
    )
    with pytest.raises(SettingError, match=r"name it with classifier\.path=MODULE:NAME"):
        hull_of(load_run(tmp_path / "run"), EvaluateSettings())
    assert "own_classifier_b" not in sys.modules


def folder_of(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9, 7), 60).save(root / name)
    return str(root)


def test_an_index_is_the_rank_among_all_1000(tmp_path):
    root = folder_of(tmp_path, "n01443537/a.png", "n15075141/b.png", "n15075141/c.JPEG")
    images = load_data(DataSettings("image_folder", root, 8)).test
    assert images.labels.tolist() == [1, 999, 999]
    assert images.class_names == class_names()
    assert len(images) == 3
    for choice in ("toilet tissue:1", "999:1", "n15075141:1"):
        image, label = images.find("target", choice)
        assert (image.shape, label) == ((3, 8, 8), 999)
    assert torch.equal(images.find("i", "goldfish").image, images[0])
    assert images.find("i", root + "/n01443537/a.png").label is None
    with pytest.raises(SettingError, match="class tench has no image here"):
        images.find("initial", "tench")
    with pytest.raises(SettingError, match=r"no such class; .* similar names are .*goldfish"):
        images.find("initial", "golfish")


def test_folders_of_any_names_are_counted_in_order(tmp_path):
    images = load_data(
        DataSettings("image_folder", folder_of(tmp_path, "dog/a.png", "cat/a.png"), 8)
    ).test
    assert images.class_names == ("cat", "dog")
    assert images.find("initial", "dog").label == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"no image in the folders.* \.jpg, .*\.png"),
        (("n01443537/a.png", "cats/a.png"), "cats is not one of ImageNet's 1000"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(tmp_path, files, message):
    with pytest.raises(SettingError, match=message):
        load_data(DataSettings("image_folder", folder_of(tmp_path, *files)))


def test_the_mean_distance_is_over_all_pairs(tmp_path):
    root = folder_of(tmp_path, "a/1.png", "a/22.png", "b/333.png")
    images = load_data(DataSettings("image_folder", root, 8)).test
    expected = torch.pdist(torch.stack([images[i] for i in range(3)]).flatten(1)).mean()
    assert images.mean_distance() == pytest.approx(float(expected), rel=1e-4)
    pictures = torch.stack([images[i] for i in range(3)])
    for square, found in images.mean_distances((1, 2, 4, 8, 16)).items():
        means = torch.nn.functional.avg_pool2d(pictures, square).flatten(1)
        assert found == pytest.approx(square * float(torch.pdist(means).mean()), rel=1e-3)


def test_the_images_are_read_once_for_all_hulls_and_again_where_one_has_changed(tmp_path):
    settings = DataSettings("image_folder", folder_of(tmp_path, "a/1.png", "b/22.png"), 8)
    first = load_data(settings).test.mean_distance()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder, "load_image", None)  # whoever reads one fails
        assert load_data(settings).test.mean_distance() == first
    save_png(tmp_path / "a" / "1.png", torch.ones(3, 8, 8))
    assert load_data(settings).test.mean_distance() != first


def test_the_sample_is_labelled_right(sample, trained):
    """SqueezeNet gets 61 % of all right; were the indices wrong, next to none."""
    chosen = range(0, len(sample), 20)
    with torch.inference_mode():
        predicted = torch.cat([trained(sample[i][None]).argmax(1) for i in chosen])
    assert (predicted == sample.labels[::20]).float().mean() > 0.4


def test_the_samples_distance_is_about_the_papers(sample):
    assert sample.mean_distance(most=150) * 255 == pytest.approx(37538, rel=0.06)


def test_a_search_on_squeezenet_comes_closer(trained, sample):
    search = Search(
        trained,
        "features.12.squeeze",
        sample.find("initial", "trimaran").image,
        sample.find("target", "obelisk").image,
        [0, 1],
        loss=LossSettings.paper(100.0, 10.0, positive_form="half_square", hull=1),
        stop=StopSettings(None, 0, 4, 0.18, 0.05),
        trainer={"accelerator": "cpu"},
        channels_last=True,
    )
    search.optimizer.rate = 4 / 255
    start = search.module.parameterisation().detach()
    before = float(search.module.loss.interior(search.module.network(start)).max()) / 100
    with pytest.warns(UserWarning, match="positive_relative=0.18"):
        hull = search.run()
    assert hull.summary["corners"][0]["positive"] ** 2 / 2 < before / 2
    assert hull.summary["distance_scale"] == 255


def test_images_too_small_for_the_network_are_refused(small):
    a, b = torch.rand(2, 3, 8, 8)
    with pytest.raises(SettingError, match=r"target: the network .*rejects an image of 3x8x8"):
        Search(small, "features.12.squeeze", a, b, trainer={"accelerator": "cpu"})


def test_random_weights_of_torchvision_are_said_to_be_untrained():
    with pytest.warns(UserWarning, match="untrained"):
        models = [load_torchvision(ClassifierSettings("squeezenet1_1", "random", "auto"))
                  for _ in range(2)]  # fmt: skip
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
