"""`classifier.layer=auto`: what train.py says where no layer can be chosen."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from feature_collisions.commands.train import with_layer
from feature_collisions.errors import SettingError
from feature_collisions.graph.graph import trace
from helpers.settings import settings


class OfOneSize(nn.Module):
    """Takes images of 8 pixels, as timm's transformers take those of their size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 3))

    def forward(self, images):
        assert images.shape[-1] == 8, f"Input height ({images.shape[-1]}) doesn't match model (8)."
        return self.layers(images)


@pytest.mark.parametrize("solver", ["gradient", "exact"])
def test_a_wrong_size_is_named_before_a_layer_is_chosen(solver):
    found = replace(settings("classifier.layer=auto"), solver=solver)
    with pytest.raises(SettingError) as raised:
        with_layer(found, trace(OfOneSize(), torch.Size([1, 16, 16])))
    message = str(raised.value)
    assert "rejects an image of 1x16x16 (Input height (16) doesn't match model (8).)" in message
    assert message.endswith("use images of the network's size (data.size)")
