import pytest

from helpers.searches import two_images


@pytest.fixture
def pair():
    return two_images()
