"""A network in a folder, from `train.py` to the report, on pictures that are not square."""

import shutil

import pytest
import torch
import yaml
from torchvision.utils import save_image

transformers = pytest.importorskip("transformers", reason="transformers is an extra")

FEW = ("stop.max_steps=2", "stop.min_steps=1", "corner=0..1", "wandb.mode=disabled")
QUICK = ("samples=20", "plain.steps=2", "proof.seconds=0.1", "wandb.mode=disabled")


pytestmark = pytest.mark.filterwarnings("ignore:not converged")


@pytest.fixture
def folder(tmp_path):
    """A small ResNet of seven classes whose image processor gives 24x32, and images of two."""
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=7
    )
    config.id2label = {k: f"kind {k}" for k in range(7)}
    config.label2id = None
    model = transformers.ResNetForImageClassification(config)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(tmp_path / "small")
    size = {"height": 24, "width": 32}
    transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / "small")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            save_image(torch.rand(3, 24, 32), tmp_path / "images" / name / f"{number}.png")
    return tmp_path


@pytest.mark.usefixtures("undrawn")
def test_a_folder_is_searched_and_evaluated_where_it_is_now(folder, command, capsys):
    answer = command(
        "train.py", "experiment=small_pixel", "classifier=transformers", "classifier.path=small",
        "data=image_folder", "data.root=images", "data.size=null", "initial=a", "target=b", *FEW,
        "hydra.run.dir=run",
    )  # fmt: skip
    assert answer is None
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["data"]["size"] == [24, 32]
    assert config["classifier"]["name"] == "small"
    assert "kind " in capsys.readouterr().out
    shutil.move(folder / "small", folder / "moved")
    assert "must be a folder" in command("evaluate.py", "run=run", *QUICK)
    assert command("evaluate.py", "run=run", "classifier.path=moved", *QUICK) is None
    assert "kind " in (folder / "run" / "report.md").read_text()
