import pytest
import torch

from feature_collisions.data.memory import bytes_of_one, corners_that_fit, free_bytes
from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.search.find_corners import Search, find_corners
from feature_collisions.settings.search import LogSettings, LossSettings, StopSettings
from helpers.searches import convolutions, search


@pytest.fixture(params=[0.0, 0.5], ids=["features", "output"])
def loss(request):
    """With and without the class probabilities, for which the whole network runs."""
    return LossSettings.paper(10.0, 0.1, positive_form="half_square", output=request.param)


def test_a_trainer_that_cannot_be_is_refused(pair):
    with pytest.raises(SettingError, match=r"trainer\.strategy=fsdp: must be one of auto, ddp"):
        search(pair, trainer={"strategy": "fsdp"})


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(
    "changes", [{"corners_per_batch": 2}, {"channels_last": True}, {"corners_per_batch": 1}]
)
def test_parts_and_layouts_find_the_same_corners(pair, loss, changes):
    whole, other = search(pair, loss=loss), search(pair, loss=loss, **changes)
    assert (whole.corners - other.corners).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_compiled_network_finds_the_same_corners(pair, loss, monkeypatch):
    """By torch.compile's tracing alone: its C++ takes minutes to build on a busy machine."""
    compiled = []

    def trace(function):
        compiled.append(function)
        return torch._dynamo.optimize("aot_eager")(function)

    monkeypatch.setattr(torch, "compile", trace)
    whole, other = search(pair, loss=loss), search(pair, loss=loss, compile=True)
    assert len(compiled) == 1
    assert (whole.corners - other.corners).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore:not converged")
def test_half_precision_leaves_the_pixels_in_float32(pair, loss):
    hull = search(pair, loss=loss, trainer={"accelerator": "cpu", "precision": "bf16-mixed"})
    whole = search(pair, loss=loss)
    assert hull.corners.dtype == torch.float32
    assert (hull.corners * 255 % 1).abs().max() > 0.01  # finer than bfloat16 or bytes
    near = [entry["positive_relative"] for entry in hull.summary["corners"]]
    best = [entry["positive_relative"] for entry in whole.summary["corners"]]
    assert max(near) < max(best) + 0.1


def test_what_fits_is_measured_on_one_corner(pair, monkeypatch):
    layer = Search(convolutions(), "2", *pair, trainer={"accelerator": "cpu"}).module.network
    one = bytes_of_one(layer, pair[:1])
    assert one > 8 * 14 * 14 * 4  # the first layer's output must be kept
    images = pair[:1].expand(64, -1, -1, -1)
    for free, expected in [(one * 10 / 0.69, 10), (1, 1), (1e12, 64), (None, 64)]:
        told = free if free is None else int(free)
        monkeypatch.setattr("feature_collisions.data.memory.free_bytes", lambda _, told=told: told)
        assert corners_that_fit(layer, images) == expected
    monkeypatch.setattr("feature_collisions.data.memory.free_bytes", lambda _: int(one * 10 / 0.69))
    assert corners_that_fit(layer, images, ranks=2) == 5  # who shares a CPU shares its memory
    monkeypatch.undo()
    free_now = free_bytes(torch.device("cpu"))
    assert free_now is None or free_now > 2**20


def test_running_out_of_memory_says_what_to_lower(pair, monkeypatch):
    task = Search(convolutions(), "2", *pair, trainer={"accelerator": "cpu"})

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(task.module, "_descend", full)
    with pytest.raises(
        CollisionError, match=r"out of memory at step 0 .*corners_per_batch=auto; low"
    ):
        task.run()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
    ],
)
def test_running_out_of_memory_leaves_the_last_checkpoint(pair, tmp_path, monkeypatch, error):
    settings = {
        "trainer": {"accelerator": "cpu"}, "stop": StopSettings(None, 60, 60, None, None),
        "log": LogSettings(10, 10, 20), "directory": tmp_path,
    }  # fmt: skip
    task = Search(convolutions(), "2", *pair, **settings)
    descend = task.module._descend

    def full(step, backward):
        if step == 47:
            raise error
        return descend(step, backward)

    monkeypatch.setattr(task.module, "_descend", full)
    with pytest.raises(CollisionError, match=r"out of memory at step 40 .* ckpt_path=last"):
        task.run()
    last = tmp_path / "checkpoints" / "last.ckpt"
    resumed = find_corners(convolutions(), "2", *pair, **settings, ckpt_path=last)
    assert resumed.summary["steps"] == 60
    steps = [row.split(",")[0] for row in (tmp_path / "metrics.csv").read_text().splitlines()]
    assert steps == ["step", "10", "20", "30", "40", "50", "60"]


@pytest.mark.parametrize("value", ["none", 0, -1, "1.5"])
def test_parts_must_have_corners(pair, value):
    with pytest.raises(SettingError, match=rf"corners_per_batch={value}: must be auto, or a numb"):
        search(pair, corners_per_batch=value)
