import errno
import os

import pytest
import torch

from feature_collisions.data.files import (
    load_tensors,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)
from feature_collisions.errors import SettingError


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_come_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.rand(3, 4).T, "b": torch.tensor([1, 2])}
    save_tensors(tmp_path / "t.safetensors", tensors)
    again = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_damaged_tensor_files_are_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(SettingError, match=r"t\.safetensors: the file is missing"):
        load_tensors(path)
    save_tensors(path, {"a": torch.rand(100)})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SettingError, match="a damaged safetensors file"):
        load_tensors(path)


def test_json_refuses_what_json_has_no_word_for(tmp_path):
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SettingError, match=r"a\.json: not a JSON file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(SettingError, match=r"b\.json: the file is missing"):
        read_json(tmp_path / "b.json")
