"""Logits out of whatever a classifier returns."""

import dataclasses
import types
from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from feature_collisions import find_corners
from feature_collisions.errors import SettingError
from feature_collisions.evaluation.lattice import explored
from feature_collisions.graph.logits import logits_in
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.search import LossSettings
from helpers.defaults import stop_at_once

Pair = namedtuple("Pair", "logits aux")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    loss: float | None = None


class Returns(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.ReLU(), nn.Linear(12, 3))
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(self.net(images))


def search(wrap, **settings):
    generator = torch.Generator().manual_seed(1)
    pair = torch.rand(2, 1, 3, 3, generator=generator)
    return find_corners(
        Returns(wrap),
        "net.1",
        *pair,
        [0, 1],
        loss=LossSettings.paper(beta=0.1, output=0.1),
        stop=stop_at_once(1.0, max_steps=50, probability=1.0),
        **settings,
    )


UNAMBIGUOUS = {
    "object": lambda logits: types.SimpleNamespace(logits=logits),
    "dataclass": Output,
    "named tuple": lambda logits: Pair(logits, logits * 2),
    "dict": lambda logits: {"out": logits},
    "dict with more": lambda logits: {"map": logits[:, :, None], "out": logits, "n": 3},
    "named entry": lambda logits: {"embedding": logits * 2, "logits": logits},
    "tuple": lambda logits: (logits,),
    "list with None": lambda logits: [None, logits, logits.argmax(1)],
}


@pytest.mark.parametrize("name", UNAMBIGUOUS)
def test_a_model_that_wraps_its_logits_gives_what_one_that_does_not_gives(name):
    plain, wrapped = search(lambda logits: logits), search(UNAMBIGUOUS[name])
    assert torch.equal(wrapped.corners, plain.corners)
    changed = {"seconds", "seconds_total", "classifier_hash"}
    assert {k: v for k, v in wrapped.summary.entries().items() if k not in changed} == {
        k: v for k, v in plain.summary.entries().items() if k not in changed
    }
    assert wrapped.sample(50) == plain.sample(50)
    assert wrapped.worst_case(2, 3).probability == plain.worst_case(2, 3).probability
    names = ["a", "b", "c"]
    assert explored(wrapped, names) == explored(plain, names)
    proof, expected = prove_class(wrapped.problem), prove_class(plain.problem)
    assert "reason" in proof or proof["share_proved"] == expected["share_proved"]


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda logits: None, "NoneType"),
        (lambda logits: logits[:, 0], r"a tensor of shape \(\d,\), torch.float32"),
        (lambda logits: logits[:, :1], r"a tensor of shape \(\d, 1\)"),
        (lambda logits: logits[:, :, None, None].repeat(1, 1, 2, 2), r"tensor of shape .*, 2, 2\)"),
        (lambda logits: logits.argmax(1), "torch.int64"),
        (lambda logits: (logits, logits), r"tuple of \(\d, 3\), \(\d, 3\)"),
        (lambda logits: {"a": logits, "b": logits}, r"dict with keys 'a': \(\d, 3\), 'b'"),
        (lambda logits: {}, "dict with keys nothing"),
        (lambda logits: Output(logits[0]), r"Output with logits \(3,\)"),
    ],
)
def test_anything_else_is_one_message_that_says_what_came_back(wrap, found):
    with pytest.raises(SettingError, match=rf"model: must return logits .* it returns .*{found}"):
        search(wrap)


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(1, 4), min_size=1, max_size=3),
            st.sampled_from([torch.float32, torch.float64, torch.int64]),
        ),
        max_size=4,
    ),
    st.integers(1, 4),
    st.sampled_from(["tuple", "list", "dict"]),
)
def test_the_only_floating_matrix_with_a_row_an_image_is_taken(shapes, count, kind):
    tensors = [torch.zeros(shape, dtype=dtype) for shape, dtype in shapes]
    fitting = [
        tensor
        for tensor, (shape, dtype) in zip(tensors, shapes, strict=True)
        if dtype != torch.int64 and len(shape) == 2 and shape[0] == count and shape[1] >= 2
    ]
    named = {f"entry {k}": tensor for k, tensor in enumerate(tensors)}
    output = {"tuple": tuple(tensors), "list": tensors, "dict": named}[kind]
    if len(fitting) == 1:
        assert logits_in(output, count) is fitting[0]
    else:
        with pytest.raises(SettingError, match="must return logits"):
            logits_in(output, count)
