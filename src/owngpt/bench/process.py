"""A side in a process of its own: start it, ask it one JSON object a line, end it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from threading import Timer
from typing import Any, Self

from owngpt.errors import OwnGPTError

LIMIT = 1800.0
"""Seconds that one answer may take; a compilation is the longest."""
REST = 0.15
"""Seconds before a side is asked, in which the threads of the one before go to sleep."""


class SideFailedError(OwnGPTError):
    """A side could not be opened, ended, or could not do what it was asked."""


class SideProcess:
    """A program that says one line when it is open, and then answers (see :func:`owngpt.bench.worker.serve`)."""

    def __init__(
        self, name: str, command: Sequence[str], opened: str, *, threads: int, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it and wait for its first line.

        :param name: for messages.
        :param opened: what its first line says, for messages: "write a first token".
        :param environment: variables on top of this process's.
        :raises SideFailedError: it has not come that far.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **(environment or {})}
        began = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=variables, text=True,
            encoding="utf-8",
        )  # fmt: skip
        try:
            self._answer(f"{name} could not {opened}")
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - began
        """From before the process was started until its first line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None and not self._errors.closed

    def ask(self, verb: str, **arguments: Any) -> Any:
        """The answer, None where it has no such thing.

        :raises SideFailedError: it could not.
        """
        if not self.alive:
            raise SideFailedError(f"{self.name} has ended")
        time.sleep(REST)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its last words are read below
            self._process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
            self._process.stdin.flush()
        return self._answer(f"{self.name}: {verb}").get("result")

    def close(self) -> None:
        """End it; it may take some seconds to do so itself."""
        if self._errors.closed:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _answer(self, what: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = Timer(LIMIT, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip()[-600:]
            raise SideFailedError(f"{what}: its process ended with {self._process.returncode}: {words}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideFailedError(f"{what}: {answer['error']}")
        return answer
