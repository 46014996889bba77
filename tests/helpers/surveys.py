"""A survey of two tiny networks: one has ReLUs, the other clipped ones."""

import torch
from safetensors.torch import save_file
from torch import nn

NETWORKS = """
from pathlib import Path
from safetensors.torch import load_file
from torch import nn

def load(activation, name):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 60), activation, nn.Linear(60, 10))
    network.load_state_dict(load_file(Path(__file__).with_name(f"{name}.safetensors")))
    return network

def plain():
    return load(nn.ReLU(), "plain")

def clipped():
    return load(nn.ReLU6(), "clipped")

def shape():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 60), nn.ReLU(), nn.Linear(60, 10))
"""
BOTH = "classifier.path=[survey_networks:plain,survey_networks:clipped]"
SWEEP = (
    "experiment=small_pixel", "data=digits", "classifier=file",
    "classifier.path=survey_networks:plain,survey_networks:clipped", "corner=[0,1,2]",
    "stop.min_steps=30", "stop.max_steps=30", "wandb.mode=disabled",
)  # fmt: skip
"""A sweep over both, but for its pairs."""
MEASURE = ("samples=100", "worst_case.steps=3", "proof.seconds=0.2", "wandb.mode=disabled")


def write_networks(folder, digits):
    """`survey_networks.py` and the weights that it reads."""
    (folder / "survey_networks.py").write_text(NETWORKS)
    save_file(fitted(nn.ReLU(), digits, 0), folder / "plain.safetensors")
    save_file(fitted(nn.ReLU6(), digits, 1), folder / "clipped.safetensors")


def fitted(activation, digits, seed):
    """Random hidden units and the readout of least squares: some nine of ten digits are right."""
    torch.manual_seed(seed)
    hidden, output = nn.Linear(784, 60), nn.Linear(60, 10)
    with torch.no_grad():
        hidden.weight.mul_(8)
        units = activation(hidden(digits.train[:].flatten(1)))
        ones = torch.cat([units, torch.ones(len(units), 1)], 1)
        wanted = nn.functional.one_hot(digits.train.labels, 10).float()
        found = torch.linalg.lstsq(ones, wanted).solution
        output.weight.copy_(10 * found[:-1].T)
        output.bias.copy_(10 * found[-1])
    return nn.Sequential(nn.Flatten(), hidden, activation, output).state_dict()
