"""A slip in a call of find_corners: taken where it can mean one thing, else one message."""

import pytest
import torch
from PIL import Image
from torch import nn

from feature_collisions import find_corners
from feature_collisions.errors import SettingError
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LogSettings, LossSettings, StopSettings
from feature_collisions.settings.train import ClassifierSettings

QUICK = {"stop": StopSettings(positive=0.1, min_steps=100, max_steps=100), "log": LogSettings(50)}


def test_images_that_require_gradients_and_paths_as_text_are_taken(shift, shift_images, tmp_path):
    expected = find_corners(shift, "hidden", *shift_images, [0], **QUICK)
    images = [image.clone().requires_grad_() for image in shift_images]
    run = str(tmp_path / "run")
    hull = find_corners(shift, "hidden", *images, [0], directory=run, **QUICK)
    assert torch.equal(hull.corners, expected.corners)
    assert not hull.target.requires_grad
    hull.save(run)
    last = f"{run}/checkpoints/last.ckpt"
    resumed = find_corners(shift, "hidden", *images, [0], ckpt_path=last, **QUICK)
    assert torch.equal(resumed.corners, hull.corners)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": "seven.png"}, r"initial: must be a float32 tensor .* is a str; read files"),
        ({"target": Image.new("L", (3, 3))}, r"target: must be .* is a Image; read files with"),
        ({"initial": torch.zeros(1, 0, 3)}, r"initial: is empty, \(1, 0, 3\)"),
        ({"stop": {"max_steps": 3}}, r"stop={'max_steps': 3}: must be .*StopSettings\(\.\.\.\)"),
        ({"loss": None}, r"loss=None: must be a LossSettings"),
        ({"trainer": None}, "trainer=None: must be a dict"),
        ({"layer": 3}, "layer=3: must be a name"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(shift, shift_images, settings, message):
    initial, target = shift_images
    arguments = {"model": shift, "layer": "hidden", "initial": initial, "target": target}
    with pytest.raises(SettingError, match=message):
        find_corners(**arguments | settings)


def test_a_target_without_inactive_units_has_none_to_push(shift, shift_images):
    shift.hidden.bias.data.fill_(1.0)
    stop = StopSettings(max_steps=5, positive_relative=None, probability=None)
    hull = find_corners(shift, "hidden", *shift_images, [0, 1], stop=stop)
    assert (hull.summary.push, hull.units.tolist()) == ("apart", [-1, -1])
    with pytest.raises(SettingError, match=r"loss.push=unit: no unit of layer hidden is hidden"):
        find_corners(shift, "hidden", *shift_images, [0], loss=LossSettings(push="unit"))


def test_gradients_switched_off_outside(shift, shift_images):
    expected = find_corners(shift, "hidden", *shift_images, [0, 1], **QUICK)
    with torch.no_grad():
        hull = find_corners(shift, "hidden", *shift_images, [0, 1], **QUICK)
        worst = hull.worst_case(2, 3)
    assert torch.equal(hull.corners, expected.corners)
    assert worst.probability == expected.worst_case(2, 3).probability
    with torch.inference_mode():
        assert expected.worst_case(2, 3).probability == worst.probability
        with pytest.raises(SettingError, match=r"under torch\.inference_mode"):
            find_corners(shift, "hidden", *shift_images, [0, 1], **QUICK)


def test_an_unknown_sampler_is_answered_with_those_there_are(shift, shift_images):
    hull = find_corners(shift, "hidden", *shift_images, [0, 1], **QUICK)
    with pytest.raises(
        SettingError, match="sampler=uniform: must be one of dirichlet, stick_break"
    ):
        hull.sample(10, "uniform")


def test_checking_leaves_the_model_alone(shift, shift_images):
    shift.train()
    hooks = [len(module._forward_hooks) for module in shift.modules()]
    Search(shift, "hidden", *shift_images, [0])
    with pytest.raises(SettingError):
        Search(shift, "nothing", *shift_images, [0])
    assert all(module.training for module in shift.modules())
    assert [len(module._forward_hooks) for module in shift.modules()] == hooks
    assert all(parameter.requires_grad for parameter in shift.parameters())


OWN = """
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3))

def raises():
    raise ValueError("no weights here")

def wants(path):
    return network()

def leaves():
    raise SystemExit(3)

def half():
    return network().half()

def scripted():
    import helper_of_own
    return helper_of_own.network()
"""


def test_what_goes_wrong_in_a_classifier_of_ones_own_is_told_with_its_cause(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_of_slips.py").write_text(OWN)
    (tmp_path / "helper_of_own.py").write_text(OWN)
    (tmp_path / "own_unparsed.py").write_text("def network(:\n")
    (tmp_path / "own_failing.py").write_text("x = 1\ny = x / 0\n")

    def load(path):
        return load_classifier(ClassifierSettings("file", None, "1", path), None)

    for path, message in [
        ("own_of_slips:raises", r"ValueError: no weights here \(own_of_slips.py, line 8\); give"),
        ("own_of_slips:wants", r"TypeError: wants\(\) missing 1 required positional argument"),
        ("own_of_slips:leaves", r"SystemExit: 3 \(own_of_slips.py, line 14\)"),
        ("own_unparsed:network", r"SyntaxError: .*own_unparsed.py, line 1"),
        ("own_failing:network", r"ZeroDivisionError: .*own_failing.py, line 2"),
    ]:
        with pytest.raises(SettingError, match=rf"classifier.path={path}: {message}"):
            load(path)
    assert isinstance(load("own_of_slips:scripted"), nn.Sequential)
    with pytest.warns(UserWarning, match="its weights are float16"):
        assert load("own_of_slips:half")[1].weight.dtype == torch.float32
