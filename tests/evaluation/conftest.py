import shutil
from dataclasses import replace

import pytest

from helpers.exact import linear_programs
from helpers.runs import CONFIG


@pytest.fixture(scope="module")
def exact(classifier, digits, tmp_path_factory):
    """A run of three exact corners."""
    initial, target = (digits.test.find("", digit).image for digit in (3, 7))
    hull = linear_programs(classifier, "hidden1", initial, target, range(3), "unit").run()
    folder = tmp_path_factory.mktemp("exact") / "run"
    hull = replace(hull, summary=hull.summary | {"classifier": "mnist_mlp"})
    hull.save(folder)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def run(exact, tmp_path):
    """A copy of that run, to be tampered with."""
    return shutil.copytree(exact, tmp_path / "run")
