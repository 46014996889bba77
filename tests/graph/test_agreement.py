"""What is searched and measured is the model as its user calls it, or the model is refused."""

import copy
import itertools
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from feature_collisions import Hull, find_corners
from feature_collisions.errors import SettingError
from feature_collisions.graph.agreement import check_agreement
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import Observed, TargetLayer
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.search import LossSettings
from helpers.defaults import stop_at_once

STOP = stop_at_once(0.05, max_steps=200, probability=None)
WITH_CLASSES = stop_at_once(0.05, max_steps=200, probability=0.1)


def toy(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(inplace=True), nn.Linear(32, 4))


@pytest.fixture
def pair():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def normalise(images):
    return (images - 0.5) / 0.25


def pre_hook(model):
    model.register_forward_pre_hook(lambda module, inputs: (normalise(inputs[0]),))


def patched(model):
    forward = model.forward
    model.forward = lambda images: forward(normalise(images))


def untraceable_hook(model):
    def hook(module, inputs):
        return (normalise(inputs[0]),) if inputs[0].sum() > -1 else None

    model.register_forward_pre_hook(hook)


def truth(model, images):
    """Logits and what the layer called "1" really gave, the model called by hand."""
    seen = []
    listener = model[1].register_forward_hook(lambda *call: seen.append(call[2].clone()))
    with torch.no_grad():
        logits = model(images)
    listener.remove()
    return logits, seen[0]


@pytest.mark.parametrize("output", [0.0, 1.0])
@pytest.mark.parametrize("change", [pre_hook, patched, untraceable_hook])
def test_hooks_and_patched_forwards_of_the_root_are_honoured(pair, change, output):
    model = toy()
    change(model)
    hull = find_corners(
        model, "1", *pair, range(3), stop=WITH_CLASSES, loss=LossSettings.paper(output=output)
    )
    logits, found = truth(model, torch.cat([hull.target[None], hull.corners]))
    _, plain = truth(toy(), normalise(hull.target[None]))
    assert torch.allclose(found[0], plain[0], atol=1e-5)
    active = found[0] >= 0
    distances = (found[1:] - found[0])[:, active].norm(dim=1)
    assert distances.tolist() == pytest.approx(
        [entry["positive"] for entry in hull.summary["corners"]], abs=1e-4
    )
    assert distances.max() < 0.05
    assert [e["predicted_class"] for e in hull.summary["corners"]] == logits[1:].argmax(1).tolist()
    assert hull.summary["target_probability"] == pytest.approx(float(logits[0].softmax(0).max()))


def test_proofs_are_of_the_model_with_its_hooks(pair):
    hooked = toy()
    pre_hook(hooked)
    hooked.register_forward_hook(lambda module, inputs, output: output * 5)
    random = LossSettings(hull_edges=0)  # this target is unsure: not every search keeps its class
    hull = find_corners(hooked, "1", *pair, range(3), loss=random, stop=STOP)

    class Plain(nn.Sequential):
        def forward(self, images):
            return super().forward(normalise(images)) * 5

    plain = Plain(*toy())
    same = Hull(plain, "1", hull.corners, *pair, hull.units, hull.summary)
    for prove in (prove_class, prove_collision):
        found, expected = (dict(prove(each.problem).items()) for each in (hull, same))
        for result in (found, expected):
            assert "reason" not in result
            result.pop("seconds", None)
        assert found.pop("by") == expected.pop("by")
        assert found.pop("outcome", "") == expected.pop("outcome", "")
        assert found == pytest.approx(expected)
    found, expected = hull.sample(100), same.sample(100)
    for name in ("accuracy", "probability_min", "positive_relative_max", "inactive_kept"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


PLACES = ("pre", "post", "inner pre", "inner post", "layer post", "patch", "inner patch")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(PLACES), max_size=3), st.floats(0.25, 4), st.floats(-1, 1))
def test_whatever_is_hooked_anywhere_is_either_followed_or_refused(places, scale, shift):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(64, 32), nn.ReLU(inplace=True))
    model = nn.Sequential(nn.Flatten(), inner, nn.Linear(32, 4)).eval()
    for place in places:
        module = {"in": inner, "la": inner[0]}.get(place[:2], model)
        if "pre" in place:
            module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * scale + shift,))
        elif "post" in place:
            module.register_forward_hook(lambda module, inputs, output: output * scale + shift)
        else:
            forward = module.forward
            module.forward = lambda images, forward=forward: forward(images * scale + shift)
    images = torch.rand(5, 1, 8, 8)
    graph = trace(model, (1, 8, 8))
    observed, cut = Observed(graph, "1.0"), TargetLayer(graph, "1.0")
    check_agreement(graph, "1.0", images, observed, [cut])
    assert torch.equal(observed(images)[0], model(images))
    assert torch.equal(observed(images)[1], cut(images))


class Dropping(nn.Module):
    """Dropout that stays on in eval mode."""

    def __init__(self):
        super().__init__()
        self.net = toy()

    def forward(self, images):
        return self.net[3](F.dropout(self.net[:3](images), training=True))


class Counting(nn.Module):
    """Its answers depend on how often it was asked."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = toy(), itertools.count(1)

    def forward(self, images):
        return self.net(images) * next(self.calls)


class Casting(nn.Module):
    """Computes in bfloat16, which rounds."""

    def __init__(self):
        super().__init__()
        self.net = toy()

    def forward(self, images):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(images).float()


class Detaching(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = toy()

    def forward(self, images):
        return self.net(images.detach())


class OverBatch(nn.Module):
    """Normalises over the batch, but for one image alone."""

    def __init__(self):
        super().__init__()
        self.net = toy()

    def forward(self, images):
        return self.net(images - images.mean(0, keepdim=True) / 2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Dropping, "a second call gives other logits: .* randomness"),
        (Counting, "a second call gives other logits: .* a state that calls change"),
        (OverBatch, "its logits of an image depend on the batch: .* normalisation over the batch"),
        (Detaching, "no gradient reaches the image"),
    ],
)
def test_models_that_cannot_be_searched_truly_are_refused(pair, model, message):
    with pytest.raises(SettingError, match=message):
        find_corners(model(), "net.1", *pair, range(3), stop=STOP)


@pytest.mark.parametrize("model", [Dropping, Counting])
def test_a_hull_refuses_them_too(pair, model):
    summary = {"target_class": 0, "distance_scale": 1}
    with pytest.raises(SettingError, match=r"model: .*other logits"):
        Hull(model(), "net.1", pair, *pair, torch.arange(2), summary)


def test_a_cut_that_computes_something_else_is_refused_and_the_hook_is_named(pair):
    model = toy().eval()
    graph = trace(model, (1, 8, 8))
    cut, observed = TargetLayer(graph, "1"), Observed(graph, "1")
    check_agreement(graph, "1", pair, observed, [cut, copy.deepcopy(model)])
    other = copy.deepcopy(model)
    pre_hook(model)
    hooked = trace(model, (1, 8, 8))
    with pytest.raises(SettingError, match=r"other logits than .* a forward hook on the model it"):
        check_agreement(graph, "1", pair, observed, [cut])
    with pytest.raises(
        SettingError, match=r"cut at layer=1, .* a forward hook on the model itself"
    ):
        check_agreement(hooked, "1", pair, Observed(hooked, "1"), [cut])
    with pytest.raises(SettingError, match="other logits than"):
        check_agreement(hooked, "1", pair, Observed(hooked, "1"), [other])


def test_a_patched_forward_is_searched_as_it_is_in_eval_mode(pair):
    """A deep copy would call the first network, in training mode: its dropout would be on."""
    torch.manual_seed(0)
    model = nn.Sequential(*toy()[:3], nn.Dropout(0.5), nn.Linear(32, 4))
    patched(model)
    assert model.training
    hull = find_corners(model, "1", *pair, range(3), stop=WITH_CLASSES)
    assert model.training
    classes, _ = truth(model.eval(), hull.corners)
    found = [entry["predicted_class"] for entry in hull.summary["corners"]]
    assert found == classes.argmax(1).tolist()


def test_a_model_that_casts_is_run_as_it_is(pair):
    model = Casting().eval()
    hull = find_corners(model, "net.1", *pair, range(3), stop=STOP)
    with torch.no_grad():
        expected = model(hull.corners).softmax(1)[:, hull.target_class]
    found = [entry["probability"] for entry in hull.summary["corners"]]
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    assert "autocast" in hull.prove(seconds=1)["class"]["reason"]


def test_a_patched_forward_that_depends_on_values_is_not_stopped_in_a_copy(pair):
    model = toy()
    forward = model.forward
    model.forward = lambda images: forward(images if images.sum() < 0 else images * 2)
    with pytest.raises(SettingError, match=r"never calls it \(the forward patched on the model"):
        find_corners(model, "1", *pair, range(3), stop=STOP)


def test_float64_models_are_searched_and_measured_in_float64(pair):
    model = toy().double()
    hull = find_corners(model, "1", *pair, range(3), stop=STOP)
    assert model[1].weight.dtype == hull.features.features.dtype == torch.float64
    assert hull.corners.dtype == torch.float32
    reference = find_corners(toy(), "1", *pair, range(3), stop=STOP, trainer={"precision": 64})
    assert torch.equal(hull.corners, reference.corners)
    logits, _ = truth(model, hull.corners.double())
    found = [entry["probability"] for entry in hull.summary["corners"]]
    target_class = hull.target_class
    assert found == pytest.approx(logits.softmax(1)[:, target_class].tolist(), abs=1e-12)
    assert hull.sample(20)["accuracy"] <= 1
    assert 0 < hull.worst_case(2, 3).probability < 1
    with pytest.raises(SettingError, match=r"precision=bf16-mixed: the model computes in float64"):
        find_corners(model, "1", *pair, range(3), trainer={"precision": "bf16-mixed"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_computed_in_float32_and_it_is_said(pair, dtype):
    model = toy().to(dtype)
    with pytest.warns(UserWarning, match=f"its weights are {str(dtype)[6:]}; .* in float32"):
        hull = find_corners(model, "1", *pair, range(3), stop=STOP)
    assert model[1].weight.dtype == dtype
    expected = find_corners(toy().to(dtype).float(), "1", *pair, range(3), stop=STOP)
    assert torch.equal(hull.corners, expected.corners)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated")  # torch 2.11
def test_models_without_values_or_layers_are_each_refused_in_their_own_words(pair):
    normed = toy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted, traced = torch.jit.script(toy()), torch.jit.trace(toy(), pair)
        nn.utils.weight_norm(normed[1])
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU(), nn.Linear(32, 4))
    broken = toy()
    broken[3].weight.data[1, 2] = torch.nan
    for model, message in [
        (scripted, "model: is TorchScript"),
        (traced, "model: is TorchScript"),
        (toy().to("meta"), "on the meta device; give"),
        (lazy, "its weights are lazy"),
        (broken, r"model: its logits are not finite numbers; 3\.weight holds NaN"),
        (torch.relu, "model: must be a torch.nn.Module, is a builtin"),
    ]:
        with pytest.raises(SettingError, match=message) as raised:
            find_corners(model, "1", *pair, range(3))
        assert "of the size" not in str(raised.value)


def test_images_that_fail_anywhere_in_the_network_are_refused_before_the_first_step(pair):
    early = nn.Sequential(nn.Flatten(), nn.Linear(65, 32), nn.ReLU(), nn.Linear(32, 4))
    late = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(33, 4))
    for model in (early, late):
        with pytest.raises(
            SettingError, match=r"rejects an image of 1x8x8 .* of the network's size"
        ):
            find_corners(model, "1", *pair, range(3))

    class Wants(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = toy()

        def forward(self, images):
            if images.sum() > 0:
                raise KeyError("mask")
            return self.net(images)

    with pytest.raises(SettingError, match=r"'mask'.*its forward raises KeyError"):
        find_corners(Wants(), "net.1", *pair, range(3))

    class Hungry(Wants):
        def forward(self, images):
            raise torch.OutOfMemoryError("out of memory: tried to allocate a size of 9 GiB")

    with pytest.raises(SettingError, match=r"too little memory; use smaller images"):
        find_corners(Hungry(), "net.1", *pair, range(3))


@pytest.mark.parametrize("precision", ["bf16-mixed", "64"])
def test_the_precision_of_the_search_refuses_no_model(pair, precision):
    """Networks are compared before their weights are halved, and float64 ones as float32."""
    hull = find_corners(
        toy(),
        "1",
        *pair,
        range(3),
        stop=stop_at_once(0.2, max_steps=300),
        trainer={"precision": precision},
    )
    assert hull.summary["converged"]
