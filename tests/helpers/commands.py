"""The two commands as a user runs them: in this process, or started as one of their own."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SHARED = ROOT.parent / "shared"


def run_command(folder, script, *arguments):
    """Run train.py or evaluate.py in this process, in `folder`; gives the exit message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [script, *arguments])
        # Hydra composes the config once more to look for `hydra.mode`; -m says as much.
        patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            return stop.code
        return None


def start(script, *arguments, cwd, **options):
    """Start train.py or evaluate.py as a user would."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )
