import re
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feature_collisions.errors import SettingError
from feature_collisions.graph.activations import IDENTITY, RELU
from feature_collisions.graph.flow import following, last_layer
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target import TargetFeatures
from feature_collisions.graph.target_layer import Observed, TargetLayer
from helpers.graphs import cut_at

IMAGE = torch.zeros(1, 3, 3)


class Convolutional(nn.Module):
    """In-place ReLUs, a residual sum, a flatten before a ReLU: the shapes real networks have."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.third = nn.Linear(36, 8)
        self.output = nn.Linear(8, 2)

    def forward(self, images):
        first = self.relu(self.first(images))
        second = self.second(first)
        second += first
        second = F.relu(second, inplace=True)
        third = self.relu(self.drop(self.third(second.flatten(1))))
        return self.output(third)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Convolutional()


def reference(network, images):
    """Each layer's pre-activations, with no in-place operation."""
    first = network.first(images)
    added = network.second(first.relu()) + first.relu()
    return {"first": first, "add": added, "third": network.third(added.relu().flatten(1))}


@pytest.mark.parametrize("layer", ["first", "add", "third"])
def test_the_cut_sees_values_before_an_in_place_relu(network, layer):
    images = torch.rand(3, 1, 3, 3)
    with torch.no_grad():
        expected = reference(network, images)[layer].flatten(1)
    assert (expected < 0).any()
    assert torch.allclose(cut_at(network, layer, images)(images), expected, atol=1e-6)


def test_nothing_after_the_layer_is_kept(network):
    cut = cut_at(network, "first", IMAGE)
    assert [name for name, _ in cut.network.named_parameters()] == ["first.weight", "first.bias"]


def test_the_users_model_is_left_alone(network):
    network.train()
    network.drop.eval()
    cut = cut_at(network, "third", IMAGE).double()
    assert network.training
    assert not network.drop.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert all(not p.requires_grad and p.dtype == torch.float64 for p in cut.parameters())
    assert not any(module.training for module in cut.network.modules())


def test_a_layer_that_does_not_exist_is_refused(network):
    with pytest.raises(SettingError, match=r"layer=fourth: is not a layer .*: first, add, third$"):
        cut_at(network, "fourth", IMAGE)


def test_a_layer_before_nothing_flat_is_its_own_feature(network):
    graph = trace(network, IMAGE.shape)
    assert following(graph, "output") == (IDENTITY, ())
    images = torch.rand(2, *IMAGE.shape)
    assert torch.equal(cut_at(network, "output", images)(images), network.eval()(images))


def test_several_layers_are_one(network):
    """What the two give stands in a row; the first alone is gone past by the second."""
    graph = trace(network, IMAGE.shape)
    images = torch.rand(2, *IMAGE.shape)
    expected = reference(network, images)
    with torch.no_grad():
        found = cut_at(network, "first,third", images)(images)
    assert torch.allclose(found, torch.cat([expected[n].flatten(1) for n in ("first", "third")], 1))
    assert following(graph, "first,third") == (RELU, ())
    with pytest.raises(SettingError, match="layer=third,output: different activations"):
        following(graph, "third,output")


class Untraceable(nn.Module):
    """Its forward depends on values, which no graph holds."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(9, 5)
        self.relu = nn.ReLU(inplace=True)
        self.unused = nn.Linear(1, 1)
        self.went_on = False

    def forward(self, images):
        if images.sum() < 0:
            return images
        hidden = self.relu(self.hidden(images.flatten(1)))
        self.went_on = True
        return hidden


def test_models_that_cannot_be_traced_are_stopped_at_the_layer():
    torch.manual_seed(0)
    network, images = Untraceable(), torch.rand(7, 1, 3, 3)
    expected = F.linear(images.flatten(1), network.hidden.weight, network.hidden.bias)
    assert (expected < 0).any()
    cut = cut_at(network, "hidden", images)
    assert torch.equal(cut(images), expected)
    assert not cut.network.model.went_on
    with pytest.raises(SettingError, match=r"layer=nope: .* its modules are hidden, relu, unused"):
        cut_at(network, "nope", images)
    with pytest.raises(SettingError, match="the network never calls it"):
        cut_at(network, "unused", images)(images)


def test_of_many_layers_the_nearest_and_the_last_are_named():
    network = nn.Sequential(*(m for _ in range(100) for m in (nn.Linear(1, 1), nn.ReLU())))
    with pytest.raises(SettingError, match=r"layer=970: is not a layer .*98") as error:
        cut_at(network, "970", torch.zeros(1, 1, 1))
    message = str(error.value)
    assert re.search(r": (\d+, )+198 and \d+ others$", message)
    assert len(message) < 250


def test_corners_beyond_the_inactive_units_are_refused():
    target = TargetFeatures(torch.tensor([1.0, -1.0, -2.0]))
    with pytest.raises(SettingError, match=r"corner=2: the target has 2 inactive units.*0 to 1"):
        target.units([0, 2])


def test_units_inactive_at_the_start_may_be_counted_first():
    target = TargetFeatures(torch.tensor([-1.0, 1.0, -2.0, -3.0, -4.0, 2.0]))
    start = torch.tensor([0.5, -9.0, -1.0, 2.0, 0.0, 1.0])
    assert target.units(range(4)).tolist() == [0, 2, 3, 4]
    assert target.units(range(4), start).tolist() == [2, 4, 0, 3]


class Beside(nn.Module):
    """Two ReLUs: one that all goes through, and a later one that only a part does."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images):
        hidden = self.first(images.flatten(1)).relu()
        return self.last(hidden * self.gate(hidden).relu())


def test_the_last_layer_is_one_that_everything_flows_through():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    assert last_layer(trace(network, (1, 2, 2))).layer == "3"
    assert last_layer(trace(Beside(), (1, 2, 2))).layer == "first"
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LeakyReLU(), nn.Linear(3, 2))
    assert last_layer(trace(smooth, (1, 2, 2))).layer == "2"


class Block(nn.Module):
    """Two branches, each with an activation, that are joined at the end."""

    def __init__(self, other=torch.relu):
        super().__init__()
        self.other = other
        self.stem, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(6, 4)
        self.head = nn.Linear(9, 3)

    def forward(self, images):
        stem = self.stem(images.flatten(1)).sin()
        return self.head(torch.cat([self.a(stem).relu(), self.other(self.b(stem))], 1))


def test_the_branches_of_a_block_are_one_layer():
    graph = trace(Block(), (1, 2, 2))
    assert last_layer(graph).layer == "a,b"
    assert following(graph, "a,b") == (RELU, ())
    assert following(graph, "a").past
    assert last_layer(trace(Block(torch.sin), (1, 2, 2))).layer == "cat"


def test_an_early_layer_is_none_for_auto():
    """A ReLU at the stem, and then only what hides nothing: the last feature is taken."""
    deep = [each for _ in range(7) for each in (nn.Linear(4, 4), nn.LeakyReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), *deep, nn.Linear(4, 3))
    graph = trace(model, (1, 2, 2))
    assert last_layer(graph).layer == "16"
    assert last_layer(graph, "features").layer == "17"


class Past(nn.Module):
    """A layer with a ReLU behind it, and what its values also reach, or a branch past it."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, images):
        first = self.first(images.flatten(1)).relu()
        layer = self.layer(first)
        if self.how == "read":
            return self.last(layer.relu() + 0.1 * layer)
        if self.how == "branch":
            return self.last(layer.relu() + first)
        if self.how == "norm":
            return self.last(layer.relu()) * layer.norm(dim=1, keepdim=True)
        if self.how == "reshaped":
            return self.last(layer.view(-1, 2, 3).transpose(1, 2).relu().flatten(1))
        if self.how == "two":
            return self.last(layer.relu() + layer.clamp(0, 6))
        return self.last(layer.relu())


@pytest.mark.parametrize("how", ["read", "branch", "norm"])
def test_what_goes_past_a_layer_is_known(how):
    found = following(trace(Past(how), (1, 2, 2)), "layer")
    assert found.activation == RELU
    assert found.past


@pytest.mark.parametrize("how", ["plain", "reshaped", "two"])
def test_nothing_goes_past_a_layer_that_all_flows_through(how):
    assert following(trace(Past(how), (1, 2, 2)), "layer") == (RELU, ())


@pytest.mark.parametrize("how", ["plain", "read", "branch", "two"])
def test_what_is_run_may_write_in_place_and_computes_the_same(how):
    torch.manual_seed(0)
    model, images = Past(how), torch.rand(5, 1, 2, 2)
    graph = trace(model, (1, 2, 2))
    found = []
    for network in (graph.network, Observed(graph, "layer").network):
        given = images.clone().requires_grad_()
        output = network(given)
        logits = output[0] if isinstance(output, tuple) else output
        logits.square().sum().backward()
        found.append((logits.detach(), given.grad))
    for plain, in_place in zip(*found, strict=True):
        assert torch.equal(plain, in_place)
    observed = Observed(graph, "layer")
    first = model.first(images.flatten(1)).relu()
    assert torch.equal(observed(images)[1], model.layer(first))


def test_a_relu_on_the_output_hides_no_feature_but_of_an_encoder():
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU())
    graph = trace(smooth, (1, 3, 3))
    assert last_layer(graph).layer == "1"
    assert last_layer(graph, "features").layer == "3"


def test_more_corners_than_there_are_inactive_units_are_refused():
    target = TargetFeatures(torch.tensor([1.0, -1.0, 0.5, -2.0]))
    assert target.units(range(2)).tolist() == [1, 3]
    rule = r"^corner=2: the target has 2 inactive units .* 0 to 1$"
    with pytest.raises(SettingError, match=rule):
        target.units(range(50))


@pytest.mark.parametrize("name", ["layer1", "network.layer1.0.cov"])
def test_a_layer_of_a_similar_name_is_suggested(name):
    block = nn.ModuleDict({"layer1": nn.Sequential(nn.Sequential(OrderedDict(
        conv=nn.Conv2d(1, 2, 1), relu=nn.ReLU())))})  # fmt: skip

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = block
            self.last = nn.Linear(2 * 9, 3)

        def forward(self, images):
            return self.last(self.network["layer1"](images).flatten(1))

    graph = trace(Named(), torch.Size([1, 3, 3]))
    with pytest.raises(SettingError, match=r"did you mean network\.layer1\.0\.conv\?"):
        TargetLayer(graph, name)
