"""`corners_per_batch` bounds every forward pass, and `auto` sees how much memory is free."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.data import memory
from feature_collisions.data.memory import free_bytes
from feature_collisions.errors import SettingError
from feature_collisions.search import find_corners as find_corners_module
from feature_collisions.search.find_corners import Search
from feature_collisions.search.lightning_module import Goal
from feature_collisions.settings.search import LogSettings, LossSettings, StopSettings

CPU = torch.device("cpu")
GIB = 2**30


class Counting(nn.Module):
    """The network, and how many images each forward pass took."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.counts: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.counts.append(len(images))
        found: Tensor = self.inner(images)
        return found


def toy(hull: int = 20, precision: str = "64-true", **settings: Any) -> tuple[Any, Counting]:
    """A search for 3 corners with `hull` points, whose target layer counts its images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    images = torch.rand(2, 1, 8, 8)
    loss = LossSettings.paper(3.0, 0.1, hull=hull, hull_weight=1.5, distance=0.1, rectified=True)
    search = Search(
        model, "1", *images, range(3), loss=loss, stop=StopSettings(None, 12, 12, None, 0.9),
        log=LogSettings(every=5), trainer={"accelerator": "cpu", "precision": precision},
        **settings,
    )  # fmt: skip
    search.module.network = network = Counting(search.module.network)
    with torch.no_grad():
        search.module.parameterisation.pixels += 0.1 * torch.rand(3, 1, 8, 8)
        search.module.parameterisation.pixels.clamp_(0, 1)
    return search, network


@pytest.mark.filterwarnings("ignore:not converged", "ignore:the initial image meets")
@pytest.mark.parametrize("per_batch", [1, 2, 3, 7, 22])
def test_no_forward_pass_takes_more_images_than_were_allowed(per_batch: int) -> None:
    """Splitting a batch changes the order of float64 sums, and no more."""
    search, network = toy(corners_per_batch=per_batch)
    found = search.run().corners
    assert max(network.counts) == min(per_batch, 20)
    whole, _ = toy(corners_per_batch=23)
    assert whole.module.per_batch == 23
    torch.testing.assert_close(found, whole.run().corners, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:not converged", "ignore:the initial image meets")
def test_the_classifier_is_asked_in_parts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    search, _ = toy(corners_per_batch=7)
    search.module.classifier = asked = Counting(search.module.classifier)
    search.module.stop = StopSettings(None, 0, 12, probability=0.9)
    monkeypatch.setattr(Goal, "unmatched", lambda *_: {})
    monkeypatch.setattr(Goal, "misclassified", lambda *_: {})
    search.run()
    assert max(asked.counts) == 7
    assert sum(asked.counts) == 3 + 1000  # at step 5, where the goal is met


@pytest.mark.filterwarnings("ignore:not converged", "ignore:the initial image meets")
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_what_fits_is_not_split_and_stays_bitwise_the_same(precision: str) -> None:
    found = {}
    for per_batch in ("auto", 23, 1000):
        search, network = toy(precision=precision, corners_per_batch=per_batch)
        found[per_batch] = search.run().corners
        assert max(network.counts) == 23
        assert search.module.per_batch >= 23
    assert torch.equal(found["auto"], found[23])
    assert torch.equal(found["auto"], found[1000])


@pytest.mark.filterwarnings("ignore:not converged", "ignore:the initial image meets")
@pytest.mark.parametrize(
    ("room", "expected"), [(5.5, 5), (0.5, 1), (22.9, 22), (23.1, 23), (99, 23)]
)
def test_auto_counts_the_hulls_points(
    monkeypatch: pytest.MonkeyPatch, room: float, expected: int
) -> None:
    """A forward pass may hold `room` images: 3 corners and 20 points go in so many at once."""
    monkeypatch.setattr(memory, "bytes_of_one", lambda *_: 10**6)
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(room * 10**6 / 0.7) + 1)
    search, network = toy()
    search.run()
    assert search.module.per_batch == expected
    assert max(network.counts) == (23 if expected == 23 else min(expected, 20))


def test_what_is_left_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert free_bytes(CPU, meminfo) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    assert free_bytes(CPU, meminfo) == 8 * GIB
    meminfo.write_text("MemTotal: 9 kB\n")
    assert free_bytes(CPU, meminfo) is None
    assert free_bytes(torch.device("meta")) is None
    assert (free_bytes(CPU) or 2**21) > 2**20


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [
        ("DefaultCPUAllocator: can't allocate memory", SettingError, "3 corners do not fit into"),
        ("another", RuntimeError, "another"),
    ],
)
def test_corners_that_do_not_fit_before_the_first_step(monkeypatch, reason, kind, said):
    def fail(*_):
        raise RuntimeError(reason)

    monkeypatch.setattr(find_corners_module, "Pixels", fail)
    torch.manual_seed(0)  # with enough inactive units
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(kind, match=said):
        Search(model, "1", *torch.rand(2, 1, 8, 8), range(3))


def test_a_comparison_of_precisions_that_does_not_fit_says_so(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("feature_collisions.settings.trainer.bfloat16_is_fast", lambda _: True)
    monkeypatch.setattr(find_corners_module, "halve_and_compare", fail)
    torch.manual_seed(0)  # with enough inactive units
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(SettingError, match="3 corners do not fit into the memory of cpu; search"):
        Search(model, "1", *torch.rand(2, 1, 8, 8), range(3), trainer={"precision": "auto"})


@pytest.mark.filterwarnings("ignore:the initial image meets the goal")
def test_a_network_that_does_not_fit_where_the_steps_run_says_so(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(find_corners_module, "fit", fail)
    search, _ = toy()
    with pytest.raises(SettingError, match="3 corners do not fit into the memory of cpu; search"):
        search.run()
