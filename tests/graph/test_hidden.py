"""What a layer hides is known from the graph and confirmed on the model, or nothing is claimed."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions import Hull, find_corners
from feature_collisions.errors import SettingError
from feature_collisions.graph.agreement import check_differentiable
from helpers.defaults import stop_at_once

STOP = stop_at_once(0.05, max_steps=60, probability=None)
NOT_FLAT = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "silu": F.silu,
    "leaky": F.leaky_relu,
    "softplus": F.softplus,
}


class Net(nn.Module):
    """Its forward may look at shapes or at values before it computes anything."""

    def __init__(self, activation, how: str = "shape", branch: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation, self.how, self.branch = activation, how, branch
        self.first, self.layer, self.last = nn.Linear(16, 12), nn.Linear(12, 10), nn.Linear(10, 3)
        self.side = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[1] == 1
        if self.how == "values" and float(images.sum()) < -1e9:
            return images.flatten(1)[:, :3]
        if self.how == "length":
            images = images.reshape(len(images), 1, 4, 4)
        hidden = self.first(images.flatten(1)).relu()
        logits = self.last(self.activation(self.layer(hidden)))
        return logits + self.side(hidden) if self.branch else logits


@pytest.fixture
def pair() -> Tensor:
    return torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NOT_FLAT)
def test_what_is_not_exactly_flat_is_refused_without_a_graph(name, pair) -> None:
    with pytest.raises(SettingError, match="layer=layer"):
        find_corners(Net(NOT_FLAT[name], "values"), "layer", *pair, range(2), stop=STOP)


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("how", ["shape", "length"])
@pytest.mark.parametrize(
    ("name", "activation", "push"),
    [("softplus", "softplus", "apart"), ("leaky", "none", "apart"), ("identity", "none", "apart")],
)
def test_what_is_not_exactly_flat_is_searched_and_said(how, name, activation, push, pair) -> None:
    hull = find_corners(Net(NOT_FLAT[name], how), "layer", *pair, range(2), stop=STOP)
    summary = hull.summary
    assert (summary["activation"], summary["push"]) == (activation, push)
    assert summary["tolerance"] == (0.01 if name == "softplus" else 0.0)
    assert (summary.corners[0].unit >= 0) == (push == "unit")
    assert hull.features.features.tolist() == pytest.approx(
        (F.softplus if name == "softplus" else lambda x: x)(hull.observe(pair[1:])[1][0]).tolist()
    )


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("how", ["shape", "length", "values"])
@pytest.mark.parametrize("branch", [False, True])
def test_a_branch_past_the_layer_is_said(how, branch, pair) -> None:
    hull = find_corners(Net(F.relu, how, branch), "layer", *pair, range(2), stop=STOP)
    assert hull.summary["bypassed"] == branch
    assert hull.summary["activation"] == ("unknown" if how == "values" else "relu")


@pytest.mark.filterwarnings("ignore:not converged")
def test_the_graph_is_compared_between_the_corners(pair) -> None:
    """A network that is another one between its corners is refused, not measured as its graph."""

    class Elsewhere(Net):
        def forward(self, images: Tensor) -> Tensor:
            far = (images.detach().flatten(1) - pair.flatten(1)[:1]).abs().amax(1, keepdim=True)
            return super().forward(images) + 0 * far

    hull = find_corners(Elsewhere(F.relu), "layer", *pair, range(2), stop=STOP)
    looked = hull._between()
    assert looked.shape == (3, 1, 4, 4)
    torch.testing.assert_close(hull.observe(looked)[0], hull.model(looked))


@pytest.mark.parametrize(
    "forward",
    [torch.no_grad(), torch.inference_mode()],
)
def test_a_forward_without_gradients_is_refused_before_the_search(forward, pair) -> None:
    model = Net(F.relu)
    model.forward = forward(model.forward)
    with pytest.raises(SettingError, match="no gradient reaches the image"):
        find_corners(model, "layer", *pair, range(2), stop=STOP)
    with pytest.raises(SettingError, match="no gradient"):
        check_differentiable(model, pair[0])


class Quantised(nn.Linear):
    """A subclass of a known module is not its base."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.5 * torch.sin(9 * x))


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_subclass_of_a_known_layer_is_followed_as_it_is(pair) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Quantised(16, 8), nn.ReLU(), nn.Linear(8, 3))
    hull = find_corners(model, "1", *pair, range(2), stop=STOP)
    images = torch.rand(4, 1, 4, 4)
    logits, values = hull.observe(images)
    torch.testing.assert_close(logits, model(images))
    torch.testing.assert_close(values, model[1](images.flatten(1)))
    assert "sin" in Hull.prove(hull, 1)["class"]["reason"]
