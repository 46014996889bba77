"""The GPU's kernels of the composite: on the CPU by Triton's interpreter, and on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feature_collisions.patches.composite import Sources, layers, layout_for

pytest.importorskip("triton")


def test_interpreted_kernels_agree_with_the_dense_planes():
    """In a process of its own: Triton reads the variable when it is imported."""
    script = Path(__file__).with_name("triton_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("agrees") == 3


def test_elsewhere_than_on_a_gpu_they_are_not_used():
    places = torch.zeros(1, dtype=torch.int64)
    sources = Sources(torch.rand(1, 3, 4, 4), places, places, (4, 4))
    logits = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    layout = layout_for(logits, sources)
    assert torch.equal(layout, layers(sources))


@pytest.mark.gpu
def test_compiled_kernels_agree_with_the_dense_planes():
    script = Path(__file__).with_name("triton_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), "cuda"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("agrees") == 3
