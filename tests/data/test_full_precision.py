"""What is measured or proved is float32 or float64 as they are, whatever else is allowed."""

import pytest
import torch
from torch import nn

from feature_collisions import Hull
from feature_collisions.data.devices import may_reduce, out_of_memory, without_tf32
from feature_collisions.graph.target import logits_of, target_features
from helpers.hulls import collided, made_hull

KINDS = (
    torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul,
    torch.backends.mkldnn.conv,
)  # fmt: skip
SEEN = []


def precisions():
    return [kind.fp32_precision for kind in KINDS]


def by_older_name():
    torch.set_float32_matmul_precision("medium")


def by_newer_names():
    for kind, precision in zip(KINDS, ("tf32", "ieee", "bf16", "bf16"), strict=True):
        kind.fp32_precision = precision


@pytest.fixture(params=[by_older_name, by_newer_names])
def reduced(request):
    """A user who lets products of float32 be taken with fewer bits."""
    before = precisions()
    request.param()
    yield
    torch.set_float32_matmul_precision("highest")
    for kind, precision in zip(KINDS, before, strict=True):
        kind.fp32_precision = precision


class Noting(nn.Module):
    """Notes with which bits it is called."""

    def forward(self, images):
        if type(images) is torch.Tensor:  # and none that traces it
            SEEN.append(precisions())
        return images


def hull_that_notes():
    hull = made_hull(4, (1, 12, 12))
    model = nn.Sequential(Noting(), hull.model)
    SEEN.clear()
    ends = hull.corners, hull.initial, hull.target, hull.units, hull.summary
    return Hull(model, "1.2", *ends, batch=16)


def test_what_is_allowed_is_put_back(reduced):
    before = precisions()
    with without_tf32():
        assert precisions() == ["ieee"] * 4
        assert not may_reduce(torch.device("cpu"))
    assert precisions() == before
    assert may_reduce(torch.device("cpu"))


def test_a_hull_is_measured_with_all_bits(reduced):
    hull = hull_that_notes()
    hull.sample(50)
    hull.worst_case(3, 3)
    target_features(hull.graph, hull.layer, hull.target, torch.float32)
    logits_of(hull.model, hull.target[None])
    assert SEEN
    assert all(each == ["ieee"] * 4 for each in SEEN)


def test_a_proof_is_the_same(reduced):
    found = collided().prove(seconds=10)
    with torch.autocast("cpu", torch.bfloat16), without_tf32():
        again = collided().prove(seconds=10)
    for each in (found, again):
        each["class"].seconds = each["collision"].seconds = 0.0
    assert found["class"]["outcome"] == "proved"
    assert found == again


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes", True),
        ("MPS backend out of memory (MPS allocated: 9.00 GB, max allowed: 9.07 GB)", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_every_device_says_in_its_own_words_that_memory_ran_out(said, expected):
    assert out_of_memory(RuntimeError(said)) == expected
