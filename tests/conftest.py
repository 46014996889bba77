import functools
import os

# Before torch is imported: threads that spin while they wait starve each other on a busy machine,
# and training the classifier then takes minutes instead of seconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

import random

import numpy as np
import pytest

from helpers.commands import SHARED, run_command

# torch is imported by what uses it: pytest's own process, which starts the workers, runs no test.


def pytest_runtest_setup(item):
    import torch

    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers, alone or after others."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache folder for the whole session, all workers'."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    return folder


@pytest.fixture(scope="session")
def mnist_root():
    """The folder of the full MNIST set."""
    root = SHARED / "data"
    if not (root / "MNIST" / "raw").exists():
        pytest.skip("the full MNIST set is not beside the checkout")
    return root


@pytest.fixture(scope="session")
def digits():
    from feature_collisions.data.datasets import load_data
    from feature_collisions.settings.train import DataSettings

    return load_data(DataSettings("digits"))


@pytest.fixture(scope="session")
def classifier(digits):
    """The classifier of the main job, which ships with the package."""
    from feature_collisions.networks.classifiers import load_classifier
    from feature_collisions.settings.train import ClassifierSettings

    return load_classifier(ClassifierSettings("mnist_mlp", None, "hidden1"), digits)


@pytest.fixture
def shift():
    from helpers.networks import Shift

    return Shift()


@pytest.fixture
def shift_images():
    """An initial and a target image (1, 3, 3); the target's pixels 1, 3, 4, 6 are inactive."""
    import torch

    target = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.4, 0.7, 0.3, 1.0, 0.6]).view(1, 3, 3)
    return torch.full((1, 3, 3), 0.25), target


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`run_command` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(run_command, tmp_path)


@pytest.fixture
def database(tmp_path, monkeypatch):
    """40 smooth pictures in colour, so that near windows exist; the last equals the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import torch

    from feature_collisions.patches.database import open_database
    from helpers.patches import SETTINGS, images_of

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(40, 3, 6, 6, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, 28, mode="bilinear")
    pixels = (pixels * 255).round().to(torch.uint8)
    pixels[-1] = pixels[0]
    return open_database(SETTINGS, images_of(pixels), 0)


@pytest.fixture
def undrawn():
    """Reports make their figures and do not draw them, which takes four fifths of a report's time.

    For tests of something else. In a file of which all tests use it, `undrawn.undo()` draws.
    """
    empty = {"png": b"", "pdf": b"%PDF", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}
    with pytest.MonkeyPatch.context() as patch:
        for module in ("figures", "page"):
            patch.setattr(
                f"feature_collisions.report.{module}.encoded", lambda figure, form: empty[form]
            )
        yield patch
