"""Networks that PyTorch has wrapped are searched as the networks they hold."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from feature_collisions import StopSettings, find_corners
from feature_collisions.errors import SettingError
from feature_collisions.networks.unwrap import unwrap

STOP = StopSettings(
    min_steps=3, max_steps=3, positive=None, positive_relative=0.1, probability=None
)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def inside(model: nn.Module) -> nn.Module:
    return nn.Sequential(model)


def compiled_in_place() -> nn.Module:
    model = network()
    model.compile()
    return model


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "_orig_mod.1": lambda: torch.compile(network()),
    "module.1": lambda: nn.DataParallel(network()),
    "module.module.1": lambda: torch.optim.swa_utils.AveragedModel(nn.DataParallel(network())),
    "module._orig_mod.1": lambda: nn.DataParallel(torch.compile(network())),
    "0.1": lambda: inside(torch.compile(network())),
    "0._orig_mod.1": lambda: inside(torch.compile(network())),
    "1": compiled_in_place,
}


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize("layer", WRAPPED)
def test_wrapped_networks_are_searched(layer: str) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = find_corners(network(), "1", *images, range(2), stop=STOP).corners
    for name in ("auto", layer):
        found = find_corners(WRAPPED[layer](), name, *images, range(2), stop=STOP)
        torch.testing.assert_close(found.corners, expected)


def test_what_is_not_wrapped_is_returned_itself_and_nothing_is_changed() -> None:
    model = network()
    assert unwrap(model) is model
    holder = inside(nn.DataParallel(copy.deepcopy(model)))
    plain = unwrap(holder)
    assert isinstance(holder[0], nn.DataParallel)
    assert not any(isinstance(each, nn.DataParallel) for each in plain.modules())


@pytest.mark.parametrize("program", [True, False])
def test_an_exported_network_is_refused(program: bool) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(network(), (images[:1],))
    with pytest.raises(SettingError, match=r"model: is exported"):
        find_corners(exported if program else exported.module(), "1", *images, range(2), stop=STOP)


Guard = Callable[[], torch.no_grad]


class WithoutGradients(nn.Module):
    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.network, self.guard = network(), guard

    def forward(self, images: Tensor) -> Tensor:
        with self.guard():
            return self.network(images)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layer", ["network.1", "auto"])
def test_a_forward_without_gradients_is_refused(guard: Guard, layer: str) -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SettingError, match=r"model: .*gradient"):
        find_corners(WithoutGradients(guard), layer, *images, range(2), stop=STOP)
