"""Advice fits what the system refused; commands that are printed can be pasted."""

import errno
import os
import resource
import shlex
import signal

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from feature_collisions.commands.command_line import changed, command, override
from feature_collisions.commands.start import explain
from feature_collisions.data.files import write_text
from feature_collisions.search.checkpoints import CheckpointFile


def test_what_the_system_refuses_is_one_message_with_the_files_name():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b")
    assert explain(error).startswith(f"a/b: {os.strerror(errno.ENOSPC)}; files written")


@pytest.fixture
def full(tmp_path):
    """A disk on which a file ends after 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_by_the_files_own_name(full):
    with pytest.raises(OSError, match="too large") as caught:
        write_text(full / "report.md", "x" * 1000)
    assert caught.value.filename == str(full / "report.md")
    assert not list(full.iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(full):
    (full / "last.ckpt").write_text("before")
    with pytest.raises(OSError, match="too large") as caught:
        CheckpointFile().save_checkpoint({"values": torch.zeros(1000)}, full / "last.ckpt")
    assert caught.value.filename == str(full / "last.ckpt")
    assert [path.name for path in full.iterdir()] == ["last.ckpt"]
    assert (full / "last.ckpt").read_text() == "before"


PLACES = ["/a/b", "a b", "it's", 'say "so"', "x=1,y=2", "[a]", "{a: 1}", "$HOME", "${name}",
          "null", "12", "true", "a\\b", "a\\", "a;b",
          "*", "~", "é", "a'b\"c", "#x", "choice(1)"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_printed_command_reads_back(place):
    """Through the shell, Hydra's grammar and omegaconf's references."""
    line = command("evaluate", override("run", place))
    program, name, argument = shlex.split(line)
    assert (program, name) == ("feature-collisions", "evaluate")
    (parsed,) = OverridesParser.create().parse_overrides([argument])
    assert not parsed.is_sweep_override()
    value = parsed.value()
    assert OmegaConf.create({"name": "no", "run": value}).run == place


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["a=1"]),
        (["a=2", "b=3"], ["b=3", "a=1"]),
        (["b=3", "-m"], ["b=3", "a=1", "-m"]),
        (["-m", "b=3"], ["-m", "b=3", "a=1"]),
        (["-m"], ["-m", "a=1"]),
    ],
)
def test_overrides_stay_together(arguments, expected):
    assert changed(arguments, "a=1") == expected
