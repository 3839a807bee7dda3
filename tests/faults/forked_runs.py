"""Real runs in processes that can be killed, forked by a server so that none imports torch again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class ForkedRuns:
    """A server of this folder, which starts a run for each line that it reads, and says ``started PID`` and ``ended STATUS``."""

    def __init__(self, server: str) -> None:
        """:param server: its file's name."""
        command = [sys.executable, str(Path(__file__).parent / server)]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")

    def start(self, line: str) -> int:
        """:returns: the process id of the run that the line asks for."""
        assert self._server.stdin is not None
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()
        return int(self._answer("started"))

    def end(self) -> int:
        """Waits for its end; the exit code, or minus the signal."""
        return int(self._answer("ended"))

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _answer(self, word: str) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline().split()
        assert line[0] == word, line
        return line[1]


def kill(process: int) -> None:
    """SIGKILL, unless the run was faster."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
