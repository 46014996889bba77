"""State dicts as people have them: old, wrapped, nested, averaged, misnamed, of another head."""

import datetime
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from lightning.fabric.utilities.data import AttributeDict
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from feature_collisions.errors import SettingError
from feature_collisions.networks.torchvision_models import (
    _network,
    load_torchvision,
    side_of_torchvision,
)
from feature_collisions.networks.weights import load_weights
from feature_collisions.settings.train import ClassifierSettings


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(block, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def state_of(prefix: str = "", seed: int = 0) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in network(seed).state_dict().items()}


def saved(tmp_path: Path, content: object, name: str = "weights.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def assert_loads(weights: str | Path, seed: int = 0) -> None:
    model = network(9)
    load_weights(model, weights)
    for name, tensor in network(seed).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.", "model.module.",
     "model._orig_mod.", "net.", "backbone.encoder."],
)  # fmt: skip
@pytest.mark.parametrize("entry", ["", "state_dict", "model", "model_state_dict", "weights"])
def test_prefixes_and_one_nesting_are_read(tmp_path: Path, prefix: str, entry: str) -> None:
    state = state_of(prefix)
    assert_loads(saved(tmp_path, {entry: state, "epoch": 3} if entry else state))


def test_what_wrapped_inner_modules_put_into_names_is_left_out(tmp_path: Path) -> None:
    inner = {f"0._orig_mod.{k[2:]}" if k[0] == "0" else k: v for k, v in state_of().items()}
    assert_loads(saved(tmp_path, inner))
    parallel = {k.replace("_orig_mod", "module"): v for k, v in inner.items()}
    assert_loads(saved(tmp_path, parallel))


def test_an_averaged_model_and_a_training_checkpoint_are_read(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network())
    assert_loads(saved(tmp_path, averaged.state_dict()))
    optimizer = torch.optim.Adam(network().parameters()).state_dict()
    content = {"args": Namespace(lr=0.1), "optimizer": optimizer, "state_dict": state_of()}
    assert_loads(saved(tmp_path, content))


def test_lightning_keeps_other_modules_next_to_the_model(tmp_path: Path) -> None:
    state = state_of("model.") | state_of("ema_model.", 1) | {"loss.weight": torch.ones(3)}
    assert_loads(saved(tmp_path, {"state_dict": state, "hyper_parameters": {"lr": 1}}))


def test_counts_of_batches_may_be_missing(tmp_path: Path) -> None:
    old = {k: v for k, v in state_of("module.").items() if "num_batches" not in k}
    assert_loads(saved(tmp_path, old))
    save_file(old, tmp_path / "old.safetensors")
    assert_loads(tmp_path / "old.safetensors")


@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_an_average_is_chosen_by_name(tmp_path: Path, plain: str) -> None:
    path = saved(tmp_path, {"model_ema": state_of(seed=1), plain: state_of()})
    with pytest.warns(UserWarning, match="::model_ema"):
        assert_loads(path)
    assert_loads(f"{path}::model_ema", seed=1)
    with pytest.raises(SettingError, match=rf"classifier.weights.*missing.*{plain}"):
        load_weights(network(), f"{path}::missing")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pth", "weights"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    save_file(state_of(), tmp_path / name)
    assert_loads(tmp_path / name)


def test_a_misfit_names_what_the_file_holds(tmp_path: Path) -> None:
    other = {"generator": nn.Linear(2, 2).state_dict(), "discriminator": {"w": torch.ones(2)}}
    with pytest.raises(SettingError, match=r"do not fit .*generator, discriminator"):
        load_weights(network(), saved(tmp_path, other))
    with pytest.raises(SettingError, match=r"do not fit .*block\.weight"):
        load_weights(network(), saved(tmp_path, {"block.weight": torch.ones(2)}))
    with pytest.raises(SettingError, match=r"no state dict.*epoch, loss"):
        load_weights(network(), saved(tmp_path, {"epoch": 1, "loss": 0.5}))


def test_half_of_the_weights_is_refused(tmp_path: Path) -> None:
    state = state_of("module.")
    state.pop("module.3.weight")
    with pytest.raises(SettingError, match=r"do not fit .*3\.weight"):
        load_weights(network(), saved(tmp_path, state))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "model.st", "model"])
def test_what_torch_saved_is_known_by_its_content(tmp_path: Path, name: str, legacy: bool) -> None:
    path = tmp_path / name
    torch.save(state_of(), path, _use_new_zipfile_serialization=not legacy)
    assert_loads(path)


def test_a_cut_safetensors_file_is_called_one(tmp_path: Path) -> None:
    save_file(state_of(), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for size in (0, 4, 20, len(content) // 2):
        (tmp_path / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(SettingError, match="a damaged safetensors file"):
            load_weights(network(), tmp_path / "model.safetensors")


SETTINGS = {
    "Lightning's": AttributeDict(lr=0.1, inner=AttributeDict(depth=np.float64(3))),
    "numpy's numbers": [np.float32(1), np.float64(2), np.int64(3), np.bool_(True), np.str_("a")],
    "numpy's arrays": {"state": (np.arange(624, dtype=np.uint32), np.array([[1.5]]), np.eye(0))},
    "numpy's types": [np.dtype("float32"), np.dtype([("a", "i4"), ("b", "f8")])],
    "numpy's objects": np.array([{"a": np.float64(1)}, None], dtype=object),
    "paths": {"data": Path("data"), "seen": {1, 2}, "kept": frozenset({3}), "range": range(4)},
    "counts": defaultdict(list, {"loss": [np.float64(0.5)]}),
    "Namespaces": Namespace(inner=SimpleNamespace(lr=np.float64(1))),
    "OmegaConf's": OmegaConf.create({"lr": 0.1, "layers": [1, "a", None, {"b": True}]}),
    "times": datetime.datetime(2024, 1, 1) - datetime.datetime(2023, 1, 1),
    "bytes": [b"a\xff", bytearray(b"c"), 1j, slice(3)],
}


@pytest.mark.parametrize("entry", ["hyper_parameters", "callbacks"])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_trainers_keep_next_to_weights_is_passed_over(
    tmp_path: Path, name: str, entry: str
) -> None:
    assert_loads(saved(tmp_path, {entry: SETTINGS[name], "state_dict": state_of("model.")}))
    assert_loads(saved(tmp_path, {"state_dict": state_of("model."), entry: {"a": SETTINGS[name]}}))


def test_settings_are_not_taken_for_more(tmp_path: Path) -> None:
    """No function that a file names is called, not even a harmless one."""
    calls: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        path = saved(tmp_path, {"a": np.float64(1), "b": Namespace(x=1), "state_dict": state_of()})
        patch.setattr("numpy._core.multiarray.scalar", lambda *each: calls.append(each))
        patch.setattr("argparse.Namespace", lambda *each: calls.append(each))
        assert_loads(path)
    assert not calls
    for content in (np.float64(1), AttributeDict(lr=1), [Path("a")]):
        with pytest.raises(SettingError, match="holds no state dict"):
            load_weights(network(), saved(tmp_path, content))


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_nothing_is_executed(tmp_path: Path) -> None:
    harmful = (
        Namespace(x=Harmful()),
        AttributeDict(x=Harmful()),
        np.array([Harmful()], dtype=object),
    )
    for settings in harmful:
        assert_loads(saved(tmp_path, {"state_dict": state_of(), "hyper_parameters": settings}))
    torch.save(Harmful(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    for path in (tmp_path / "w.pt", saved(tmp_path, Harmful())):
        said = "contains what no checkpoint does|a saved object, which is not read"
        with pytest.raises(SettingError, match=said):
            load_weights(network(), path)


@pytest.mark.parametrize(
    ("name", "head", "classes"),
    [("resnet18", "fc", 10), ("squeezenet1_1", "classifier.1", 7), ("mobilenet_v3_small",
     "classifier.3", 2), ("densenet121", "classifier", 2000)],
)  # fmt: skip
def test_a_head_is_made_to_the_size_of_its_weights(
    tmp_path: Path, name: str, head: str, classes: int
) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    old = model.get_submodule(head)
    new = (
        nn.Linear(old.in_features, classes)
        if isinstance(old, nn.Linear)
        else nn.Conv2d(old.in_channels, classes, 1)
    )
    model.set_submodule(head, new)
    path = saved(
        tmp_path, {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}
    )
    found = load_torchvision(ClassifierSettings(name, str(path), "auto"))
    images = torch.rand(1, 3, 64, 64)
    model.eval()
    expected = model((images - found.mean) / found.std)
    torch.testing.assert_close(found.eval()(images), expected)
    assert expected.shape == (1, classes)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(tmp_path, state_of())
    assert_loads("~/weights.pt")


def test_a_transformer_of_torchvision_is_made_for_its_weights_images():
    choices = models.get_model_weights("vit_b_16")
    for name, side in {"DEFAULT": 224, "IMAGENET1K_SWAG_E2E_V1": 384}.items():
        settings = ClassifierSettings("vit_b_16", name, "auto")
        assert side_of_torchvision(settings) == side
        with torch.device("meta"):
            assert _network("vit_b_16", choices[name]).image_size == side
