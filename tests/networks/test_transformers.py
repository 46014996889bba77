import json
import socket

import pytest
import torch

from feature_collisions.errors import SettingError
from feature_collisions.graph.graph import trace
from feature_collisions.settings.train import ClassifierSettings

transformers = pytest.importorskip("transformers", reason="transformers is an extra")

from feature_collisions import load_network  # noqa: E402
from feature_collisions.networks.transformers_models import (  # noqa: E402
    load_transformers,
    size_of_transformers,
)

SIZE = (3, 32, 32)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 32, "image_size": 32, "patch_size": 8}  # fmt: skip
NAMES = {0: "cat", 1: "dog", 2: "sea\nlion"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def vit(folder, kind="ViTForImageClassification", **options):
    """A small ViT, and its image processor, saved to a folder."""
    config = transformers.ViTConfig(**SMALL, id2label=NAMES, **options)
    return saved(folder, getattr(transformers, kind)(config))


def saved(folder, model, processor="ViTImageProcessor", **options):
    model = model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    options = {"size": {"height": 32, "width": 32}, "image_std": [0.5, 0.4, 0.3]} | options
    getattr(transformers, processor)(**options).save_pretrained(folder)
    return model


def settings(path, **options):
    given = {"name": "transformers", "layer": "auto", "library": "transformers"}
    return ClassifierSettings(path=str(path), **given | options)


def edited(folder, name, **changes):
    values = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(values))


def test_a_classifier_is_the_model_behind_its_image_processor(tmp_path):
    model = vit(tmp_path)
    processor = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    loaded = load_transformers(settings(tmp_path), SIZE)
    picture = (255 * torch.rand(32, 32, 3)).to(torch.uint8)
    with torch.no_grad():
        expected = model(**processor(images=[picture.numpy()], return_tensors="pt")).logits
        found = loaded(picture.permute(2, 0, 1)[None] / 255)
    assert torch.allclose(found, expected, atol=1e-5)
    assert loaded.class_names == ("cat", "dog", "sea lion")
    assert size_of_transformers(settings(tmp_path)) == (32, 32)
    assert settings(tmp_path).paired().name == tmp_path.name
    graph = trace(loaded, SIZE)
    assert graph.any_batch, graph.reason
    assert "classifier" in graph.nodes


def test_load_network_reads_a_folder(tmp_path):
    vit(tmp_path)
    images = torch.rand(2, *SIZE)
    loaded = load_network("transformers", str(tmp_path))
    expected = load_transformers(settings(tmp_path), SIZE).eval()(images)
    assert torch.equal(loaded(images), expected)
    assert not loaded.training
    assert not any(each.requires_grad for each in loaded.parameters())


def test_channels_in_another_order_are_found(tmp_path):
    size = {"shortest_edge": 36}, {"height": 32, "width": 32}
    config = transformers.MobileNetV2Config(depth_multiplier=0.1, image_size=32, num_labels=3)
    saved(tmp_path, transformers.MobileNetV2ForImageClassification(config),
          "MobileViTImageProcessor", size=size[0], crop_size=size[1])  # fmt: skip
    loaded = load_transformers(settings(tmp_path), SIZE)
    assert loaded.order == [2, 1, 0]
    assert loaded.std.flatten().tolist() == pytest.approx([1, 1, 1])
    images = torch.rand(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(loaded(images), loaded.network(images.flip(1)).logits)


@pytest.mark.parametrize(("kind", "pooled"), [("ViTModel", True), ("ViTModel", False)])
def test_an_encoder_gives_what_it_was_trained_to_pool_or_its_class_token(tmp_path, kind, pooled):
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL)
    model = saved(tmp_path, transformers.ViTModel(config, add_pooling_layer=pooled))
    loaded = load_transformers(settings(tmp_path), SIZE)
    assert loaded.is_encoder
    images = torch.rand(2, *SIZE)
    with torch.no_grad():
        given = model((images - loaded.mean) / loaded.std)
        expected = given.pooler_output if pooled else given.last_hidden_state[:, 0]
        assert torch.allclose(loaded(images), expected, atol=1e-5)


def test_a_model_of_images_and_text_gives_the_embedding_of_images(tmp_path):
    parts = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=parts | {"vocab_size": 8}, vision_config=parts | {"image_size": 32,
        "patch_size": 8}, projection_dim=12)  # fmt: skip
    saved(tmp_path, transformers.CLIPModel(config))
    loaded = load_transformers(settings(tmp_path), SIZE)
    assert loaded(torch.rand(2, *SIZE)).shape == (2, 12)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_folder_with_code_is_refused(tmp_path, name):
    vit(tmp_path)
    edited(tmp_path, name, auto_map={"AutoModel": "modeling.Mine"})
    (tmp_path / "modeling.py").write_text("raise SystemExit('executed')")
    with pytest.raises(SettingError, match=rf"classifier\.path=.*{name} names Python code"):
        load_transformers(settings(tmp_path), SIZE)


def test_a_folder_without_weights_is_refused(tmp_path):
    vit(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingError, match=r"no weights in safetensors \(it has pytorch_model"):
        load_transformers(settings(tmp_path), SIZE)
    weights.write_bytes(b"nonsense")
    with pytest.raises(SettingError, match=r"classifier\.path=.*cannot be read"):
        load_transformers(settings(tmp_path), SIZE)


def test_weights_that_are_missing_are_not_drawn(tmp_path):
    vit(tmp_path, "ViTModel")
    edited(tmp_path, "config.json", architectures=["ViTForImageClassification"])
    with pytest.raises(SettingError, match=r"2 of the model's weights are not in .*classifier"):
        load_transformers(settings(tmp_path), SIZE)


@pytest.mark.parametrize(
    ("change", "size", "message"),
    [
        ({}, (3, 40, 40), r"takes images of 3x32x32, and these are 3x40x40 .*data\.size=32"),
        ({}, (1, 32, 32), "takes images of 3 channels, and these have 1"),
        ({"model_type": "nonsense"}, SIZE, r"classifier\.path=.*cannot be read"),
        ({"intermediate_size": 64}, SIZE, r"classifier\.path="),
    ],
)
def test_what_does_not_fit_is_said(tmp_path, change, size, message):
    vit(tmp_path)
    edited(tmp_path, "config.json", **change)
    with pytest.raises(SettingError, match=message):
        load_transformers(settings(tmp_path), size)


def test_a_folder_that_lacks_something_is_refused(tmp_path):
    with pytest.raises(SettingError, match="must be a folder"):
        load_transformers(settings(tmp_path / "none"), SIZE)
    vit(tmp_path)
    with pytest.raises(SettingError, match=r"leave classifier\.weights out"):
        load_transformers(settings(tmp_path, weights="a.pt"), SIZE)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(SettingError, match="preprocessor_config"):
        load_transformers(settings(tmp_path), SIZE)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SettingError, match="must contain an object"):
        load_transformers(settings(tmp_path), SIZE)


def test_it_is_said_where_transformers_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(SettingError, match=r"pip install 'feature_collisions\[transformers\]'"):
        load_transformers(settings(tmp_path), SIZE)
