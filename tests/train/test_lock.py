"""One run a folder, and a dead run blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from owngpt.errors import FolderBusyError
from owngpt.train.lock import RunLock

HOLDER = """
import sys, time
from pathlib import Path
from owngpt.train.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"), pytest.raises(FolderBusyError, match=f"process {os.getpid()}"):
        RunLock(tmp_path / "run").acquire()


def test_the_lock_is_free_after_release(tmp_path: Path) -> None:
    with RunLock(tmp_path) as first:
        assert first.held
    assert not first.held
    with RunLock(tmp_path) as second:
        assert second.held


def test_the_lock_of_a_killed_process_does_not_block(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(FolderBusyError, match=f"process {holder.pid}"):
        RunLock(tmp_path).acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with RunLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
