"""A disk that refuses leaves what was there, and one sentence says which file and what to do."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from owngpt.config.files import atomic_write_text, storage_errors
from owngpt.errors import StorageError
from owngpt.train import checkpoint


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of ``size``; skips where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs more rights than this user has")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Every file of this process ends at ``limit`` bytes: the system refuses the write that would pass it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def state(megabytes: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((int(megabytes * 2**18),), 0.5)}


def test_a_full_disk_leaves_the_previous_checkpoint_intact_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        first = checkpoint.save(disk / "checkpoints", 10, state(1), {})
        with pytest.raises(StorageError, match="disk is full; free some space") as caught:
            checkpoint.save(disk / "checkpoints", 20, state(6), {})
        assert str(first) in str(caught.value) and "intact" in str(caught.value)
        assert checkpoint.find_newest(disk / "checkpoints") == (first, [])
        assert [entry.name for entry in (disk / "checkpoints").iterdir()] == [first.name]
        assert torch.equal(checkpoint.load(first).state["weight"], state(1)["weight"])


def test_a_disk_that_fills_while_the_small_files_are_written_is_also_caught(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        with pytest.raises(StorageError, match=r"disk is full.*no earlier checkpoint"):
            checkpoint.save(disk, 10, {"x": torch.zeros(1)}, {"long": "x" * 2**19})
        assert list(disk.iterdir()) == []


def test_a_file_size_limit_leaves_the_previous_checkpoint_intact(tmp_path: Path) -> None:
    first = checkpoint.save(tmp_path, 10, state(1), {})
    with file_size_limit(2**21), pytest.raises(StorageError, match=r"ulimit.*intact"):
        checkpoint.save(tmp_path, 20, state(6), {})
    assert checkpoint.find_newest(tmp_path) == (first, [])
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failed_rewrite_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    atomic_write_text(path, "old")
    with file_size_limit(1000), pytest.raises(StorageError, match=str(path)):
        atomic_write_text(path, "new" * 10000)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_a_read_only_disk_is_said(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match="read-only; choose a folder"):
            checkpoint.save(disk / "checkpoints", 1, state(0.1), {})


def test_a_path_through_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="not a folder"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, state(0.1), {})


def test_the_system_error_is_kept_as_the_cause(tmp_path: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path), open("/dev/full", "wb", buffering=0) as full:
        full.write(b"x")
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
