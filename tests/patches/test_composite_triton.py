"""The GPU's kernels of the composite: on the CPU by Triton's interpreter, and on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feature_collisions.patches.composite import Sources, layers, layout_for

pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from feature_collisions.patches import composite_triton


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


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_are_compiled_for_a_gpu_that_is_not_here(capability, tmp_path, monkeypatch):
    """To its machine code: Triton needs the GPU to run it alone."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    numbers = dict.fromkeys(("top", "left"), "*i64") | dict.fromkeys(("windows", "counts"), "*i32")
    numbers |= dict.fromkeys(("count", "side", "height", "width", "most"), "i32")
    constants = {"channels": 3, "planes": 4, "block": 32, "rows": 8, "columns": 64}
    for name in ("_blend", "_variation", "_descend"):
        kernel = getattr(composite_triton, name)
        known = {given: constants[given] for given in kernel.arg_names if given in constants}
        signature = {given: numbers.get(given, "*fp32") for given in kernel.arg_names}
        signature |= dict.fromkeys(known, "constexpr")
        constexprs = {(kernel.arg_names.index(given),): value for given, value in known.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
        made = compile_kernel(source, target=GPUTarget("cuda", capability, 32))
        assert len(made.asm["cubin"]) > 1000


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
