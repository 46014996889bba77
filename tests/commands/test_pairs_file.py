"""Files of pairs as editors and spreadsheets write them: the pairs, or one message with a line."""

import os

import pytest
import torch

from feature_collisions.commands.pairs import parse_pairs, read_pairs_file
from feature_collisions.data.images import save_png
from feature_collisions.errors import SettingError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pairs.csv"


@pytest.mark.parametrize(
    "content",
    [
        b"3,7\n1,4\n",
        b"\xef\xbb\xbf3,7\r\n1,4\r\n",
        b"\xef\xbb\xbfInitial,Target\r\n3,7\r\n1,4",
        b" INITIAL , target \n 3 , 7 \n1 ,4\t\n",
        b"\n\ninitial,target\n\n3,7\n,\n,,,\n1,4\n\n",
        b"3,7,,\n1,4,,\n",
        b'"3","7"\r\r\n"1","4"\r\n',
        b"3,7\r1,4\r",
    ],
)
def test_what_spreadsheets_write_is_read(path, content):
    path.write_bytes(content)
    assert [line for _, line in read_pairs_file(str(path))] == [["3", "7"], ["1", "4"]]


def test_names_keep_their_inner_spaces_commas_and_accents(path):
    path.write_text('theater curtain, "Ge\u00e4st, wild"\n', encoding="utf-8-sig")
    assert read_pairs_file(str(path)) == [(1, ["theater curtain", "Ge\u00e4st, wild"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"3,7\n" + b"x" * 200_000 + b",7\n",
            r"line 2 cannot be read \(field larger than",
        ),
        (
            b"3,7\n" + b"x" * 100_000 + b",7\n",
            r"line 2: initial=|line 2, x{60}\.\.\.: File name",
        ),
        (b"3,7\n1,4\nb\xe4r,7\n", r"line 3 is not in UTF-8; save the file as CSV UTF-8$"),
        ("3,7\n".encode("utf-16"), r"line 1 is not in UTF-8"),
        (b'3,7\n"1,4\n', r"line 2 cannot be read \(unexpected end of data\)"),
        (b"3,7\n1\0,4\n", r"line 2"),
        (b"3;7\n", r"line 1 is 3;7; it must be initial,target"),
        (b"3,7\n\n5,6,\x1b[31mred\n", r"line 3 is 5,6,\\x1b\[31mred; it must"),
        (b"3,7\n\xef\xbb\xbfinitial,target\n", r"line 2: initial="),
    ],
)
def test_what_cannot_be_read_is_one_message_with_the_line(path, digits, content, message):
    path.write_bytes(content)
    with pytest.raises(SettingError, match=message) as caught:
        parse_pairs(str(path), digits.test, 0, torch.nn.Identity())
    assert str(caught.value).startswith(f"pairs={path}: ")


def test_a_pipe_or_a_huge_file_is_not_read(path):
    os.mkfifo(path)
    with pytest.raises(SettingError, match="must be a regular file"):
        read_pairs_file(str(path))
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(SettingError, match=r"its size, 1,000,000,000,000 bytes, is more"):
        read_pairs_file(str(path))
    with pytest.raises(SettingError, match=r"must be a regular file"):
        read_pairs_file(str(path.parent))


def test_home_is_expanded(tmp_path, digits, monkeypatch):
    """Of the file, and of the images that it names."""
    monkeypatch.setenv("HOME", str(tmp_path))
    save_png(tmp_path / "seven", digits.test[0])
    save_png(tmp_path / "three.png", digits.test[1])
    (tmp_path / "pairs.csv").write_text("~/seven,~/three.png\n3,~/seven\n")
    pairs = parse_pairs("~/pairs.csv", digits.test, 0, [])
    assert pairs == [("~/seven", "~/three.png"), ("3", "~/seven")]
    found = digits.test.find("initial", pairs[0].initial).image
    torch.testing.assert_close(found, digits.test[0], rtol=0, atol=1 / 255)
