"""File systems and names as people have them: without locks, modes or UTF-8; clones without LFS."""

import errno
import os
import shutil

import pytest

import prunus
from helpers.models import MODELS
from prunus.base.errors import CheckpointError
from prunus.storage.journal import Journal
from prunus.storage.scratch import Scratch


def failing(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_network_drive_without_locks_modes_or_links_is_written_to(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    monkeypatch.setattr("pathlib.Path.chmod", failing(errno.EPERM))
    prunus.prune(MODELS / "llama", method="magnitude", output=tmp_path / "out")
    assert prunus.verify(tmp_path / "out", source=MODELS / "llama", reload=False).problems == []


def test_a_folder_without_a_lock_is_left_alone_by_processes_that_know_locks(tmp_path, monkeypatch):
    import fcntl

    with monkeypatch.context() as here:
        here.setattr(fcntl, "flock", failing(errno.ENOLCK))
        unlocked = Scratch(tmp_path)
    locked = Scratch(tmp_path)
    assert unlocked.path.is_dir()
    assert locked.path.is_dir()
    path = unlocked.path
    del unlocked
    assert not path.exists()
    assert locked.path.is_dir()


def test_a_lock_that_another_process_has_is_respected(tmp_path):
    output = tmp_path / "out"
    first = Journal.open(output, {}, False, print)
    with pytest.raises(CheckpointError, match="Another process is writing"):
        Journal.open(output, {}, True, print)
    first.close()


def test_a_disk_that_fails_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(CheckpointError, match="Input/output error"):
        prunus.prune(MODELS / "llama", method="magnitude", output=tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "tokenizer.json"])
def test_a_clone_without_git_lfs_is_named(name, tmp_path):
    source = shutil.copytree(MODELS / "llama", tmp_path / "source")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (source / name).write_bytes(pointer)
    with pytest.raises(CheckpointError, match=rf"{name} is a git-lfs pointer.*git lfs pull"):
        prunus.prune(source, method="magnitude", output=tmp_path / "out")


def test_a_name_that_cannot_be_shown_is_one_sentence():
    name = os.fsdecode(b"/tmp/caf\xe9")
    for call in (
        lambda: prunus.load(name),
        lambda: prunus.prune(MODELS / "llama", method="magnitude", output=name),
    ):
        with pytest.raises(CheckpointError, match=r"caf\\udce9 has characters .* PYTHONUTF8=1"):
            call()


def test_a_block_without_parameters_is_no_division_by_zero():
    from torch import nn

    from prunus.model.blocks import check_share

    check_share("model.layers.1", nn.Identity(), {})
