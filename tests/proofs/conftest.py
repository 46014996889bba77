import pytest

from helpers.clocks import count_pieces


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seconds of proofs are pieces here: `seconds=1` judges about a thousand."""
    count_pieces(monkeypatch)
