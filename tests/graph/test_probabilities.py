"""Networks that return probabilities, sigmoids or a single logit."""

import pytest
import torch
from torch import nn

from feature_collisions import SettingError, StopSettings, find_corners
from feature_collisions.graph.probabilities import giving_logits
from feature_collisions.hull.hull import Hull

pytestmark = pytest.mark.filterwarnings("ignore:not converged")


class Ends(nn.Module):
    def __init__(self, end):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 4))
        for parameter in self.body.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.end = end

    def forward(self, images):
        return self.end(self.body(images))


def found(end):
    initial, target = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    stop = StopSettings(min_steps=5, max_steps=5, positive=None)
    return find_corners(Ends(end), "body.1", initial, target, range(2), stop=stop)


SOFT = {
    "softmax": lambda logits: logits.softmax(1),
    "in a dict": lambda logits: {"logits": logits.softmax(-1)},
    "by hand": lambda logits: logits.exp() / logits.exp().sum(1, keepdim=True),
    "two classes": lambda logits: torch.cat([1 - (z := logits[:, :1].sigmoid()), z], 1),
}


@pytest.mark.parametrize("end", SOFT.values(), ids=SOFT)
def test_probabilities_are_taken_as_such_everywhere(end):
    hull = found(end)
    own = Ends(end)(hull.points(torch.eye(2)))
    own = own["logits"] if isinstance(own, dict) else own
    said = [entry["probability"] for entry in hull.summary["corners"]]
    assert said == pytest.approx(own[:, hull.target_class].tolist(), rel=1e-4)
    assert hull.summary["returns"] == "probabilities"
    sample, worst = hull.sample(50), hull.worst_case(starts=2, steps=3)
    assert worst.probability <= sample["probability_min"] + 1e-6
    with torch.no_grad():
        seen = Ends(end)(worst.image[None])
    seen = seen["logits"] if isinstance(seen, dict) else seen
    assert worst.probability == pytest.approx(float(seen[0, hull.target_class]), rel=1e-4)


def test_a_networks_softmax_and_its_logits_give_the_same_figures():
    soft, plain = found(SOFT["softmax"]), found(nn.Identity())
    one, other = soft.sample(50), plain.sample(50)
    assert plain.summary["returns"] == "logits"
    assert one["probability_mean"] == pytest.approx(other["probability_mean"], rel=1e-4)
    assert one["accuracy"] == other["accuracy"]


def test_a_hull_of_ones_own_makes_the_same_decision_and_leaves_the_model_alone():
    hull, model = found(SOFT["softmax"]), Ends(SOFT["softmax"])
    again = Hull(
        model, hull.layer, hull.corners, hull.initial, hull.target, hull.units, hull.summary
    )
    assert again.sample(50) == hull.sample(50)
    assert not model._forward_hooks
    assert giving_logits(again.model, hull.corners) is again.model


@pytest.mark.parametrize("end", [torch.sigmoid, nn.Sigmoid(), nn.Hardsigmoid()])
def test_sigmoids_are_refused_with_the_cure(end):
    with pytest.raises(SettingError, match=r"model: .*sigmoids.*\[0, z\]"):
        found(end)


@pytest.mark.parametrize("end", [lambda z: z[:, :1], lambda z: z[:, 0]])
def test_a_single_logit_is_refused_with_the_cure(end):
    with pytest.raises(SettingError, match=r"model: .*\[0, z\]"):
        found(end)


def test_logits_that_add_up_to_one_by_chance_are_logits() -> None:
    """On the two images they are (1, 0); elsewhere they are not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    pair = torch.zeros(2, 1, 2, 2)
    with torch.no_grad():
        model[3].bias += torch.tensor([1.0, 0.0]) - model(pair[:1])[0]
    assert giving_logits(model, pair) is model
