"""Code under autocast, no_grad or a checkpoint has the values and the gradient of the model."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from feature_collisions import exact_hull, find_corners
from feature_collisions.errors import SettingError
from feature_collisions.exact.first_layer import first_layer
from feature_collisions.exact.hidden import hidden_dimensions
from feature_collisions.graph.flow import last_layer
from feature_collisions.graph.graph import frozen_graph, trace
from feature_collisions.graph.operations import kinds
from feature_collisions.graph.simpler import AUTOCAST, write_regions_out
from helpers.defaults import stop_at_once

SIZE = (1, 4, 4)
STOP = stop_at_once(0.05, max_steps=200, probability=None)


class Net(nn.Module):
    """Two linear layers with a ReLU between them, called by a function."""

    def __init__(self, call):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.gate, self.last = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 3)
        self.call = call

    def forward(self, images):
        return self.call(self, images.flatten(1))


def off(net, x):
    with torch.autocast("cpu", enabled=False):
        hidden = net.first(x).relu()
    return net.last(hidden)


def on_elsewhere(net, x):
    with torch.autocast("xpu", torch.bfloat16):
        hidden = net.first(x).relu()
    return net.last(hidden)


def off_within_off(net, x):
    with torch.autocast("cpu", enabled=False):
        hidden = net.first(x)
        with torch.autocast("cpu", enabled=False):
            hidden, gate = hidden.relu(), net.gate(x)
        hidden = hidden - gate
    return net.last(hidden - gate)


def on(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net.first(x).relu()
    return net.last(hidden.float())


def off_within_on(net, x):
    with torch.autocast("cpu", torch.bfloat16):
        hidden = net.first(x)
        with torch.autocast("cpu", enabled=False):
            hidden = hidden.float().relu()
    return net.last(hidden)


def on_within_off(net, x):
    with torch.autocast("cpu", enabled=False):
        return net.last(on(net, x)[:, :1].expand(-1, 8))


def gate_without_gradient(net, x):
    with torch.no_grad():
        gate = net.gate(x).relu()
    return net.last(net.first(x).relu() + gate)


def written_over(net, x):
    with torch.no_grad():
        gate = net.gate(x).clone()
        gate[:, :2] = 0
    return net.last(net.first(x).relu() * gate)


def gradient_within_none(net, x):
    with torch.no_grad():
        gate = net.gate(x).relu()
        with torch.enable_grad():
            hidden = net.first(x) * gate
        last = hidden.tanh()
    return net.last(hidden + last)


def checkpointed(net, x):
    return net.last(checkpoint(lambda x: net.first(x).relu(), x, use_reentrant=False))


def checkpointed_reentrantly(net, x):
    return net.last(checkpoint(lambda x: net.first(x).relu(), x, use_reentrant=True))


WRITTEN_OUT = [
    off, on_elsewhere, off_within_off, gate_without_gradient, written_over,
    gradient_within_none, checkpointed, checkpointed_reentrantly,
]  # fmt: skip


def images(count=3):
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(1))


def found_by(network, given):
    """Logits, and the gradient of their weighted sum."""
    given = given.clone().requires_grad_()
    logits = network(given)
    (logits * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
    return logits.detach(), given.grad


@pytest.mark.parametrize("call", WRITTEN_OUT)
def test_a_region_has_the_models_values_and_gradient(call):
    model = Net(call)
    graph = trace(model, SIZE)
    assert not graph.reason
    logits, gradient = found_by(graph.runnable(), images())
    expected, expected_gradient = found_by(model, images())
    assert torch.equal(logits, expected)
    assert torch.equal(gradient, expected_gradient)


def branches_within_off(net, x):
    with torch.autocast("cpu", enabled=False):
        gate = torch.cond(x.sum() > 8, lambda x: x.relu(), lambda x: x.tanh(), (net.gate(x),))
    return net.last(gate)


def test_the_branches_of_a_region_are_kept():
    model = Net(branches_within_off)
    network = trace(model, SIZE).runnable()
    for given, branch in ((images(), torch.relu), (0.1 * images(), torch.tanh)):
        expected = model.last(branch(model.gate(given.flatten(1))))
        with torch.no_grad():
            assert torch.equal(network(given), expected)


@pytest.mark.parametrize("call", WRITTEN_OUT)
def test_the_layers_of_a_region_have_names_and_bounds(call):
    graph = trace(Net(call), SIZE)
    assert {"first", "last"} <= graph.nodes.keys()
    assert not any("wrap" in name or name.startswith(".") for name in graph.nodes)
    assert "fixed" in kinds(frozen_graph(graph)).values()


@pytest.mark.parametrize("call", [on, off_within_on, on_within_off])
def test_autocast_that_is_on_has_no_graph(call):
    graph = trace(Net(call), SIZE)
    assert (graph.network, graph.any_batch) == (None, False)
    with pytest.raises(SettingError, match=r"layer=auto: its forward turns autocast on; .* name"):
        last_layer(graph)


def test_autocast_is_on_for_a_network_with_a_tensor_of_its_device():
    program = torch.export.export(Net(on_elsewhere), (images(),), strict=False)
    write_regions_out(program.graph_module, {"cpu", "xpu"})
    assert AUTOCAST in {str(node.target) for node in program.graph.nodes}
    write_regions_out(program.graph_module, {"cpu"})
    assert AUTOCAST not in {str(node.target) for node in program.graph.nodes}


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's
@pytest.mark.parametrize("call", [off, checkpointed_reentrantly, gate_without_gradient])
def test_a_network_with_regions_is_searched_and_proved(call):
    model = Net(call)
    hull = find_corners(model, "first", *images(2), range(2), stop=STOP)
    found = [corner["probability"] for corner in hull.summary["corners"]]
    expected = model(hull.corners).softmax(1)[:, hull.target_class]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert hull.prove(seconds=2)["class"]["share_proved"] > 0


def stopped(net, x):
    """One linear layer; half of it has no gradient."""
    with torch.no_grad():
        gate = net.gate(x)
    return net.last(F.relu(net.first(x) + gate))


def test_weights_of_exact_hulls_are_those_of_the_values():
    layer = first_layer(trace(Net(stopped), SIZE), "add")
    rows = torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(layer.back(rows), layer.weight())
    model = Net(stopped)
    hull = exact_hull(model, images(1)[0], 2, "add")
    expected = model(images(1)).expand(2, -1)
    torch.testing.assert_close(model(hull.corners), expected, atol=1e-5, rtol=0)


def halves(net, x, context=nullcontext):
    with context():
        gate = net.gate(x).relu()
    return net.last((net.first(x).relu() - gate).sin())


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_deep_layer_sees_what_it_computes_under_no_grad():
    found = []
    for context in (nullcontext, torch.no_grad):
        model = Net(partial(halves, context=context))
        hull = find_corners(model, "sub", *images(2), range(2), stop=STOP)
        found.append(hidden_dimensions(hull, seconds=5).seen_dimensions)
    assert found[0] == found[1]
    assert found[0] > int((model.first(images(2)[1].flatten()) > 0).sum())
