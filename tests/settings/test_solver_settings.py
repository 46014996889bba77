"""What a solver has no use for is refused, and what it takes means what a search's means."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from feature_collisions.errors import SettingError
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.solver import check_used
from helpers.exact import linear_programs


@pytest.mark.parametrize(
    "override",
    [
        "loss.alpha=100", "loss.stages=[]", "optimizer=paper", "optimizer.rate=1", "rates.adam=3",
        "stop.positive=0.1", "++stop.max_steps=9", "log.every=3", "trainer=ddp", "compile=true",
        "trainer.precision=32-true", "+trainer.limit=3", "~trainer.devices", "patches.grid=4",
        "trainer.precision=bf16-mixed", "corners_per_batch=2", "channels_last=true",
    ],
)  # fmt: skip
def test_a_linear_program_refuses_what_it_would_ignore(override: str) -> None:
    with pytest.raises(SettingError) as refused:
        check_used("linear_program", ["experiment=mnist", "solver=linear_program", override])
    assert str(refused.value).startswith(f"{override}: linear programs solve for the corners")
    check_used("gradient", [override])


def test_what_a_solver_uses_it_may_be_told() -> None:
    check_used(
        "linear_program",
        [
            "experiment=mnist", "solver=linear_program", "objective=unit", "corner=0..2", "seed=3",
            "corner_order=inactive_first", "trainer.precision=64-true", "initial=3", "target=7",
            "classifier=file", "classifier.path=a:b", "data.root=x", "wandb.mode=disabled",
            "pairs=random:2", "hydra.run.dir=x", "name=mine",
        ],
    )  # fmt: skip
    with pytest.raises(
        SettingError, match="objective=unit: only linear_program and exact have an obj"
    ):
        check_used("gradient", ["objective=unit"])


@pytest.mark.parametrize("override", ["initial=3", "target=7"])
def test_many_pairs_name_the_images_themselves(override: str) -> None:
    check_used("gradient", [override])
    with pytest.raises(SettingError, match=rf"{override}: pairs=random:2 names the images"):
        check_used("gradient", ["pairs=random:2", override], pairs="random:2")


@pytest.mark.parametrize("override", ["stop.positive=0.1", "trainer.precision=32-true"])
def test_the_command_line_refuses_before_anything_is_loaded(command: Any, override: str) -> None:
    answer = command("train.py", "solver=linear_program", override, "wandb.mode=disabled")
    assert answer.startswith(f"error: {override}: linear programs solve for the corners exactly")


def network() -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))
    initial, target = torch.rand(2, 1, 6, 6)
    return net.requires_grad_(False), initial, target


def test_a_corner_is_the_same_unit_as_a_searchs() -> None:
    net, initial, target = network()
    net[1].bias.data[2] += 0.1  # unit 2 is then active at the start, and not at the target
    start, goal = net[1](initial.flatten()), net[1](target.flatten())
    inactive = [unit for unit in range(12) if goal[unit] < 0]
    first = sorted(inactive, key=lambda unit: bool(start[unit] > 0))
    assert first != inactive
    corners = range(len(inactive))
    for order, expected in (("flat", inactive), ("inactive_first", first)):
        programs = linear_programs(net, "1", initial, target, corners, corner_order=order)
        search = Search(net, "1", initial, target, corners, corner_order=order)
        assert programs.units.tolist() == expected == search.module.loss.units.tolist()
    hull = linear_programs(net, "1", initial, target, [0], corner_order="inactive_first").run()
    assert hull.units.tolist() == first[:1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "units"}, "objective=units: must be one of eq2, unit, random"),
        ({"corner_order": "first"}, "corner_order=first: must be one of flat, inactive_first"),
        ({"seed": -1}, "seed=-1: must be"),
        ({"seed": 2**43, "objective": "random"}, "seed=8796093022208: must be .* at most"),
        ({"corners": [0, 0]}, "a corner is named twice"),
        ({"corners": [-1]}, "corner=.*-1.*: corner counts"),
    ],
)
def test_python_is_refused_likewise(given: dict[str, Any], message: str) -> None:
    net, initial, target = network()
    with pytest.raises(SettingError, match=message):
        linear_programs(*(net, "1", initial, target), **({"corners": [0]} | given))


@pytest.mark.parametrize(("scale", "exact"), [(1.0, True), (1e-9, False)])
def test_exact_corners_say_whether_they_are(scale: float, exact: bool) -> None:
    """HiGHS takes constraints for met within 1e-7, which features of 1e-9 are from anything."""
    net, initial, target = network()
    net[1].weight.data *= scale
    net[1].bias.data *= scale
    programs = linear_programs(net, "1", initial, target, [0, 1], "unit")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        hull = programs.run()
    assert hull.summary["converged"] == exact
    assert any("not converged: the corners' values" in str(each.message) for each in said) != exact
    features = net[1](target.flatten()).relu()
    active = features > 0
    off = [float((net[1](x.flatten()) - features)[active].norm()) for x in hull.corners]
    assert (max(off) < 1e-3 * float(features.norm())) == exact


def test_a_target_without_active_units_has_exact_corners() -> None:
    net, initial, target = network()
    net[1].bias.data -= net[1](target.flatten()).max() + 0.1
    hull = linear_programs(net, "1", initial, target, [0, 1], "unit").run()
    assert hull.summary["converged"]
    assert (net[1](hull.corners.flatten(1)) <= 1e-5).all()


@pytest.mark.parametrize("override", ["patches.grid=4", "patches.root=DIR", "+patches.patch=3"])
def test_patches_are_refused_where_pixels_are_searched(override):
    with pytest.raises(SettingError, match=r"patches\..*pixels"):
        check_used("gradient", [override], parameterisation="pixels")
    check_used("gradient", [override], parameterisation="composite")
