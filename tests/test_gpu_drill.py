"""benchmarks/gpu.py goes through in tiny sizes on the CPU, so that it does on its first GPU."""

import ast
import subprocess
import sys
from pathlib import Path

from helpers.commands import ROOT


def test_the_drill_runs_dry_and_keeps_its_table(tmp_path):
    table = tmp_path / "gpu.md"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry", "--out", str(table)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    rows = table.read_text().splitlines()
    assert rows[:2] == ["| what | measured |", "| --- | --- |"]
    for what in (
        "card", "bf16 product", "copy", "MNIST's", "CIFAR-10's", "SqueezeNet 1.1", "marked gpu",
        "composites", "queries", "points", "ten SqueezeNet edges",
    ):  # fmt: skip
        assert any(what in row for row in rows), what
    assert "**" not in table.read_text()  # no failure, no difference


def test_without_a_gpu_or_a_package_the_drill_says_so(tmp_path):
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'hydra' else find(name, *a)\n"
    )
    done = subprocess.run(
        [*script, "--dry"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: not installed here: hydra; see the top of" in done.stderr


def test_the_tests_that_the_drill_runs_need_what_it_brings_alone():
    """A bare machine has no more; what is missing there would lose a whole file of tests."""
    brought = {
        "pytest",
        "torch",
        "numpy",  # scipy's and matplotlib's
        "feature_collisions",
        "helpers",
        "triton",
        *sys.stdlib_module_names,
    }
    files = [
        path for path in (ROOT / "tests").rglob("test_*.py") if path.name != Path(__file__).name
    ]
    marked = [path for path in files if "pytest.mark.gpu" in path.read_text()]
    assert len(marked) > 1
    for path in [
        *marked,
        *(ROOT / "tests" / "helpers").glob("hulls.py"),
        ROOT / "tests/conftest.py",
    ]:
        imports = [node for node in ast.walk(ast.parse(path.read_text()))
                   if isinstance(node, ast.Import | ast.ImportFrom)]  # fmt: skip
        names = {name.split(".")[0] for node in imports
                 for name in ([node.module] if isinstance(node, ast.ImportFrom)
                              else [each.name for each in node.names])}  # fmt: skip
        assert names <= brought, path
