"""Run a command as a person would, and measure it from outside: wall-clock time, peak memory, output."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in the unit of ``ru_maxrss``."""


class CommandFailedError(Exception):
    """A command that was measured ended with an error; the message holds its last words."""


@dataclass(frozen=True)
class Finished:
    """A command that ended well."""

    output: str
    """Its stdout."""
    seconds: float
    """From before the process was started until it was gone."""
    peak_bytes: int
    """Largest resident set of it or of one of its children. The kernel counts the starting process in as well, so measure
    memory before this one has grown."""


def run(command: Sequence[str], *, limit: float, environment: dict[str, str] | None = None) -> Finished:
    """Run a command to its end.

    ``limit``: seconds after which it is killed. ``environment``: variables on top of this process's.

    :raises CommandFailedError: when it ends with another exit code than 0.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={**os.environ, **(environment or {})})
        timer = threading.Timer(limit, process.kill)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        finally:
            timer.cancel()
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            named = " ".join([Path(command[0]).name, *command[1:4]])
            words = errors.read().decode(errors="replace")[-2000:]
            raise CommandFailedError(f"{named} … ended with {process.returncode} after {seconds:.0f} s:\n{words}")
        return Finished(output.read().decode(), seconds, usage.ru_maxrss * RSS_UNIT)


def owngpt(*arguments: str | os.PathLike[str]) -> list[str]:
    """The command line of ``owngpt`` in this environment."""
    return [sys.executable, "-m", "owngpt", *(os.fspath(argument) for argument in arguments)]
